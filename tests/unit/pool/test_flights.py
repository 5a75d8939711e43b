"""What a worker's death means for the samples it had, alone and with the batcher under random scripts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from app.engine.batcher import Batcher, Waiting
from app.pool.flights import Flights


def test_samples_that_only_waited_are_not_blamed():
    flights: Flights[str] = Flights()
    runs, waits = flights.open("m", "a"), flights.open("m", "b")
    runs.worker = waits.worker = "w1"
    again, poisoned = flights.died("w1", {runs.id})
    assert [flight.blamed for flight in again] == [1, 0]
    assert not poisoned


def test_two_deaths_isolate_and_two_deaths_alone_convict():
    flights: Flights[str] = Flights()
    flight = flights.open("m", "a")
    for alone in (False, False, True):
        flight.worker = "w"
        assert flight.alone is alone
        assert flights.died("w", {flight.id}) == ([flight], [])
    flight.worker = "w"
    assert flights.died("w", {flight.id}) == ([], [flight])
    assert flights.close(flight.id) is None


def test_kills_from_outside_make_suspect_and_convict_nobody_but_who_is_met_by_all():
    flights: Flights[str] = Flights()
    flight = flights.open("m", "a")
    for _ in range(9):
        flight.worker = "w"
        assert flights.died("w", {flight.id}, killed=True) == ([flight], [])
    assert flight.alone
    flight.worker = "w"
    assert flights.died("w", {flight.id}) == ([flight], []), "the first that it may have been the reason of"
    flight.worker = "w"
    assert flights.died("w", {flight.id}, killed=True) == ([], [flight]), "as what takes all memory is"


def test_what_ends_workers_by_itself_is_convicted_no_later_for_kills_between():
    flights: Flights[str] = Flights()
    flight = flights.open("m", "a")
    for killed in (True, True, False):
        flight.worker = "w"
        assert flights.died("w", {flight.id}, killed=killed) == ([flight], [])
    flight.worker = "w"
    assert flights.died("w", {flight.id}) == ([], [flight])


def test_what_a_worker_stands_still_with_is_alone_at_once_and_the_next_time_poisoned():
    flights: Flights[str] = Flights()
    stuck, neighbour = flights.open("m", "a"), flights.open("m", "b")
    stuck.worker = neighbour.worker = "w1"
    again, poisoned = flights.died("w1", {stuck.id, neighbour.id}, stalled=True)
    assert [flight.alone for flight in again] == [True, True] and not poisoned
    stuck.worker = neighbour.worker = "w2"
    assert flights.died("w2", {stuck.id}, stalled=True) == ([neighbour], [stuck])
    neighbour.worker = "w3"
    assert flights.died("w3", {neighbour.id}) == ([neighbour], []), "a kill from outside"


@pytest.mark.parametrize("worker", ["w1", "w2", None])
def test_what_a_frontend_that_is_gone_had_sent_is_blamed_as_if_it_had_been_sent_here(worker: str | None):
    flights: Flights[str] = Flights()
    flight, other = flights.open("m", "x"), flights.open("m", "y")
    flight.before, flight.worker, other.worker = 77, worker, "w1"
    again, poisoned = flights.died("w1", [77], stalled=True)
    assert flight.alone and not other.blamed and not poisoned
    assert again == ([flight, other] if worker == "w1" else [other]), "nothing is sent twice at the same time"
    assert flight.worker == (worker if worker != "w1" else None)
    assert flights.died("w1", [77], stalled=True)[1] == [flight]
    assert list(flights) == [other]


def test_what_may_have_been_another_sample_of_the_request_makes_suspect_and_convicts_nobody():
    flights: Flights[str] = Flights()
    one, other = flights.open("m", "x"), flights.open("m", "y")
    for flight in (one, other):
        flight.before, flight.blamed, flight.worker = 77, 2, "w1"
    again, poisoned = flights.died("w1", [77], stalled=True, sole=lambda _: False)
    assert again == [one, other] and not poisoned
    one.worker = other.worker = "w2"
    assert flights.died("w2", [one.id], stalled=True, sole=lambda _: False) == ([other], [one]), "that is proof"


def test_only_the_dead_workers_flights_move():
    flights: Flights[str] = Flights()
    here, there = flights.open("m", "a"), flights.open("m", "b")
    here.worker, there.worker = "w1", "w2"
    again, _ = flights.died("w1", set())
    assert again == [here]
    assert there.worker == "w2"


def test_an_answer_counts_once():
    flights: Flights[str] = Flights(first_id=10)
    flight = flights.open("m", "a")
    assert flight.id == 11
    assert flights.close(11) is flight
    assert flights.close(11) is None


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.floats(1, 20), st.sampled_from(["good", "good", "good", "good", "poison"])), min_size=1, max_size=30),
    st.lists(st.sampled_from(["run", "run", "kill", "cancel"]), max_size=60),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_every_caller_gets_its_own_answer(cargo, script, max_batch, random):
    """Frontends, one worker and its replacements: sizes, mixes, cancels, poison and kills at any moment.

    The answer of a sample is its own id: a swapped, lost or doubled answer shows.
    """
    flights: Flights[str] = Flights()
    answers: dict[int, str] = {}
    cancelled: set[int] = set()
    batcher = Batcher(max_batch=max_batch, max_cost=40)
    costs: dict[int, float] = {}
    clock = 0.0

    def send() -> None:
        nonlocal clock
        for flight in flights.aboard(None):
            clock += 1
            flight.worker = "w"
            assert batcher.add(Waiting(flight.id, costs[flight.id], clock, 1e9, flight.alone))

    def die(running: set[int], *, killed: bool = False) -> None:
        nonlocal batcher
        batcher = Batcher(max_batch=max_batch, max_cost=40)
        _, poisoned = flights.died("w", running, killed=killed)
        for flight in poisoned:
            assert flight.id not in answers
            answers[flight.id] = "poisoned"
        send()

    def run() -> None:
        batch = batcher.next_batch()
        if any(kinds[sample.id] == "poison" for sample in batch):
            die({sample.id for sample in batch})
            return
        for sample in batch:
            if flights.close(sample.id):
                assert sample.id not in answers
                answers[sample.id] = f"answer {sample.id}"

    kinds = {}
    for cost, kind in cargo:
        flight = flights.open("m", kind)
        kinds[flight.id], costs[flight.id] = kind, cost
    send()
    kills = 0
    for step in script:
        if step == "run":
            run()
        elif step == "kill" and kills < 9:  # from outside, in the middle of a batch; the tenth would convict
            kills += 1
            die({sample.id for sample in batcher.next_batch()}, killed=True)
        elif step == "cancel":
            id = random.choice(list(kinds))
            if flights.close(id):
                batcher.cancel(id)
                cancelled.add(id)
    for _ in range(1000):
        if not len(flights):
            break
        run()
    assert len(flights) == 0, "nothing accepted is lost"
    for id, kind in kinds.items():
        if id in cancelled:
            assert id not in answers
        else:
            assert answers[id] == ("poisoned" if kind == "poison" else f"answer {id}")
