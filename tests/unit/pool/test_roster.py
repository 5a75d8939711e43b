"""Which workers follow from which events."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.card import Card
from app.engine.placement import place
from app.pool.roster import Birth, Roster, Served


def card(replicas: int = 1) -> Card:
    return Card(
        name="m",
        folder=Path("/nowhere"),
        task="text-embedding",
        source={"kind": "file"},
        serving={"replicas": replicas},
        about={"licence": "x"},
    )


def died(roster: Roster, birth: Birth, reason: str = "SIGKILL", now: float = 0.0) -> Birth | None:
    """Its process ended, and there was one."""
    roster.forked(birth.name, 42)
    return roster.died(birth.name, reason, now)


@pytest.fixture
def roster() -> Roster:
    return Roster({"m": Served(card(), default=True, preload=True)}, ["cpu"])


def test_a_wanted_model_loads_then_is_ready(roster: Roster):
    (birth,) = roster.want("m", {})
    assert roster.models["m"].state == "loading"
    roster.forked(birth.name, 42)
    assert roster.ready(birth.name, {"dimensions": 3})
    entry = roster.table(1, {}).models["m"]
    assert (entry.state, entry.workers[0].pid, entry.meta) == ("ready", 42, {"dimensions": 3})


def test_a_dead_worker_is_replaced_under_a_new_name(roster: Roster):
    (birth,) = roster.want("m", {})
    roster.ready(birth.name, {"a": 1})
    again = died(roster, birth, "SIGKILL")
    assert again is not None
    assert again.name != birth.name
    assert roster.models["m"].state == "loading"
    assert roster.models["m"].meta, "what is known of the module stays: samples wait for the replacement"
    assert not roster.ready(birth.name, {}), "words from the dead do not count"


def test_a_ready_worker_may_die_any_number_of_times(roster: Roster):
    (birth,) = roster.want("m", {})
    for restarts in range(1, 20):
        roster.ready(birth.name, {})
        birth = died(roster, birth, "SIGKILL")
        assert birth is not None
        assert roster.models["m"].slots[0].restarts == restarts


def test_three_deaths_while_loading_are_a_failure(roster: Roster):
    (birth,) = roster.want("m", {})
    for _ in range(2):
        birth = died(roster, birth, "SIGSEGV")
    assert died(roster, birth, "SIGSEGV") is None
    assert roster.models["m"].state == "failed"
    assert "3 times" in roster.models["m"].why


def test_the_other_workers_of_what_failed_are_there_to_be_ended(roster: Roster):
    """One that hangs while it loads was forgotten, and its process stayed."""
    roster.models["m"].card = card(2)
    one, other = roster.want("m", {})
    for _ in range(2):
        one = died(roster, one, "SIGSEGV")
    assert died(roster, one, "SIGSEGV") is None
    assert roster.models["m"].state == "failed"
    assert roster.unwant("m", "x") == [other.name]


def test_who_was_ready_once_is_tried_again_and_again_ever_later(roster: Roster):
    (birth,) = roster.want("m", {})
    roster.ready(birth.name, {"dimensions": 3})
    pauses, reasons = [], []
    for _ in range(11):
        birth = died(roster, birth, "SIGKILL", 100 + sum(pauses))
        assert birth is not None and roster.models["m"].state == "loading"
        pauses.append(birth.after_s)
        reasons.append(roster.models["m"].why)
    assert pauses == [0, 0, 0, 0.25, 0.5, 1, 2, 4, 8, 10, 10]
    assert not any(reasons[:6]) and all("tried again" in why for why in reasons[6:])
    assert sum(pauses[:6]) < 3, "who asks meanwhile waits, for as long as a recovery may take"
    roster.ready(birth.name, {"dimensions": 3})
    assert not roster.models["m"].why
    assert died(roster, birth, "SIGKILL").after_s == 0


def test_callers_hear_of_the_third_failure_where_each_takes_long(roster: Roster):
    (birth,) = roster.want("m", {})
    roster.ready(birth.name, {"dimensions": 3})
    birth, told = died(roster, birth, now=100), []
    for now in (110, 120, 130):
        birth = died(roster, birth, "exit status 0", now)
        told.append(roster.models["m"].in_doubt)
    assert told == [False, False, True]
    roster.ready(birth.name, {"dimensions": 3})
    for now in (200, 200.1, 200.2, 200.3, 201.5):
        birth = died(roster, birth, "exit status 0", now)
    assert not roster.models["m"].in_doubt, "the first failure is another one since"


def test_why_a_worker_could_not_load_is_told_of_that_one_alone(roster: Roster):
    (birth,) = roster.want("m", {})
    roster.ready(birth.name, {"dimensions": 3})
    for now in range(6):
        birth = died(roster, birth, "SIGKILL", now)
    _, slot = roster.find(birth.name)
    slot.why = "CUDA out of memory"
    birth = died(roster, birth, "exit status 1", 6)
    assert roster.models["m"].why == "CUDA out of memory; it is tried again"
    died(roster, birth, "SIGKILL", 7)
    assert roster.models["m"].why.startswith("its worker died")


@pytest.mark.parametrize("was_ready", [True, False])
def test_what_no_process_can_be_forked_for_is_tried_for_ever_and_never_at_once(roster: Roster, was_ready: bool):
    (birth,) = roster.want("m", {})
    roster.forked(birth.name, 42)
    if was_ready:
        roster.ready(birth.name, {"dimensions": 3})
    birth, pauses = roster.died(birth.name, "SIGKILL", 0), []
    for now in range(3000):
        birth = roster.died(birth.name, "exit status 1", now)
        assert birth is not None
        pauses.append(birth.after_s)
    assert min(pauses) == 0.25 and pauses[-1] == 10
    assert roster.models["m"].in_doubt and "no process could be started 3000 times" in roster.models["m"].why
    roster.forked(birth.name, 43)
    assert roster.ready(birth.name, {"dimensions": 3}) and not roster.models["m"].in_doubt


def test_a_model_is_in_doubt_when_all_its_replicas_are(roster: Roster):
    roster.models["m"].card = card(2)
    one, other = roster.want("m", {})
    for birth in (one, other):
        roster.ready(birth.name, {"dimensions": 3})
    for now in range(7):
        one = died(roster, one, "SIGKILL", now)
    assert roster.models["m"].state == "ready" and not roster.models["m"].why
    other = died(roster, other, "SIGKILL", 7)
    assert roster.models["m"].state == "loading" and not roster.models["m"].why, "it may be there again at once"
    for now in range(8, 14):
        other = died(roster, other, "SIGKILL", now)
    assert "6 times" in roster.models["m"].why
    roster.ready(one.name, {"dimensions": 3})
    assert not roster.models["m"].why
    for now in range(14, 16):
        other = died(roster, other, "SIGKILL", now)
    died(roster, one, "SIGKILL", 16)
    assert roster.models["m"].state == "loading" and not roster.models["m"].why, "the same"


def test_an_unwanted_worker_is_not_replaced(roster: Roster):
    (birth,) = roster.want("m", {})
    roster.ready(birth.name, {})
    assert roster.unwant("m") == [birth.name]
    assert died(roster, birth, "exit status 0") is None
    assert roster.models["m"].state == "unloaded"


def test_replicas_take_the_emptiest_devices():
    assert place(3, ["cuda:0", "cuda:1"], ["cuda:0"]) == ["cuda:1", "cuda:0", "cuda:1"]
    assert place(2, ["cpu"], ["cpu", "cuda:7"]) == ["cpu", "cpu"]


def test_a_name_is_never_given_twice_though_the_model_was_removed_and_is_back(roster: Roster):
    (birth,) = roster.want("m", {})
    del roster.models["m"]
    roster.models["m"] = Served(card(), default=True, preload=True)
    (again,) = roster.want("m", {})
    assert again.name != birth.name, "a timer that ends the first one would end the second"
