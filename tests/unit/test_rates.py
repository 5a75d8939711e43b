"""A bucket gives what its rate says, no more, and tells truly when there is more."""

from __future__ import annotations

import pytest

from app.rates import Bucket, Buckets, Rate


@pytest.mark.parametrize(
    ("text", "rate"), [("10/s", Rate(10, 1, 10)), ("600/min", Rate(600, 60, 600)), ("5/h", Rate(5, 3600, 5))]
)
def test_a_rate_is_read(text: str, rate: Rate):
    assert Rate.parse(text) == rate


@pytest.mark.parametrize("text", ["10", "0/s", "-1/s", "1/day", "1.5/s", "10/s ", "9999999999/s"])
def test_what_is_none_is_refused(text: str):
    with pytest.raises(ValueError, match="write it as"):
        Rate.parse(text)


def test_the_burst_comes_at_once_and_the_next_when_it_was_said():
    bucket = Bucket(Rate.parse("10/s", 3), 1, now=100.0)
    assert [bucket.take(100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    wait_s = bucket.take(100.0)
    assert wait_s == pytest.approx(0.1) and bucket.left() == (0, pytest.approx(0.1))
    assert bucket.take(100.0 + wait_s - 0.001) > 0
    assert bucket.take(100.0 + wait_s + 1e-6) == 0.0


def test_over_a_long_time_it_is_the_rate_however_eagerly_one_asks():
    bucket = Bucket(Rate.parse("600/min", 1), 1, now=0.0)
    taken = sum(bucket.take(step / 1000) == 0.0 for step in range(100_000))
    assert taken == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize(
    ("rate", "parts", "part"),
    [("10/s", 1, (10, 1)), ("4/h", 2, (2, 3600)), ("1/h", 2, (1, 7200)), ("5/h", 2, (2, 2880)), ("10/s", 3, (3, 1))],
)
def test_a_part_is_told_in_whole_numbers_and_never_as_more(rate: str, parts: int, part: tuple[int, int]):
    assert Rate.parse(rate).part(parts) == part


def test_several_processes_hold_a_part_each():
    parts = [Bucket(Rate.parse("8/s"), 4, now=0.0) for _ in range(4)]
    at_once = sum(part.take(0.0) == 0.0 for part in parts for _ in range(10))
    later = sum(part.take(0.5) == 0.0 for part in parts for _ in range(10))
    assert (at_once, later) == (8, 4)


def test_whoever_asks_memory_stays():
    buckets = Buckets(Rate.parse("1/s"), 1, most=100)
    for number in range(1000):
        buckets.of(f"10.0.{number // 256}.{number % 256}", 0.0).take(0.0)
    assert len(buckets) == 100
    assert buckets.of("10.0.3.231", 0.0).take(0.0) > 0, "the newest are remembered"
    assert buckets.of("10.0.0.0", 0.0).take(0.0) == 0.0
