"""How long a batch is expected to take: whatever the first ones took, none becomes much longer than it should, or stays small."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from app.engine.batcher import Batcher, Waiting
from app.engine.expected import Expected


def batches(
    fixed_s: float, each_s: float, late_s: Mapping[int, float] | None = None, before: int = 1, size: int = 1
) -> list[tuple[int, float]]:
    """Size and seconds of 200 batches of more than can be taken at once, after some of `size`; a tenth more or less by chance.

    `late_s`: how much longer some take, which is not in their seconds here: they were stopped meanwhile.
    """
    chance, batcher, ids, found = random.Random(1), Batcher(max_batch=64, max_cost=1e9), iter(range(10**6)), []
    for turn in range(200):
        while len(batcher) < (size if turn < before else 100):
            batcher.add(Waiting(next(ids), 1.0, 0.0, 1e9))
        batch = batcher.next_batch()
        seconds = (fixed_s + each_s * len(batch)) * chance.uniform(0.9, 1.1)
        batcher.took(batch, seconds + (late_s or {}).get(turn, 0.0))
        found.append((len(batch), seconds))
    return found


def rate(found: list[tuple[int, float]]) -> float:
    return sum(size for size, _ in found) / sum(seconds for _, seconds in found)


@pytest.mark.parametrize(("turn", "late_s"), [(0, 1.0), (0, 10.0), (30, 3.0), (30, 30.0)])
@pytest.mark.parametrize("each_s", [0.01, 0.03, 0.06])
def test_one_batch_that_was_late_makes_no_other_one_long(each_s: float, turn: int, late_s: float):
    found = batches(0.0, each_s, {turn: late_s})
    assert max(seconds for _, seconds in found) < 1.6, "half a second, and what a line through a stroke of chance allows"
    assert found[-1][0] == pytest.approx(max(8, 0.5 / each_s), rel=0.2)


@pytest.mark.parametrize("slower", [2, 4, 8, 16])
def test_on_a_machine_that_becomes_slower_few_batches_are_long(slower: float):
    """At the worst with those that are so small that most of a batch's time is its samples'."""
    chance, batcher, ids, found = random.Random(1), Batcher(max_batch=256, max_cost=1e9), iter(range(10**6)), []
    for turn in range(160):
        while len(batcher) < 300:
            batcher.add(Waiting(next(ids), 1.0, 0.0, 1e9))
        batch = batcher.next_batch()
        found.append(0.002 * len(batch) * (slower if turn >= 80 else 1) * chance.uniform(0.9, 1.1))
        batcher.took(batch, found[-1])
    assert sum(seconds > 0.9 for seconds in found[80:]) <= 6
    assert max(found) < 0.5 * slower * 1.3
    assert found[-1] == pytest.approx(0.5, rel=0.3)


def test_on_a_machine_that_becomes_slower_or_faster_batches_follow():
    expected = Expected()
    for each_s in (0.006, 0.024, 0.006):
        for _ in range(60):
            expected.took(cost := min(64.0, max(8.0, expected.bound())), each_s * cost)
        assert expected.bound() == pytest.approx(0.5 / each_s, rel=0.2)


@pytest.mark.parametrize(("fixed_s", "each_s"), [(0.45, 0.001), (0.4, 0.0025), (0.2, 0.02), (0.1, 0.02), (0.0, 0.02)])
@pytest.mark.parametrize(("before", "size"), [(1, 1), (40, 8), (40, 16)], ids=["first", "after lists of 8", "after lists of 16"])
def test_what_every_batch_costs_is_found_out_whatever_came_before(fixed_s: float, each_s: float, before: int, size: int):
    found = batches(fixed_s, each_s, before=before, size=size)
    assert rate(found[-60:]) > 0.75 * 64 / (fixed_s + each_s * 64), "of what full batches would give"
    assert max(seconds for _, seconds in found) < 2.2


def test_what_an_empty_batch_takes_is_bounded_too():
    expected = Expected()
    for _ in range(20):
        for cost in (8.0, 32.0):
            expected.took(cost, 1.5 + 0.05 * cost)
    assert expected.bound() == pytest.approx(10, rel=0.1), "two seconds at most"


def test_nothing_is_known_at_first_nor_by_what_costs_nothing():
    """Then a batch has as few as can be."""
    expected = Expected()
    expected.took(0.0, 1.0)
    expected.took(1.0, 0.0)
    assert expected.bound() == 0
