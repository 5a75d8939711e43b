"""Refused early, with a time that is true."""

from __future__ import annotations

from contextlib import suppress
from datetime import date

import pytest

from app.errors import RateLimited, TooBusy, TooLarge
from app.keys import Key
from app.pool.admission import Admission, Place
from tests.unit.pool.flood import Flood


def queue(held: int, pace_s: float = 0.1) -> Admission:
    admission = Admission("toy", held=held)
    admission.answered(pace_s, 8)
    return admission


def refused(
    admission: Admission, inputs: int = 1, *, room: int = 100, allowed_s: float = 30.0, workers: float = 1.0, now: float = 0.0
) -> TooBusy:
    with pytest.raises(TooBusy) as caught:
        admission.check(inputs, room=room, allowed_s=allowed_s, workers=workers, now=now)
    return caught.value


def test_whoever_finds_nobody_before_him_enters():
    queue(0, pace_s=9.0).check(500, room=100, allowed_s=0.1, workers=1.0, now=0.0)


def test_a_full_queue_refuses_and_tells_when_there_is_room_though_others_come():
    error = refused(queue(100), inputs=21)
    assert "100 inputs wait and the queue holds 100" in error.detail
    assert error.retry_after_s == pytest.approx(2.1 + 2.0)
    queue(79).check(21, room=100, allowed_s=30.0, workers=1.0, now=0.0)


def test_what_would_be_late_is_refused_and_told_when_it_would_not():
    error = refused(queue(59), allowed_s=5.0)  # 60 x 0.1 s = 6 s against 0.6 x 5 s
    assert error.retry_after_s == pytest.approx(6.0 - 3.0 + 2.0)
    served = round((6.0 - 3.0) / 0.1)
    queue(59 - served).check(1, room=100, allowed_s=5.0, workers=1.0, now=0.0)


def test_nobody_is_told_to_wait_for_longer_than_the_queue_takes():
    assert refused(queue(59), allowed_s=2.0).retry_after_s == pytest.approx(5.9)


def test_each_of_many_that_are_refused_is_told_a_time_of_its_own():
    full = queue(120)
    told = [refused(full, inputs=4, now=1000.0).retry_after_s for _ in range(5)]
    assert told == pytest.approx([4.4, 4.8, 5.2, 5.6, 6.0]), "when the one before it is answered: 4 x 0.1 s later"
    assert refused(full, inputs=4, now=1001.4).retry_after_s == pytest.approx(5.0), "1.4 s later, what was promised stays so"


def test_what_was_promised_to_callers_who_did_not_come_is_forgotten_with_the_queue():
    full = queue(120)
    for _ in range(10):
        refused(full, inputs=10)
    full.held = 0
    full.check(1, room=100, allowed_s=30.0, workers=1.0, now=0.0)
    full.held = 120
    assert refused(full, inputs=10).retry_after_s == pytest.approx(5.0)


def test_one_caller_who_asks_over_and_over_does_not_send_the_others_far_away():
    full = queue(100, pace_s=0.01)
    for _ in range(1000):
        refused(full)
    assert refused(full).retry_after_s == pytest.approx(4.0), "four times what the queue takes"
    long = queue(100, pace_s=9.0)
    assert max(refused(long).retry_after_s or 0 for _ in range(50)) == pytest.approx(60.0)


def test_a_request_larger_than_the_queue_enters_when_it_is_half_empty():
    queue(50).check(256, room=100, allowed_s=3600.0, workers=1.0, now=0.0)
    refused(queue(51), inputs=256, allowed_s=3600.0)


def test_the_windows_of_a_long_recording_count():
    recording = queue(1)
    recording.sent = 90
    refused(recording, allowed_s=5.0)


def test_one_slow_batch_is_soon_forgotten():
    admission = Admission("toy")
    admission.answered(5.0, 1)
    for _ in range(10):
        admission.answered(0.1, 1)
    assert admission.pace_s < 0.3


