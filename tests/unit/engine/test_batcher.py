"""The batching rule, as examples and as properties."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from app.engine.batcher import Batcher, Waiting, yields_s


def waiting(
    id: int, cost: float = 1.0, arrived: float = 0.0, deadline: float = 1e9, alone: bool = False, yields_s: float = 0.0
) -> Waiting:
    return Waiting(id, cost, arrived, deadline, alone, yields_s)


def ids(batch: list[Waiting]) -> set[int]:
    return {sample.id for sample in batch}


def test_an_idle_device_takes_what_waits_at_once():
    batcher = Batcher(max_batch=8, max_cost=100)
    batcher.add(waiting(1, arrived=5.0))
    assert batcher.wait_s(5.0) == 0.0
    assert ids(batcher.next_batch()) == {1}
    assert batcher.wait_s(5.0) is None


def test_a_lone_sample_waits_no_longer_than_the_card_allows():
    batcher = Batcher(max_batch=2, max_cost=100, max_wait_s=0.5)
    batcher.add(waiting(1, arrived=10.0))
    assert batcher.wait_s(10.25) == 0.25
    batcher.add(waiting(2, arrived=10.2))
    assert batcher.wait_s(10.2) == 0.0


def test_the_oldest_goes_with_its_nearest_in_cost():
    batcher = Batcher(max_batch=3, max_cost=1000)
    for id, cost in enumerate([10, 100, 11, 90, 12]):
        batcher.add(waiting(id, cost))
    assert ids(batcher.next_batch()) == {0, 2, 4}
    assert ids(batcher.next_batch()) == {1, 3}


def test_cost_counts_padding():
    batcher = Batcher(max_batch=10, max_cost=100)
    for id, cost in enumerate([10, 40, 30]):
        batcher.add(waiting(id, cost))
    assert ids(batcher.next_batch()) == {0, 2}  # 2 x 30; with the third it would be 3 x 40 = 120


def test_without_padding_a_batch_costs_what_it_holds_and_goes_by_age():
    batcher = Batcher(max_batch=10, max_cost=100, padded=False)
    for id, cost in enumerate([10, 40, 60, 30, 20]):
        batcher.add(waiting(id, cost))
    assert ids(batcher.next_batch()) == {0, 1, 3, 4}  # 60 more would be 110: it is the oldest of the next batch
    assert ids(batcher.next_batch()) == {2}


@pytest.mark.parametrize("padded", [False, True])
def test_a_batch_ends_soon_so_that_nobody_who_comes_waits_long(padded: bool):
    batcher = Batcher(max_batch=64, max_cost=1000, padded=padded)
    assert len(_of_64(batcher)) == 8, "how long it takes nobody knows"
    batcher.took([waiting(id, 2.0) for id in range(64)], 2.0)
    assert len(_of_64(batcher)) == 16
    for _ in range(40):
        batcher.took(_of_64(batcher), 0.01)
    assert len(_of_64(batcher)) == 64, "it is fast now, and a slow start is forgotten"


def test_eight_are_a_batch_however_long_they_take():
    batcher = Batcher(max_batch=64, max_cost=1000)
    batcher.took([waiting(1, 2.0)], 3.0)
    assert len(_of_64(batcher)) == 8
    narrow = Batcher(max_batch=64, max_cost=10)
    narrow.took([waiting(1, 2.0)], 3.0)
    assert len(_of_64(narrow)) == 5


def test_no_batch_of_several_takes_long_as_far_as_that_is_known_and_that_is_found_out():
    batcher, ids = Batcher(max_batch=64, max_cost=1000, padded=False, longest_s=2.5), iter(range(10_000))

    def sizes(turns: int, fixed_s: float, each_s: float) -> list[int]:
        found = []
        for _ in range(turns):
            while len(batcher) < 100:
                batcher.add(waiting(next(ids), 2.0))
            batch = batcher.next_batch()
            batcher.took(batch, fixed_s + each_s * len(batch))
            found.append(len(batch))
        return found

    batcher.took([waiting(next(ids), 2.0)], 1.4)
    first = sizes(40, 1.38, 0.015)
    assert first[:16] == [1] * 16
    assert 1 < first[16] <= 4, "not for longer than twice that"
    assert min(first[17:]) >= 8, "eight take hardly longer than one"
    assert sizes(40, 0.0, 1.4)[-1] == 1


def _of_64(batcher: Batcher) -> list[Waiting]:
    """The first batch of 64 samples, each of the cost 2."""
    for id in range(64):
        batcher.add(waiting(id, 2.0))
    batch = batcher.next_batch()
    while batcher.next_batch():
        pass
    return batch


def test_a_request_of_many_samples_lets_those_go_first_that_come_while_it_waits():
    batcher = Batcher(max_batch=4, max_cost=1000)
    for before in range(12):
        batcher.add(waiting(before, arrived=0.0, deadline=30.0, yields_s=yields_s(before, 4, 30.0)))
    assert ids(batcher.next_batch()) == {0, 1, 2, 3}
    batcher.add(waiting(100, cost=5.0, arrived=1.0))
    assert 100 in ids(batcher.next_batch()), "others of its length may fill the batch, but it is the oldest"
    batcher.add(waiting(101, arrived=3.8))
    assert ids(batcher.next_batch()) == {7, 8, 9, 10}, "not for longer than an eighth of its time: 3.75 s"


def test_what_a_sample_yields_is_bounded_by_its_own_time():
    assert [yields_s(before, 4, 2.0) for before in (0, 1, 4, 400)] == [0.0, 0.0625, 0.25, 0.25]


def test_after_too_much_for_the_memory_batches_stay_below_half_of_it():
    batcher = Batcher(max_batch=10, max_cost=100, padded=False)
    batcher.too_much(80.0)
    for id in range(6):
        batcher.add(waiting(id, 15.0))
    batcher.add(waiting(9, 90.0))
    assert ids(batcher.next_batch()) == {0, 1}
    assert ids(batcher.next_batch()) == {2, 3}
    assert ids(batcher.next_batch()) == {4, 5}
    assert ids(batcher.next_batch()) == {9}, "alone it is still tried"


def test_batches_are_held_to_what_there_is_memory_for_now():
    batcher = Batcher(max_batch=10, max_cost=100)
    for id in range(6):
        batcher.add(waiting(id, 10.0))
    batcher.hold_to(25.0)
    assert ids(batcher.next_batch()) == {0, 1}
    batcher.hold_to(5.0)
    assert ids(batcher.next_batch()) == {2}, "alone it is still tried"
    batcher.hold_to(math.inf)
    assert ids(batcher.next_batch()) == {3, 4, 5}


def test_age_beats_fit():
    batcher = Batcher(max_batch=2, max_cost=1000)
    batcher.add(waiting(0, 500))
    for id in range(1, 9):
        batcher.add(waiting(id, 1))
    assert 0 in ids(batcher.next_batch())


def test_a_suspect_runs_alone():
    batcher = Batcher(max_batch=8, max_cost=100)
    batcher.add(waiting(1))
    batcher.add(waiting(2, alone=True))
    batcher.add(waiting(3))
    assert ids(batcher.next_batch()) == {1, 3}
    assert ids(batcher.next_batch()) == {2}


def test_a_sample_dearer_than_any_batch_is_refused():
    assert not Batcher(max_batch=8, max_cost=10).add(waiting(1, cost=10.5))


commands = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.floats(0.1, 60), st.floats(0.01, 30), st.booleans()),
        st.tuples(st.just("run")),
        st.tuples(st.just("cancel"), st.integers(0, 60)),
        st.tuples(st.just("expire")),
    ),
    max_size=80,
)


@given(commands, st.integers(1, 9), st.floats(1, 200), st.booleans())
def test_every_accepted_sample_comes_out_exactly_once(script, max_batch, max_cost, padded):
    batcher = Batcher(max_batch=max_batch, max_cost=max_cost, padded=padded)
    accepted: dict[int, Waiting] = {}
    out: list[int] = []
    now = 0.0

    def run() -> None:
        oldest = min((s for s in accepted.values() if s.id not in out), key=lambda s: s.arrived, default=None)
        batch = batcher.next_batch()
        assert bool(batch) == (oldest is not None)
        if batch:
            assert oldest.id in ids(batch), "age beats fit"
            assert len(batch) <= max_batch
            cost = len(batch) * max(s.cost for s in batch) if padded else sum(s.cost for s in batch)
            assert cost <= max_cost * (1 + 1e-9)
            assert len(batch) == 1 or not any(s.alone for s in batch)
        out.extend(s.id for s in batch)

    for step, (verb, *words) in enumerate(script):
        now += 0.1
        if verb == "add":
            cost, life, alone = words
            sample = waiting(step, cost, arrived=now, deadline=now + life, alone=alone)
            assert batcher.add(sample) == (cost <= max_cost)
            if cost <= max_cost:
                accepted[step] = sample
        elif verb == "run":
            run()
        elif verb == "cancel" and words[0] in accepted:
            assert batcher.cancel(words[0]) == (words[0] not in out)
            if words[0] not in out:
                out.append(words[0])
        elif verb == "expire":
            late = batcher.expire(now)
            assert all(s.deadline <= now for s in late)
            out.extend(s.id for s in late)
            assert all(s.deadline > now for s in accepted.values() if s.id not in out)
    while len(batcher):
        run()
    assert sorted(out) == sorted(accepted)
