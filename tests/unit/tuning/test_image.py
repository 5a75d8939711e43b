"""Pictures in jobs: their sizes while they are trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from app.tasks.image.input import ImageInput
from app.tuning import image
from app.tuning.image import LEAST_SIDE, small_first


def network(classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))


@pytest.mark.parametrize(("crop", "epochs", "sides"), [(224, 3, [160, 160]), (288, 10, [192] * 6), (224, 1, []), (32, 3, [])])
def test_pictures_are_smaller_in_the_first_two_thirds(crop: int, epochs: int, sides: list[int]):
    assert small_first(network(), ImageInput(crop=crop), epochs, 2) == sides
    assert all(side >= LEAST_SIDE for side in sides)


@pytest.mark.parametrize(
    ("module", "side"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2)), 224),
        # As it answers it takes 192 pixels, as it trains not.
        (models.inception_v3(num_classes=2, init_weights=False, transform_input=False), 299),
        # Four scores for 224 pixels, one for 160.
        (nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), nn.AvgPool2d(112), nn.Flatten()), 224),
    ],
    ids=["flat", "inception", "as many scores as pixels"],
)
def test_a_network_that_takes_no_other_size_gets_its_own(module: nn.Module, side: int, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "hearth")
    classes = 4 if isinstance(module[-1] if isinstance(module, nn.Sequential) else None, nn.Flatten) else 2
    assert small_first(module.eval(), ImageInput(crop=side), 3, classes) == []
    assert "all epochs have the full size" in caplog.text


def test_trying_a_size_leaves_no_trace():
    module = models.resnet18(num_classes=2).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    chance = torch.get_rng_state()
    assert small_first(module, ImageInput(), 3, 2) == [160, 160]
    assert not module.training and all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)


class Remembering(nn.Module):
    """Keeps what it made for a size, has a buffer that is not saved, and one weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3, 1, 1), persistent=False)
        self.one = nn.Linear(3, 3)
        self.other = nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.last = nn.Linear(3, 2)
        self.made: dict[int, torch.Tensor] = {}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] → [B, 2]."""
        side = pixels.shape[-1]
        if side not in self.made:
            self.made[side] = torch.linspace(0, 1, side, device=pixels.device)
        self.scale.add_(1)
        return self.last(self.other(self.one((pixels * self.made[side] * self.scale).mean((2, 3)))))

    def get_extra_state(self) -> dict[str, int]:
        """No tensor."""
        return {"seen": 0}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Nothing."""


def test_the_network_that_is_tried_is_another_one():
    module = Remembering()
    assert small_first(module, ImageInput(), 3, 2) == [160, 160]
    assert not module.made and module.scale.eq(1).all() and module.one.weight.device.type == "cpu"


class Deep(nn.Module):
    """With weights of five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv3d(1, 4, (3, 3, 3))
        self.last = nn.Linear(4, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] → [B, 3]."""
        return self.last(self.mix(pixels[:, None]).mean((2, 3, 4)))


def test_weights_of_any_shape_are_laid_out_as_they_can_be():
    module = nn.ModuleList([Deep(), models.resnet18()])
    image._channels_last(module)
    assert module[1].conv1.weight.is_contiguous(memory_format=torch.channels_last)