def test_two_workers_answer_twice_as_fast():
    queue(59).check(1, room=100, allowed_s=5.0, workers=2.0, now=0.0)
    refused(queue(59), allowed_s=5.0, workers=1.0)


def test_the_pace_follows_what_batches_take():
    admission = Admission("toy")
    admission.answered(0.1, 8)
    assert admission.pace_s == pytest.approx(0.1)
    for _ in range(16 * 20):
        admission.answered(0.05, 16)
    assert admission.pace_s == pytest.approx(0.05, rel=0.01)


def test_a_batch_of_one_says_less_of_the_pace_than_a_large_one():
    admission = Admission("toy")
    for _ in range(50):
        for batch, took_s in ((31, 0.155), (1, 0.005)):
            for _ in range(batch):
                admission.answered(took_s / batch, batch)
    assert admission.pace_s == pytest.approx(0.16 / 32)
    for _ in range(50):
        for batch, took_s in ((31, 0.031), (1, 0.003)):
            for _ in range(batch):
                admission.answered(took_s / batch, batch)
    assert admission.pace_s == pytest.approx(0.034 / 32, rel=0.05)


def test_what_a_batch_frees_is_given_out_one_by_one_while_places_are_promised():
    full = queue(60)
    refused(full, allowed_s=10.0, now=100.0)  # 0.6 x 10 s is the time of 60; what is answered until 102.2 is promised
    _answer(full, 20)
    assert "40 inputs wait" in refused(full, allowed_s=10.0, now=100.0).detail
    assert "and 20 places more are kept for those who were told to come" in refused(full, allowed_s=10.0, now=100.0).detail
    assert _entered(full, now=100.84) == 10, "1.25 x what is worked off in that time"
    assert _entered(full, now=101.64) == 10
    _answer(full, 20)
    assert _entered(full, now=1000.0) == 20, "nobody is promised anything any more"


def test_half_a_queue_is_given_out_at_once_so_that_the_next_batch_is_large():
    full = queue(60)
    refused(full, allowed_s=10.0, now=100.0)
    _answer(full, 50)
    assert _entered(full, now=100.0) == 20


def test_nothing_is_kept_from_callers_where_nobody_was_refused():
    half = queue(60)
    _answer(half, 40)
    assert _entered(half, now=100.0) == 40


def _answer(admission: Admission, batch: int) -> None:
    for _ in range(batch):
        admission.answered(0.1, batch)
    admission.held -= batch


def _entered(admission: Admission, now: float) -> int:
    """How many are let in until one is refused."""
    held = admission.held
    with suppress(TooBusy):
        while True:
            admission.check(1, room=100, allowed_s=10.0, workers=1.0, now=now)
            admission.held += 1
    return admission.held - held


def test_of_a_worker_that_is_faster_than_its_pace_no_more_than_half_a_queue_is_kept():
    full = queue(60)
    for second in range(100, 200):
        refused(full, allowed_s=10.0, now=float(second))
        _answer(full, 40)
        full.held += 40
    refused(full, allowed_s=10.0, now=200.0)
    assert full.freed == 50.0
    assert _entered(full, now=204.01) == 0
    assert full.freed == 0.0


@pytest.mark.parametrize("largest", [8, 64])
def test_most_who_come_when_they_were_told_find_room_the_moment_a_flood_is_over(largest: int):
    """One worker, ten times what it can answer in a second for ten seconds, and of the refused one in twenty comes back."""
    floods = [Flood(seed, times=10, seconds=10.0, each_s=0.03, largest=largest) for seed in range(8)]
    came_back = sum(flood.came_back for flood in floods)
    assert came_back > 300
    assert sum(flood.let_in for flood in floods) >= 0.98 * came_back
    assert max(flood.longest_s for flood in floods) < 2.0
    assert min(flood.in_time * 0.03 / flood.seconds for flood in floods) > 0.9


def test_before_the_first_answer_only_the_room_counts():
    Admission("toy", held=50).check(1, room=100, allowed_s=0.01, workers=1.0, now=0.0)


