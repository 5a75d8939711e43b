"""The worker's loop, with a lane, sockets and a clock of paper: what is launched and landed when, and who is blamed meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from app.card import Card
from app.engine import runner, worker
from app.engine.batcher import Batcher
from app.engine.torch_lane import TorchLane
from app.tasks.image.program import ImageProgram
from app.wire.blackbox import BlackBox, Reading
from app.wire.messages import Cancel, Done, Failed, Hello, Message, Ready, Run, Stop

MODEL = '''
"""Doubts 13."""
from torch import nn

class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        if bool((x * 255 == 13).any()):
            raise ValueError("unlucky")
        return self.head(x.flatten(1))
'''
LAUNCH_S, LAND_S = 1.0, 10.0


class Paper(TorchLane):
    """A lane that keeps a journal. Launching takes a second, a batch ten."""

    def __init__(self, depth: int, box: BlackBox, frontends: Peer) -> None:
        self.depth = depth
        self.box = box
        self.journal: list[str] = []
        self.readings: list[Reading] = []
        self.answered: list[int] = []
        self.frontends = frontends
        self.now = 100.0

    def there(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self._ids = " ".join(sorted(str(int(pixels[0, 0, 0])) for pixels in batch["pixels"]))
        self._write(f"launch {self._ids}", LAUNCH_S)
        return batch

    def mark(self) -> Any:
        ids = self._ids
        return SimpleNamespace(synchronize=lambda: self._write(f"land {ids}", LAND_S))

    def _write(self, line: str, seconds: float) -> None:
        self.journal.append(line)
        self.readings.append(self.box.read())
        self.answered.append(len(self.frontends.sent))
        self.now += seconds


class Peer:
    """A socket with a script: what each turn of the loop finds there."""

    crowded = False

    def __init__(self, turns: list[list[Message]]) -> None:
        self.turns = turns
        self.sent: list[Message] = []
        self._outbox: list[Message] = []

    def send(self, message: Message, arrays: Any = None, *, to: str = "") -> None:
        self._outbox.append(message)

    def flush(self) -> None:
        self.sent += self._outbox
        self._outbox.clear()

    def receive(self) -> Iterator[tuple[str, Message, dict[str, np.ndarray]]]:
        self.flush()
        for message in self.turns.pop(0) if self.turns else []:
            pixels = np.full((2, 2, 3), getattr(message, "id", 0), np.uint8)
            yield "frontend", message, {"pixels": pixels}

    def close(self) -> None:
        self.flush()


Play = Callable[..., tuple[Paper, dict[int, Message]]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Run a worker through turns of messages; the lane's journal and the answers by id."""
    (tmp_path / "model.py").write_text(MODEL)
    save_file({"head.weight": torch.ones(2, 12), "head.bias": torch.zeros(2)}, tmp_path / "weights.safetensors")
    card = Card.model_validate(
        {
            "name": "toy",
            "folder": tmp_path,
            "task": "image-classification",
            "source": {"kind": "module", "entry": "Toy"},
            "input": {"resize": (2, 2), "crop": 2, "mean": (0, 0, 0), "std": (1, 1, 1)},
            "limits": {"max_batch": 2},
            "about": {"licence": "x"},
        }
    )
    words = {"name": "toy.1", "files": {"weights": str(tmp_path / "weights.safetensors")}}
    words |= {"home": "", "address": "", "control": "", "blackbox": str(tmp_path / "box")}

    def run(*turns: list[Message], depth: int = 2, max_batch: int = 2, stalls: bool = False) -> tuple[Paper, dict[int, Message]]:
        """`stalls`: batches are also small because a long one would be taken for one that hangs."""
        limits = card.limits.model_copy(update={"max_batch": max_batch})
        words["card"] = card.model_copy(update={"limits": limits}).model_dump_json()
        frontends = Peer([[message for message in turn if not isinstance(message, Stop)] for turn in turns])
        lane = Paper(depth, BlackBox(tmp_path / "box", create=True), frontends)
        supervisor = Peer([[message for message in turn if isinstance(message, Stop)] for turn in turns] + [[Stop()]])

        def wait(_: Any, seconds: float) -> None:
            assert len(lane.journal) == 2 * sum(line.startswith("land") for line in lane.journal), "waited while a batch ran"
            lane.now += seconds

        def outlive() -> None:
            assert [type(message) for message in supervisor.sent] == [Hello], "it must know whom to end"

        monkeypatch.setattr(worker, "outlive_parent", outlive)
        monkeypatch.setattr(runner, "lane_of", lambda _: lane)
        if not stalls:
            monkeypatch.setattr(worker, "Batcher", lambda **bounds: Batcher(**bounds | {"longest_s": math.inf}))
        monkeypatch.setattr(worker, "wait", wait)
        monkeypatch.setattr(worker, "Standby", lambda _: SimpleNamespace(during=lambda _: nullcontext()))
        monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: lane.now))
        monkeypatch.setattr(worker, "Endpoint", SimpleNamespace(listen=lambda _: frontends, connect=lambda *_: supervisor))
        spec = worker.Spec(device="cpu", threads=torch.get_num_threads(), precision="fp32", compute="eager", **words)
        worker.Worker(spec).serve()
        assert any(isinstance(message, Ready) for message in supervisor.sent), supervisor.sent
        answers = {message.id: message for message in frontends.sent if isinstance(message, Done | Failed)}
        assert len(answers) == len(frontends.sent), "exactly one answer each"
        return lane, answers

    return run


