"""Pictures in jobs: their sizes while they are trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from app.tasks.image.input import ImageInput
from app.tuning.image import LEAST_SIDE, small_first


@pytest.mark.parametrize(("crop", "epochs", "sides"), [(224, 3, [160, 160]), (288, 10, [192] * 6), (224, 1, []), (32, 3, [])])
def test_pictures_are_smaller_in_the_first_two_thirds(crop: int, epochs: int, sides: list[int]):
    assert small_first(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), ImageInput(crop=crop), epochs) == sides
    assert all(side >= LEAST_SIDE for side in sides)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2)),
        models.inception_v3(init_weights=False, transform_input=False),  # as it answers it takes 192 pixels, as it trains not
    ],
    ids=["flat", "inception"],
)
def test_a_network_that_takes_no_other_size_gets_its_own(module: nn.Module):
    side = 224 if isinstance(module, nn.Sequential) else 299
    assert small_first(module.eval(), ImageInput(crop=side), 3) == []


def test_trying_a_size_leaves_no_trace():
    module = models.resnet18().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert small_first(module, ImageInput(), 3) == [160, 160]
    assert not module.training and all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
