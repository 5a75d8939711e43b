"""What callers count: every request that was not answered right, whatever came instead; and how long they feel a fault."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Callable

import pytest
from callers import Callers, Question, within

from tests.stack.conftest import wait_for

KNOWN = {"embeddings": [[0.6, 0.8]], "model": "m"}
QUESTION = Question("/embed/text", b"{}", "application/json", [KNOWN])


def callers(handler: Callable[[], tuple[int, bytes]], count: int = 4, question: Question = QUESTION) -> Callers:
    class Line:
        def __init__(self, _: str) -> None: ...

        def ask(self, _: Question) -> tuple[int, bytes]:
            return handler()

        def close(self) -> None: ...

    return Callers("http://test", [question], count, Line)


def answer(*embedding: float) -> tuple[int, bytes]:
    return 200, json.dumps({"embeddings": [embedding], "model": "m", "more": 1}).encode()


def lost() -> tuple[int, bytes]:
    raise ConnectionResetError("reset")


@pytest.mark.parametrize(
    ("handler", "outcome", "told"),
    [
        (lost, "lost", "reset"),
        (lambda: (503, b"too busy"), "failed", "too busy"),
        (lambda: answer(0.8, 0.6), "wrong", "0.8"),
        (lambda: answer(1.0), "wrong", "1.0"),
        (lambda: (200, b"no json"), "wrong", "JSONDecodeError"),
    ],
)
def test_what_is_not_the_right_answer_is_counted_and_asking_goes_on(handler, outcome: str, told: str):  # type: ignore[no-untyped-def]
    with callers(handler) as load:
        wait_for(lambda: getattr(load.counts, outcome) > 8)
        assert load.felt(lambda: None, 0.1) == math.inf
    assert load.counts.sent == load.counts.bad == getattr(load.counts, outcome)
    assert told in load.counts.told[0]
    assert len(load.counts.lost_s) == load.counts.lost


def test_right_answers_are_counted_and_an_error_can_be_right():
    with callers(lambda: answer(0.6, 0.80001)) as load:
        load.more(3)
    assert load.counts.right >= 12 and not load.counts.bad
    poison = Question("/", b"", "", [{"code": "poisoned"}], 500)
    with callers(lambda: (500, b'{"code": "poisoned", "status": 500}'), question=poison) as load:
        load.more(3)
    assert not load.counts.bad
    assert poison.outcome(*answer(1.0)) == "wrong"


def test_a_fault_is_felt_until_every_caller_is_answered_who_asked_after_it():
    broken, turns = threading.Event(), iter(range(10**9))

    def handler() -> tuple[int, bytes]:
        if broken.is_set() and next(turns) > 20:
            broken.clear()
        return lost() if broken.is_set() else answer(0.6, 0.8)

    with callers(handler) as load:
        assert 0 < load.felt(broken.set, 30) < 30
    assert load.counts.lost >= 20


def test_a_caller_may_rest_after_each_right_answer():
    asked = list[float]()
    load = callers(lambda: asked.append(time.monotonic()) or answer(0.6, 0.8), count=1)  # type: ignore[func-returns-value]
    load._rest_s = 0.05
    with load:
        load.more(3)
    assert min(later - earlier for earlier, later in itertools.pairwise(asked)) >= 0.05


def test_an_error_in_between_leaves_no_thread():
    before = threading.active_count()
    with pytest.raises(RuntimeError), callers(lambda: answer(0.6, 0.8)):
        raise RuntimeError
    assert threading.active_count() == before


def test_all_that_is_known_must_be_there():
    assert within({"a": [1.0, {"b": "x"}]}, {"a": [1.00001, {"b": "x", "c": 2}], "d": None})
    assert not within({"a": 1}, {})
    assert not within([1], [1, 2])
    assert not within(0.5, float("nan")) and not within(0.5, None)


def test_slow_right_answers_are_known_with_their_times():
    held, slow = threading.Event(), threading.Event()

    def handler() -> tuple[int, bytes]:
        if held.is_set() and not slow.is_set():
            slow.wait(30)
        return answer(0.6, 0.8)

    with callers(handler, count=1) as load:
        load.more(3)
        held.set()
        after = time.monotonic()
        wait_for(lambda: time.monotonic() - after > 0.2)
        slow.set()
        load.more(3)
        until = time.monotonic()
    seconds, began = max(load.counts.slow)
    assert seconds > 0.1 and after - 0.1 < began < began + seconds < until