def launched(lane: Paper) -> list[str]:
    return [line for line in lane.journal if line.startswith("launch")]


def ask(id: int, deadline: float = 1e9, alone: bool = False) -> Run:
    return Run(id, 1.0, deadline, ("scores",), alone)


def test_on_a_gpu_the_second_batch_is_launched_before_the_first_lands(play: Play):
    lane, answers = play([ask(1), ask(2), ask(3), ask(4), ask(5)])
    assert lane.journal == ["launch 1 2", "launch 3 4", "land 1 2", "launch 5", "land 3 4", "land 5"]
    assert all(isinstance(answer, Done) for answer in answers.values()) and len(answers) == 5


def test_on_the_cpu_each_lands_before_the_next(play: Play):
    lane, _ = play([ask(1), ask(2), ask(3)], depth=1)
    assert lane.journal == ["launch 1 2", "land 1 2", "launch 3", "land 3"]


def test_a_batch_lands_at_once_when_nothing_waits(play: Play):
    lane, _ = play([ask(1)], [], [], [ask(2)])
    assert lane.journal == ["launch 1", "land 1", "launch 2", "land 2"]


def test_what_comes_while_a_batch_runs_is_launched_first(play: Play):
    lane, _ = play([ask(1)], [ask(2)])
    assert lane.journal == ["launch 1", "launch 2", "land 1", "land 2"]


def test_a_death_would_blame_both_batches_and_the_stall_counts_from_the_older(play: Play):
    lane, _ = play([ask(1), ask(2), ask(3), ask(4)])
    first, second, landing, last = lane.readings
    assert set(first.running) == {1, 2}
    assert set(second.running) == set(landing.running) == {1, 2, 3, 4}
    assert second.busy_since == landing.busy_since == first.busy_since
    assert set(last.running) == {3, 4}
    assert last.busy_since == landing.busy_since + 2 * LAUNCH_S + LAND_S, "it had the device only since the first one landed"
    assert lane.box.read().running == ()


def test_answers_leave_before_the_device_is_waited_for_again(play: Play):
    lane, _ = play([ask(1), ask(2, alone=True), ask(3), ask(4)])
    assert lane.journal == ["launch 1 3", "land 1 3", "launch 2", "land 2", "launch 4", "land 4"]
    assert lane.answered == [0, 0, 2, 2, 3, 3]


def test_queue_and_run_seconds_add_up(play: Play):
    _, answers = play([ask(1), ask(2), ask(3)])
    assert (answers[1].queue_s, answers[1].run_s) == (0.0, 2 * LAUNCH_S + LAND_S)
    assert (answers[3].queue_s, answers[3].run_s) == (2 * LAUNCH_S + LAND_S, LAND_S)
    assert (answers[1].batch, answers[3].batch) == (2, 1)


