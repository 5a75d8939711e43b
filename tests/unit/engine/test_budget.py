"""What batches may cost for the memory that there is, with a lane of paper."""

from __future__ import annotations

import errno
import math
import mmap

import pytest

from app.engine import device
from app.engine.budget import Budget
from app.engine.lane import Lane

MB = 1 << 20


class Paper(Lane):
    """A device that keeps what it was asked for, as an allocator does."""

    def __init__(self, whole: int, module: int, each: int) -> None:
        self.whole, self.module, self.each, self.kept = whole, module, each, 0

    def run(self, cost: float) -> None:
        self.kept = max(self.kept, int(cost * self.each))

    def held(self) -> int:
        return self.module + self.kept

    def watch(self) -> bool:
        return False

    def free(self) -> int:
        return self.whole - self.held()


def test_nothing_is_known_before_the_first_batch():
    assert Budget(Paper(1000 * MB, 100 * MB, MB)).room(0) == math.inf


def test_what_takes_no_memory_has_no_bound():
    lane = Paper(1000 * MB, 100 * MB, 0)
    budget = Budget(lane)
    budget.took(8)
    assert budget.room(0) == math.inf


def test_a_batch_is_bound_by_half_of_what_is_free_and_by_what_is_kept_for_it():
    lane = Paper(1000 * MB, 100 * MB, MB)
    budget = Budget(lane)
    lane.run(100)
    budget.took(100)
    assert budget.room(0) == pytest.approx(100 + (1000 - 200) / 2)


def test_batches_grow_to_what_there_is_and_never_beyond():
    lane = Paper(1000 * MB, 100 * MB, MB)
    budget, cost, now = Budget(lane), 1.0, 0.0
    for _ in range(30):
        lane.run(cost)
        assert lane.free() >= 0
        budget.took(cost)
        cost, now = min(budget.room(now), 1e6), now + 1
    assert cost == pytest.approx(900, rel=0.01)


def test_smaller_batches_and_what_was_given_back_meanwhile_change_nothing():
    lane = Paper(1000 * MB, 100 * MB, MB)
    budget = Budget(lane)
    lane.run(100)
    budget.took(100)
    budget.took(1)
    lane.kept = 0  # idle for a while
    assert budget.room(0) == pytest.approx((1000 - 100) / 2)


def test_when_others_take_the_memory_batches_become_smaller():
    lane = Paper(1000 * MB, 100 * MB, MB)
    budget = Budget(lane)
    lane.run(100)
    budget.took(100)
    lane.kept, lane.whole = 0, 140 * MB
    assert budget.room(0) == pytest.approx(20), "another worker may just now do the same"
    lane.whole = 1000 * MB
    assert budget.room(0.1) == pytest.approx(20), "the kernel is asked a few times a second"
    assert budget.room(1) == pytest.approx(450)


def test_what_is_free_before_the_first_batch_and_given_back_later_is_no_batchs():
    lane = Paper(1000 * MB, 100 * MB, MB)
    lane.kept = 300 * MB  # of what computed before
    budget = Budget(lane)
    lane.run(100)
    budget.took(100)
    assert budget.room(0) == math.inf, "it went into what was free"
    lane.kept = 0
    assert budget.room(1) == math.inf
    lane.run(200)
    budget.took(200)
    assert budget.room(2) == pytest.approx(200 + (1000 - 300) / 2)


def test_what_is_taken_once_does_not_make_batches_of_one_for_ever():
    lane = Paper(350 * MB, 0, 0)

    def run(cost: float) -> None:
        lane.kept = max(lane.kept, int((150 + 4 * cost) * MB))

    budget, cost = Budget(lane), 1.0
    for now in range(30):
        run(int(cost))
        assert lane.free() >= 0
        budget.took(int(cost))
        cost = min(budget.room(now), 64)
    assert cost > 40


class Generous(Paper):
    """It gives back at once what a batch took, as malloc does with what is large; and knows how much it was."""

    most = 0

    def run(self, cost: float) -> None:
        self.most = self.held() + int(cost * self.each)

    def watch(self) -> bool:
        self.most = self.held()
        return True

    def peak(self) -> int:
        return self.most


