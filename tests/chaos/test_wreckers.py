"""A test of the tests: what a caller is granted for what was done meanwhile."""

from __future__ import annotations

import pytest

from tests.chaos.wreckers import WEDGES, Wreckers


def wrecked(*log: tuple[float, float, str]) -> Wreckers:
    """As if this had been done."""
    done = Wreckers(nothing=(1.0, lambda: None))
    done._log += log
    return done


def test_standing_still():
    """What hung to its end at 112 although it was sent at 100, and what was stopped at 118 and noticed at most 2.25 s later."""
    done = wrecked((100.0, 112.0, "hangs"), (101.5, 101.5, "worker"), (118.0, 118.0, "stopped_worker"))
    assert done.standing_still(109.7, 112.1) == pytest.approx(2.3)
    assert done.standing_still(95.0, 115.0) == WEDGES["hangs"], "its limits, however long it was under way"
    assert done.standing_still(119.5, 121.0) == pytest.approx(0.75)
    assert done.standing_still(112.5, 117.5) == 0.0
    assert done.within(104.0, 105.0) == ["-4.0 to +8.0 hangs", "-2.5 to -2.5 worker"]


def test_what_stands_still_at_the_same_time_is_waited_for_once():
    done = wrecked((100.0, 100.0, "stopped_worker"), (100.0, 100.0, "stopped_frontend"), (100.0, 105.0, "hangs"))
    assert done.standing_still(100.0, 113.0) == WEDGES["stopped_frontend"], "the longest of them"
    assert done.standing_still(104.0, 113.0) == pytest.approx(1.25)


def test_what_stands_still_one_after_the_other_adds_up():
    """Seen: what hung was tried again by the heir of a stopped frontend, and its worker was stopped twice while it ran."""
    stops = [(102.1, "stopped_frontend"), (107.5, "stopped_worker"), (114.5, "stopped_worker")]
    done = wrecked((100.2, 117.2, "hangs"), *((at, at, name) for at, name in stops))
    assert done.standing_still(100.0, 117.27) == pytest.approx(14.25), "the limits of all four"


def test_recovery_is_counted_from_each_kill_to_the_answers_to_what_was_asked_after_it():
    kills = (99.9, 100.0, "worker"), (103.0, 103.1, "frontend"), (104.0, 104.0, "nursery"), (110.0, 110.0, "worker")
    done = wrecked((100.5, 100.5, "traffic"), (104.2, 104.2, "stopped_worker"), *kills)
    felt = [(99.0, 1.5), (100.5, 1.0), (101.5, 2.0), (103.5, 0.75), (104.25, 3.0)]
    assert done.recovered(felt) == pytest.approx([1.5, 1.1, 1.0]), (
        "less what stood still from 104.2 on; after the last one nobody was looked at"
    )
