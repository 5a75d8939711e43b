"""What one request may take of the decoders."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from app.decoding import client as clients
from app.decoding.client import Threads
from app.errors import Deadline
from app.tasks.base import Decoded, Sample
from app.web import kitchen as kitchens
from app.web.kitchen import Kitchen, Portion


def decoded(size: int = 8) -> Decoded:
    return Decoded(samples=(Sample(arrays={"x": np.zeros(size, np.uint8)}, cost=1.0),))


def ordered(kitchen: Kitchen, work: Callable[[], Decoded] = decoded) -> Callable[[], Awaitable[Decoded]]:
    """That `work` is what decodes."""
    return partial(kitchen.decoders.decode, SimpleNamespace(decode=lambda _: work()), b"", {})  # type: ignore[arg-type]


def portion(kitchen: Kitchen, seconds: float = 30.0) -> Portion:
    return Portion(kitchen, time.monotonic() + seconds)


@pytest.fixture
def kitchen() -> Kitchen:
    return Kitchen(SimpleNamespace(), SimpleNamespace(), Threads(2))  # type: ignore[arg-type]


async def test_a_request_leaves_a_thread_to_others(kitchen: Kitchen):
    at_once, most, lock = 0, 0, threading.Lock()
    begun, released = threading.Event(), threading.Event()

    def work() -> Decoded:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        begun.set()
        assert released.wait(20)
        with lock:
            at_once -= 1
        return decoded()

    greedy = portion(kitchen)
    all_of_it = asyncio.gather(*(greedy.decode(ordered(kitchen, work)) for _ in range(6)))
    await asyncio.to_thread(begun.wait, 20)
    assert await asyncio.wait_for(portion(kitchen).decode(ordered(kitchen)), 10)
    released.set()
    assert len(await all_of_it) == 6 and most == 1


async def test_what_is_not_decoded_in_time_is_told(kitchen: Kitchen):
    released = threading.Event()
    asked = portion(kitchen, seconds=0.05)
    try:
        with pytest.raises(Deadline, match="not decoded before the deadline"):
            await asked.decode(ordered(kitchen, lambda: decoded(1 + released.wait(20))))
    finally:
        released.set()


async def test_the_next_input_waits_until_there_is_room(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kitchens, "_PORTION", 100)
    asked = portion(kitchen)
    large, _ = await asked.decode(ordered(kitchen, lambda: decoded(100)))
    asked.take(large)
    following = asyncio.create_task(asked.decode(ordered(kitchen)))
    others = await asyncio.gather(*(portion(kitchen).decode(ordered(kitchen)) for _ in range(20)))
    assert len(others) == 20 and not following.done()
    asked.give(large)
    assert await asyncio.wait_for(following, 10)


async def test_a_text_whose_turn_comes_too_late_is_not_read(kitchen: Kitchen):
    with pytest.raises(Deadline, match="not decoded before the deadline"):
        await portion(kitchen, seconds=-1).here(0, lambda: pytest.fail("it was read"))


@pytest.mark.parametrize("light", [True, False], ids=["here", "elsewhere"])
@pytest.mark.parametrize("requests", [1, 10])
async def test_what_waits_for_its_turn_is_not_said_to_be_decoded_meanwhile(
    monkeypatch: pytest.MonkeyPatch, light: bool, requests: int
):
    kitchen, now = Kitchen(SimpleNamespace(), SimpleNamespace(), Threads(1)), [0.0]  # type: ignore[arg-type]
    asked = [portion(kitchen) for _ in range(requests)]
    for module in (kitchens, clients):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def work() -> Decoded:
        now[0] += 1.0
        return decoded()

    turns = [(n, asked[n % requests]) for n in range(10)]
    answers = await asyncio.gather(*(one.here(n, work) if light else one.decode(ordered(kitchen, work)) for n, one in turns))
    assert [seconds for _, seconds in answers] == [1.0] * 10
