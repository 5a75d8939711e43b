"""A batch's failure finds its one culprit; the others get their answers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from app.engine.compute import Compute
from app.engine.lane import Lane
from app.engine.modules import eager
from app.engine.runner import Runner, differs
from app.engine.torch_lane import TorchLane
from app.errors import HearthError, ModelFailed, OutOfMemory


class Doubler:
    """A program of one number per sample."""

    def __init__(self, room: int = 100) -> None:
        self.room = room
        self.sizes: list[int] = []

    def collate(self, samples: Sequence[Any]) -> dict[str, np.ndarray]:
        return {"x": np.array([float(sample["x"]) for sample in samples], np.float32)}

    padded = False

    def networks(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        return {"twice": module}

    def forward(self, networks: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.sizes.append(len(batch["x"]))
        if len(batch["x"]) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        if (batch["x"] == 13).any():
            raise ValueError("unlucky")
        if (batch["x"] == 66).any():
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return {"y": 2 * batch["x"] if not torch.is_inference_mode_enabled() else networks["twice"](batch["x"])}

    def split(self, outputs: Any, samples: Sequence[Any]) -> list[Any]:
        return [{"y": outputs["y"][row]} for row in range(len(samples))]

    def describe(self, module: torch.nn.Module) -> dict[str, Any]:
        return {}


class Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x == 7, torch.tensor(float("nan")), 2 * x)


def runner_of(program: Doubler, lane: Lane | None = None) -> Runner:
    return Runner(eager(program, Twice()), program, lambda *_: None, lane)


def samples(*values: float) -> list[Any]:
    return [{"x": np.array(value)} for value in values]


def run(values: list[float], program: Doubler | None = None) -> list[Any]:
    return runner_of(program or Doubler()).run(samples(*values))


class Gpu(TorchLane):
    """Computes when it is waited for, as it seems to a caller; has room for so many samples."""

    depth = 2

    def __init__(self, room: int = 100) -> None:
        self.room = room

    def there(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.size = len(batch["x"])
        return batch

    def mark(self) -> Any:
        return SimpleNamespace(synchronize=lambda size=self.size: self.compute(size))

    def compute(self, size: int) -> None:
        if size > self.room:
            raise torch.AcceleratorError("CUDA error: out of memory")


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


class Rounder(Doubler):
    """Two classes, of which the first has the probability x, which one of its networks rounds."""

    def forward(self, networks: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.sizes.append(len(batch["x"]))
        first = networks["rounded"](batch["x"])
        return {"scores": torch.stack([first, 1 - first], 1)}

    def split(self, outputs: Any, samples: Sequence[Any]) -> list[Any]:
        return [{"scores": outputs["scores"][row]} for row in range(len(samples))]


def judged(exact: Callable[[torch.Tensor], torch.Tensor]) -> Compute:
    """One that rounds to fiftieths, and who decides what is close."""
    return Compute("eager", "bf16", {"rounded": lambda x: (x * 50).round() / 50}, exact={"rounded": exact})


def test_what_is_close_is_decided_by_fp32_and_nothing_else_is():
    program, compute = Rounder(), judged(lambda x: x)
    values = [0.9, 0.509, 0.2, 0.491]
    found: list[Any] = Runner(compute, program, lambda *_: None).run(samples(*values))
    assert [round(float(output["scores"][0]), 3) for output in found] == [0.9, 0.509, 0.2, 0.491]
    assert program.sizes == [4, 2], "the close ones once more"
    plain: list[Any] = Runner(replace(compute, exact=None), program, lambda *_: None).run(samples(*values))
    assert [round(float(output["scores"][0]), 3) for output in plain] == [0.9, 0.5, 0.2, 0.5]


def test_where_fp32_has_no_room_for_all_that_is_close_it_decides_by_halves():
    def little_room(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            raise MemoryError
        return x

    program = Rounder()
    runner = Runner(judged(little_room), program, lambda *_: None)
    found: list[Any] = runner.run(samples(0.509, 0.9, 0.491))
    assert [round(float(output["scores"][0]), 3) for output in found] == [0.509, 0.9, 0.491]
    assert program.sizes == [3, 2, 1, 1] and runner.no_room_for == 0


def test_what_fp32_cannot_decide_stays_as_it_is():
    def no_room(_: torch.Tensor) -> torch.Tensor:
        raise MemoryError

    program = Rounder()
    runner = Runner(judged(no_room), program, lambda *_: None)
    found: list[Any] = runner.run(samples(0.9, 0.509, 0.2))
    assert [round(float(output["scores"][0]), 3) for output in found] == [0.9, 0.5, 0.2]
    assert program.sizes == [3, 1] and runner.no_room_for == 0, "bf16 had room"


def test_fp32_decides_classes_and_changes_no_embedding():
    class Both(Rounder):
        def forward(self, networks: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return super().forward(networks, batch) | {"embedding": networks["rounded"](batch["x"])[:, None]}

        def split(self, outputs: Any, samples: Sequence[Any]) -> list[Any]:
            return [{name: array[row] for name, array in outputs.items()} for row in range(len(samples))]

    (found,) = Runner(judged(lambda x: x), Both(), lambda *_: None).run(samples(0.509))
    assert isinstance(found, dict)
    assert (round(float(found["scores"][0]), 3), round(float(found["embedding"][0]), 3)) == (0.509, 0.5)


class TestDiffering:
    """A bf16 network, and the fp32 one that decides what is close: each is proven without the other."""

    @staticmethod
    def told(module: float, half: float, full: float) -> str:
        expected = [{"scores": np.array([module, 1 - module], np.float32)}]
        rounded, exact = ({"rounded": lambda x, to=to: torch.full_like(x, to)} for to in (half, full))
        return differs(expected, Compute("eager", "bf16", rounded, exact=exact), Rounder(), samples(0.0))

    def test_both_that_agree_do(self):
        assert self.told(0.52, 0.505, 0.52) == "" and self.told(0.51, 0.49, 0.51) == ""

    def test_fp32_does_not_hide_what_bf16_says(self):
        assert self.told(0.95, 0.5, 0.95) == "scores differ by 0.450"

    def test_who_decides_is_asked_too_though_nothing_is_close(self):
        assert self.told(0.95, 0.95, 0.05) == "scores differ by 0.900"

    def test_a_class_that_changes_without_being_close_is_refused(self):
        assert self.told(0.512, 0.479, 0.512).startswith("scores differ")


@pytest.mark.filterwarnings("ignore")
def test_a_batch_that_fails_in_flight_leaves_the_other_its_answers():
    runner = runner_of(Doubler(), Gpu())
    first, second = runner.launch(samples(1, 13)), runner.launch(samples(3, 4))
    good, bad = runner.land(first)
    assert float(good["y"]) == 2 and isinstance(bad, ModelFailed)
    assert [float(output["y"]) for output in runner.land(second)] == [6, 8]


def test_what_fails_only_when_it_lands_is_halved_too():
    runner = runner_of(Doubler(), Gpu(room=2))
    first, second = runner.launch(samples(1, 2, 3, 4, 5)), runner.launch(samples(6, 7.5))
    assert [float(output["y"]) for output in runner.land(first)] == [2, 4, 6, 8, 10]
    assert runner.no_room_for == 3
    assert [float(output["y"]) for output in runner.land(second)] == [12, 15]
    assert runner.no_room_for == 0


def test_a_device_that_is_lost_ends_the_process_instead_of_failing_every_caller():
    """Its samples are blamed by the black box, and a replacement with a sound device answers the others."""
    with pytest.raises(torch.AcceleratorError):
        run([1, 66, 3])


class Hungry(Doubler):
    """Its first forward takes memory and fails."""

    def forward(self, networks: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.sizes:
            activations = torch.zeros(1000)
            self.activations = weakref.ref(activations)
            self.sizes.append(len(batch["x"]))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        assert self.activations() is None, "the first try's memory is still held"
        return super().forward(networks, batch)


def test_a_retry_has_the_memory_of_the_try_that_failed():
    assert [float(output["y"]) for output in run([1, 2], Hungry())] == [2, 4]


def test_what_is_no_plain_number_is_the_models_failure():
    """The wire carries no other kinds, and would drop the whole envelope."""

    class Odd(Doubler):
        def split(self, outputs: Any, samples: Sequence[Any]) -> list[Any]:
            return [{"y": np.complex64(1) if value == 2 else value} for value in outputs["y"]]

    good, bad = run([1, 1], Odd()), run([1, 5], Odd())
    assert all(isinstance(result, ModelFailed) and "complex64" in result.detail for result in good)
    assert isinstance(bad[0], ModelFailed) and float(bad[1]["y"]) == 10
