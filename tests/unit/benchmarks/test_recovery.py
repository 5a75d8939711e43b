"""What the benchmark of kills counts: every request that was not answered right, whatever came instead, and no thread stays."""

from __future__ import annotations

import threading

import httpx
import numpy as np
import pytest
from recovery import Callers

from tests.stack.conftest import wait_for

KNOWN = np.array([0.6, 0.8])


def callers(handler) -> Callers:  # type: ignore[no-untyped-def]
    return Callers(lambda: httpx.Client(base_url="http://test", transport=httpx.MockTransport(handler)), KNOWN)


def answer(*embedding: float) -> httpx.Response:
    return httpx.Response(200, json={"embeddings": [embedding]})


def lost(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (lost, "refused"),
        (lambda _: httpx.Response(503, text="too busy"), "too busy"),
        (lambda _: answer(0.8, 0.6), "0.8"),
        (lambda _: answer(1.0), "mismatch"),
        (lambda _: httpx.Response(200, text="no json"), "JSONDecodeError"),
    ],
)
def test_what_is_not_the_right_answer_is_counted_as_failed_and_asking_goes_on(handler, said: str):  # type: ignore[no-untyped-def]
    with callers(handler) as load:
        wait_for(lambda: len(load.failed) > 8)
    assert not load.right
    assert said in load.failed[0]


def test_right_answers_are_counted():
    with callers(lambda _: answer(0.6, 0.8)) as load:
        wait_for(lambda: load.right > 8)
    assert not load.failed


def test_an_error_in_between_leaves_no_thread():
    before = threading.active_count()
    with pytest.raises(RuntimeError), callers(lambda _: answer(0.6, 0.8)):
        raise RuntimeError
    assert threading.active_count() == before
