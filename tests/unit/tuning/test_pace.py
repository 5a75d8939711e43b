"""Samples a second and time left, by a clock of paper."""

from __future__ import annotations

import pytest

from app.tuning.pace import Costs, Pace


def test_measuring_is_no_training_but_takes_time():
    pace = Pace(100.0)
    for _ in range(4):
        pace.trained(samples=64, work=2)
    pace.measured(6.0)
    assert pace.samples_per_s(110.0) == 64.0, "256 samples in the four seconds that were not spent on measuring"
    assert pace.seconds_left(110.0, work=16, measurements=2) == 8.0 + 12.0


def test_at_first_nothing_is_known_of_measurements():
    pace = Pace(0.0)
    pace.trained(samples=8, work=1)
    assert pace.seconds_left(0.5, work=10, measurements=3) == pytest.approx(5.0)
    assert Pace(1.0).samples_per_s(1.0) == 0


def test_what_is_left_is_dearer_where_batches_are():
    costs = Costs(lambda epoch: [1.0, 1.0, 2.0][epoch], epochs=3, batches=5)
    assert costs.of(0, 4) == 4.0 and costs.of(2, 4) == 8.0 and costs.of(3, 0) == 0.0
    assert [costs.left(0, 0), costs.left(0, 2), costs.left(2, 0), costs.left(2, 4), costs.left(3, 0)] == [
        20.0,
        18.0,
        10.0,
        2.0,
        0.0,
    ]
