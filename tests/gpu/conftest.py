"""What tests on a GPU share: when they are skipped, and the shipped models to run there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from app.catalogue import Catalogue
from app.engine.choosing import probes
from app.engine.compute import Compute, Precision
from app.engine.device import available
from app.engine.loader import load
from app.engine.modules import eager
from app.engine.runner import Runner
from app.settings import Settings
from app.tasks import TASKS, card_samples, make_codec, resolve
from app.tasks.base import Arrays, Program
from app.weights import locate

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(available() == ["cpu"], reason="no CUDA device on this machine")]


@dataclass
class Shipped:
    """A starter: no network needed."""

    name: str
    program: Program
    samples: list[Arrays]
    files: Any
    card: Any

    def compute(self, device: str, precision: Precision = "fp32") -> Compute:
        return eager(self.program, load(self.card, self.files), device, precision)

    def runner(self, device: str, precision: Precision = "fp32") -> Runner:
        return Runner(self.compute(device, precision), self.program, lambda *_: None)


def shipped(name: str) -> Shipped:
    card = Catalogue.read(Path("/nowhere")).named(name)
    files = locate(card, Settings())
    assert files, f"{name} is not here"
    program = resolve(TASKS[card.task].program)(card, files)
    codec = make_codec(card, files, program.describe(load(card, files)))
    return Shipped(name, program, probes([sample.arrays for sample in card_samples(card, codec)]), files, card)


@pytest.fixture(scope="session", params=["cifar-resnet", "all-minilm-l6-v2", "spoken-digits"])
def model(request: pytest.FixtureRequest) -> Shipped:
    return shipped(request.param)


@pytest.fixture(autouse=True)
def sound() -> None:
    """fp32 as the server has it."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