@pytest.mark.filterwarnings("ignore")
def test_a_batch_that_fails_harms_neither_its_neighbours_nor_the_other_batch(play: Play):
    _, answers = play([ask(1), ask(13), ask(3), ask(4)])
    assert {id for id, answer in answers.items() if isinstance(answer, Failed)} == {13}
    assert len(answers) == 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("land_s", "first", "then"),
    [(0.01, 20, 16), (0.25, 20, 8), (10.0, 20, 1), (0.01, 13, 1)],
    ids=["quick", "slow", "so slow that it may be taken for one that hangs", "failed, so that nothing is known"],
)
def test_what_a_batch_took_bounds_the_next_one_unless_it_failed(
    play: Play, monkeypatch: pytest.MonkeyPatch, land_s: float, first: int, then: int
):
    monkeypatch.setitem(globals(), "LAUNCH_S", 0.0)
    monkeypatch.setitem(globals(), "LAND_S", land_s)
    _, answers = play([ask(first)], [ask(100 + n) for n in range(16)], depth=1, max_batch=16, stalls=True)
    assert len(answers) == 17
    assert answers[100].batch == then


def test_batches_are_no_larger_than_there_is_memory_for(play: Play, monkeypatch: pytest.MonkeyPatch):
    budgets: list[Any] = []

    class Budget(worker.Budget):
        def took(self, cost: float) -> None:
            self.costs = [*getattr(self, "costs", []), cost]
            budgets[:] = [self]

        def room(self, now: float) -> float:
            return 3.0

    monkeypatch.setattr(worker, "Budget", Budget)
    lane, answers = play([ask(1)], [ask(id) for id in range(2, 10)], depth=1, max_batch=8)
    assert launched(lane) == ["launch 1", "launch 2 3 4", "launch 5 6 7", "launch 8 9"]
    assert all(isinstance(answer, Done) for answer in answers.values())
    assert budgets[0].costs == [1, 3, 3, 2]


def test_what_ran_out_of_memory_is_not_made_again(play: Play, monkeypatch: pytest.MonkeyPatch):
    forward = ImageProgram.forward

    def hungry(self: ImageProgram, networks: Any, batch: Any) -> Any:
        if len(batch["pixels"]) > 2:
            raise MemoryError
        return forward(self, networks, batch)

    monkeypatch.setattr(ImageProgram, "forward", hungry)
    lane, answers = play([ask(1)], [ask(id) for id in range(2, 6)], [ask(id) for id in range(6, 10)], max_batch=8, depth=1)
    assert all(isinstance(answer, Done) for answer in answers.values())
    sizes = [len(line.split()) - 1 for line in launched(lane)]
    assert sizes.count(4) == 1, "once"
    assert max(sizes[sizes.index(4) + 1 :]) <= 2


def test_what_ran_in_pieces_for_want_of_memory_tells_nothing_of_the_whole(play: Play, monkeypatch: pytest.MonkeyPatch):
    forward, costs = ImageProgram.forward, list[float]()

    def hungry(self: ImageProgram, networks: Any, batch: Any) -> Any:
        if len(batch["pixels"]) > 2:
            raise MemoryError
        return forward(self, networks, batch)

    class Budget(worker.Budget):
        def took(self, cost: float) -> None:
            costs.append(cost)

    monkeypatch.setattr(ImageProgram, "forward", hungry)
    monkeypatch.setattr(worker, "Budget", Budget)
    _, answers = play([ask(1)], [ask(id) for id in range(2, 6)], max_batch=8, depth=1)
    assert all(isinstance(answer, Done) for answer in answers.values()) and len(answers) == 5
    assert costs == [1]


def test_a_suspect_has_the_device_for_itself(play: Play):
    lane, _ = play([ask(1), ask(2, alone=True), ask(3, alone=True), ask(4)])
    assert lane.journal == ["launch 1 4", "land 1 4", "launch 2", "land 2", "launch 3", "land 3"]
    assert [len(reading.running) for reading in lane.readings[2:]] == [1, 1, 1, 1]


def test_stop_answers_both_batches_and_what_came_with_it(play: Play):
    lane, answers = play([ask(1), ask(2), ask(3)], [Stop(), ask(4)], [ask(5)])
    assert set(answers) == {1, 2, 3, 4, 5}
    assert lane.journal[:2] == ["launch 1 2", "launch 3 4"]


def test_what_came_during_the_last_batch_is_answered_too(play: Play):
    _, answers = play([Stop(), ask(1)], [ask(2)], depth=1)
    assert set(answers) == {1, 2}


def test_what_was_cancelled_or_is_late_is_not_launched(play: Play):
    lane, answers = play([ask(1), ask(2), ask(3), ask(4, deadline=99.0), Cancel(3)])
    assert lane.journal == ["launch 1 2", "land 1 2"]
    assert set(answers) == {1, 2, 4} and answers[4].code == "deadline"
