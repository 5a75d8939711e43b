"""A batch's failure finds its one culprit; the others get their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from app.engine.compute import eager
from app.engine.runner import Runner
from app.errors import HearthError, ModelFailed, OutOfMemory


class Doubler:
    """A program of one number per sample."""

    def __init__(self, room: int = 100) -> None:
        self.room = room
        self.sizes: list[int] = []

    def collate(self, samples: Sequence[Any]) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([float(sample["x"]) for sample in samples])}

    padded = False

    def networks(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        return {"twice": module}

    def forward(self, networks: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.sizes.append(len(batch["x"]))
        if len(batch["x"]) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        if (batch["x"] == 13).any():
            raise ValueError("unlucky")
        return {"y": 2 * batch["x"] if not torch.is_inference_mode_enabled() else networks["twice"](batch["x"])}

    def split(self, outputs: Any, samples: Sequence[Any]) -> list[Any]:
        return [{"y": outputs["y"][row]} for row in range(len(samples))]

    def describe(self, module: torch.nn.Module) -> dict[str, Any]:
        return {}


class Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x == 7, torch.tensor(float("nan")), 2 * x)


def run(values: list[float], program: Doubler | None = None) -> list[Any]:
    program = program or Doubler()
    runner = Runner(eager(program, Twice()), program, lambda *_: None)
    return runner.run([{"x": np.array(value)} for value in values])


def test_outputs_come_in_order():
    assert [float(output["y"]) for output in run([1, 2, 3])] == [2, 4, 6]


@pytest.mark.filterwarnings("ignore")
def test_the_one_that_raises_fails_alone():
    results = run([1, 2, 13, 4, 5])
    assert [isinstance(result, HearthError) for result in results] == [False, False, True, False, False]
    assert "ValueError" in results[2].detail
    assert "unlucky" not in results[2].detail, "what the model says may hold secrets; the log has it"


def test_a_number_that_is_none_is_the_models_failure():
    good, bad = run([1, 7])
    assert float(good["y"]) == 2
    assert isinstance(bad, ModelFailed)
    assert "finite" in bad.detail


def test_out_of_memory_halves_until_it_fits():
    program = Doubler(room=2)
    assert [float(output["y"]) for output in run([1, 2, 3, 4, 5], program)] == [2, 4, 6, 8, 10]
    assert max(program.sizes[1:]) <= 3


def test_what_does_not_fit_alone_is_told():
    (result,) = run([1], Doubler(room=0))
    assert isinstance(result, OutOfMemory)