def test_the_pace_is_the_mean_of_uneven_batches():
    admission = Admission("toy")
    for _ in range(100):
        for pace_s in (0.05, 0.15):
            for _ in range(32):
                admission.answered(pace_s, 32)
    assert admission.pace_s == pytest.approx(0.1, rel=0.2)


def test_samples_count_where_an_input_made_many():
    queue = Admission("m", held=2, sent=100, pace_s=0.0)
    with pytest.raises(TooBusy, match="100 inputs wait and the queue holds 64"):
        queue.check(1, room=64, allowed_s=10, workers=1, now=0.0)


@pytest.mark.parametrize(
    ("held", "pace_s", "allowed_s", "words"),
    [
        (14, 0.1, 2.0, "14 inputs wait, this one would be answered in 1.5 s, too close to the 2 s allowed"),
        (49, 0.1, 2.0, "49 inputs wait, this one would be answered in 5 s, later than the 2 s allowed"),
        (14, 0.005, 0.1, "answered in 0.075 s, too close to the 0.1 s allowed"),
        (899, 0.1, 60.0, "answered in 90 s, later than the 60 s allowed"),
        (19_999, 0.1, 1800.0, "answered in 2000 s, later than the 1800 s allowed"),
        (2399, 0.1, 120.0, "answered in 240 s, later than the 120 s allowed"),
    ],
)
def test_whoever_would_wait_too_long_hears_how_long_and_how_long_he_may(held: int, pace_s: float, allowed_s: float, words: str):
    assert words in refused(queue(held, pace_s), room=100_000, allowed_s=allowed_s).detail


GREEDY = Key(id="00000000", name="greedy", role="infer", sha256="0" * 64, created=date(2026, 1, 1), share=0.25)


def test_a_key_finds_room_in_its_share_alone():
    admission = queue(60)
    admission.places[GREEDY.id] = Place(held=20)
    assert admission.place(GREEDY, 5, room=100, allowed_s=1e6, workers=1.0).held == 20
    with pytest.raises(RateLimited, match="greedy has 20 inputs in the queue and its share is 25") as caught:
        admission.place(GREEDY, 6, room=100, allowed_s=1e6, workers=1.0)
    assert caught.value.retry_after_s == pytest.approx(1.0)
    admission.check(1, room=100, allowed_s=30.0, workers=1.0, now=0.0)


def test_its_wait_is_told_by_what_stands_between_its_own():
    admission = queue(100)
    admission.places[GREEDY.id] = Place(held=25)
    with pytest.raises(RateLimited) as caught:
        admission.place(GREEDY, 10, room=100, allowed_s=1e6, workers=1.0)
    assert caught.value.retry_after_s == pytest.approx(10 * 0.1 * 4), "three of others between two of its own"


def test_what_a_recording_became_counts_for_its_key():
    admission = queue(2)
    admission.places[GREEDY.id] = Place(held=1, sent=60)
    with pytest.raises(RateLimited, match="60 inputs"):
        admission.place(GREEDY, 1, room=100, allowed_s=1e6, workers=1.0)


def test_what_is_more_than_the_share_is_told_so_because_waiting_would_not_help():
    with pytest.raises(TooLarge, match="the share of greedy is 25"):
        queue(0).place(GREEDY, 26, room=100, allowed_s=1e6, workers=1.0)


def test_a_share_is_one_of_the_time_too_or_others_would_find_room_and_no_time():
    admission = queue(12, pace_s=0.1)
    admission.places[GREEDY.id] = Place(held=4)
    with pytest.raises(RateLimited, match="greedy has 4 inputs in the queue and its share is 3"):  # a quarter of 0.6 x 2.5 s
        admission.place(GREEDY, 1, room=100, allowed_s=2.5, workers=1.0)
    admission.check(1, room=100, allowed_s=2.5, workers=1.0, now=0.0)


def test_a_request_that_finds_none_of_its_key_may_be_larger_than_its_time():
    assert queue(0, pace_s=0.1).place(GREEDY, 20, room=100, allowed_s=2.0, workers=1.0).held == 0
