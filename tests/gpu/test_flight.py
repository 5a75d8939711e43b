"""Batches on a GPU: two under way, out of memory, a device that is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.engine.agreement import agree
from app.engine.modules import eager
from app.engine.runner import Runner
from app.errors import HearthError
from tests.conftest import ROOT
from tests.gpu.conftest import NEEDS_GPU, Shipped

pytestmark = NEEDS_GPU


def same(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    return all(
        np.allclose(one[name], other[name], rtol=1e-3, atol=1e-4)
        for one, other in zip(ours, theirs, strict=True)
        for name in one | other
    )


def test_a_gpu_says_what_the_cpu_says(model: Shipped):
    assert agree(model.runner("cpu").run(model.samples), model.runner("cuda").run(model.samples)) == ""  # type: ignore[arg-type]


def test_two_in_flight_give_the_answers_of_one(model: Shipped):
    runner = model.runner("cuda")
    assert runner.depth == 2
    ours, theirs = model.samples, model.samples[::-1] + model.samples[:1]
    alone = runner.run(ours), runner.run(theirs)
    for _ in range(20):
        first, second = runner.launch(ours), runner.launch(theirs)
        assert same(runner.land(first), alone[0])
        third = runner.launch(ours)
        assert same(runner.land(second), alone[1])
        assert same(runner.land(third), alone[0])


def test_launching_waits_for_nothing(model: Shipped):
    runner = model.runner("cuda")
    expected = runner.run(model.samples)
    runner.run(model.samples)
    torch.cuda._sleep(1_000_000_000)  # cycles: half a second that the device is busy
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = runner.launch(model.samples)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert pending.failure is None
    assert not pending.mark.query(), "the launch took as long as the device was busy"  # type: ignore[attr-defined]
    assert same(runner.land(pending), expected)


class Rows(nn.Module):
    """A quarter of a gigabyte for each row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.zeros(len(x), 1 << 26, device=x.device) + x[:, None]).amax(1)


class Numbers:
    """A program of one number per sample."""

    padded = False

    def networks(self, module: nn.Module) -> dict[str, nn.Module]:
        return {"rows": module}

    def collate(self, samples: Sequence[Any]) -> dict[str, np.ndarray]:
        return {"x": np.array([float(sample["x"]) for sample in samples], np.float32)}

    def forward(self, networks: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"y": networks["rows"](batch["x"])}

    def split(self, outputs: Any, samples: Sequence[Any]) -> list[Any]:
        return [{"y": outputs["y"][row]} for row in range(len(samples))]

    def describe(self, module: nn.Module) -> dict[str, Any]:
        return {}


def test_what_finds_no_memory_is_halved_until_it_does():
    runner = Runner(eager(Numbers(), Rows(), "cuda"), Numbers(), lambda *_: None)
    samples = [{"x": np.array(float(n))} for n in range(8)]
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(
        min(1.0, (torch.cuda.memory_reserved() + (5 << 28)) / total)
    )  # two rows and their sum
    try:
        first, second = runner.launch(samples), runner.launch(samples[:1])
        results = runner.land(first)
        assert runner.no_room_for > 1
        assert not any(isinstance(result, HearthError) for result in results)
        assert [float(result["y"]) for result in results] == list(range(8))  # type: ignore[index, call-overload]
        assert [float(result["y"]) for result in runner.land(second)] == [0.0]  # type: ignore[index, call-overload]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_a_lost_device_ends_the_process():
    """An index out of range fails on the device, and after it every call in the process: only a new process helps."""
    program = """
import numpy as np, torch
from torch import nn
from app.engine.modules import eager
from app.engine.runner import Runner
from tests.gpu.test_flight import Numbers

class Wild(nn.Module):
    def forward(self, x):
        return torch.arange(4.0, device=x.device)[x.long()]

runner = Runner(eager(Numbers(), Wild(), "cuda"), Numbers(), lambda *_: None)
print([float(output["y"]) for output in runner.run([{"x": np.array(2.0)}])])
try:
    runner.run([{"x": np.array(value)} for value in (1.0, 4000.0, 2.0)])
except torch.AcceleratorError:
    print("lost")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.split("\n")[:2] == ["[2.0]", "lost"], done.stderr


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_first_answer_survives_many_later_batches(model: Shipped, size: int):
    """Outputs are views of pinned memory, which must not be reused while somebody holds them."""
    runner = model.runner("cuda")
    kept = runner.run(model.samples[:size])
    copies = [{name: array.copy() for name, array in output.items()} for output in kept]  # type: ignore[union-attr]
    for _ in range(10):
        runner.run(model.samples[::-1])
    assert all(np.array_equal(one[name], other[name]) for one, other in zip(kept, copies, strict=True) for name in other)  # type: ignore[index]