def ran(budget: Budget, lane: Paper, cost: float) -> None:
    budget.begins(cost)
    lane.run(cost)
    budget.took(cost)


def test_what_a_batch_took_and_gave_back_at_once_counts():
    lane = Generous(1000 * MB, 100 * MB, MB)
    budget = Budget(lane)
    ran(budget, lane, 100)
    assert budget.room(0) == pytest.approx((1000 - 100) / 2)


def test_where_only_what_is_kept_can_be_seen_a_dearer_batch_never_takes_less():
    lane = Paper(1000 * MB, 100 * MB, MB)
    budget = Budget(lane)
    ran(budget, lane, 100)
    lane.kept = 0
    budget.took(200)  # it took 200 MB, all of it given back
    assert budget.room(0) == pytest.approx((1000 - 100) / 2)


def test_inputs_that_wait_are_no_memory_that_batches_may_have():
    lane, inputs = Paper(2000 * MB, 100 * MB, 5 * MB), [0]
    budget = Budget(lane, lambda: inputs[0])
    ran(budget, lane, 64)
    lane.kept, inputs[0] = 900 * MB, 900 * MB  # idle for a while, then a burst
    lane.whole = 1100 * MB
    assert budget.room(0) == pytest.approx(64 * 50 / 320)


def test_two_workers_that_were_idle_do_not_both_take_all_that_is_free():
    lane = Paper(1000 * MB, 100 * MB, 5 * MB)
    budget = Budget(lane)
    ran(budget, lane, 64)
    lane.kept, lane.whole = 0, 500 * MB
    assert budget.room(0) == pytest.approx(40)


def test_what_the_first_batch_found_free_in_the_heap_it_took_all_the_same():
    lane = Paper(1000 * MB, 300 * MB, MB)
    budget = Budget(lane)
    lane.kept = 10 * MB
    budget.took(100)  # 90 MB of it lay in what had been free
    lane.kept = -90 * MB
    assert budget.room(0) == pytest.approx((1000 - 210) / 2)


@pytest.mark.parametrize("lines", ["VmSize:\t4 kB\nVmRSS:\t3 kB\n", ""], ids=["gVisor, and kernels before 4.5", "no proc"])
def test_where_the_kernel_tells_less_that_is_enough(monkeypatch: pytest.MonkeyPatch, lines: str):
    status = {name.rstrip(":"): int(size) << 10 for name, size, _ in map(str.split, lines.splitlines())}
    monkeypatch.setattr(device, "_status", lambda: status)
    assert not device.watch_peak()
    assert device.held_bytes() > 1 << 20
    budget = Budget(Lane())
    budget.begins(1)
    budget.took(1)
    assert budget.room(0) > 0


def test_a_worker_without_a_descriptor_goes_on_with_what_it_knows(monkeypatch: pytest.MonkeyPatch):
    lane = Paper(1000 * MB, 100 * MB, MB)
    budget = Budget(lane)
    ran(budget, lane, 100)
    room = budget.room(0)

    def none_left() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    for name in ("held", "free", "peak"):
        monkeypatch.setattr(lane, name, none_left)
    budget.took(200)
    assert budget.room(9) == room < math.inf
    later = Budget(lane)
    later.begins(8)
    later.took(8)
    assert later.room(9) == math.inf
    monkeypatch.undo()
    ran(later, lane, 200)
    assert later.room(99) < math.inf


def test_a_process_knows_the_most_that_it_held():
    assert device.watch_peak()
    before = device.held_bytes()
    with mmap.mmap(-1, 256 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ballast:
        for page in range(0, len(ballast), mmap.PAGESIZE):
            ballast[page] = 1
    assert device.held_bytes() - before < 100 * MB
    assert 200 * MB < device.peak_bytes() - before < 300 * MB
    assert device.watch_peak()
    assert device.peak_bytes() - before < 100 * MB


def test_a_process_knows_what_it_holds_and_what_it_may_take():
    with mmap.mmap(-1, 256 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ballast:
        before = device.held_bytes()
        for page in range(0, len(ballast), mmap.PAGESIZE):
            ballast[page] = 1
        assert 200 * MB < device.held_bytes() - before < 300 * MB
        assert 0 < device.free_bytes() <= device.memory_bytes()
