"""Heads: a layer on vectors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.tuning.features import head_training
from app.tuning.spec import Spec, filled


def uneven(large: int, small: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes around two directions that are not far apart, as sentences of one kind are."""
    centres = torch.ones(2, 384)
    centres[1, ::3] = -1.0
    targets = torch.tensor([0] * large + [1] * small)
    vectors = centres[targets] + torch.randn(len(targets), 384, generator=torch.Generator().manual_seed(seed)) / 2
    return nn.functional.normalize(vectors, dim=1), targets


@pytest.mark.parametrize("task", ["text-classification", "image-classification"])
@pytest.mark.parametrize(("large", "small"), [(80, 20), (300, 40)])
def test_a_head_learns_the_small_class_too(task: str, large: int, small: int):
    """Its first epochs name the large one for everything: no accuracy shows that it learns."""
    torch.manual_seed(0)
    data = {"train": uneven(large, small, 1), "val": uneven(large // 4, small // 4, 2)}
    spec = filled(Spec(name="new", base="old", method="head"), task)
    training = head_training(nn.Linear(384, 2), data, ["large", "small"], spec, task)
    list(training)
    assert training.metrics["macro_f1"] == 1.0, training.best
