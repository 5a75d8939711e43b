"""What one request may take of the decoders."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from app.decoding.client import Threads
from app.errors import Deadline
from app.tasks.base import Decoded, Sample
from app.web import kitchen as kitchens
from app.web.kitchen import Kitchen, Portion, Turns


def decoded(size: int = 8) -> Decoded:
    return Decoded(samples=(Sample(arrays={"x": np.zeros(size, np.uint8)}, cost=1.0),))


def ordered(kitchen: Kitchen, work: Callable[[], Decoded] = decoded) -> Callable[[], Awaitable[Decoded]]:
    """That `work` is what decodes."""
    return partial(kitchen.decoders.decode, SimpleNamespace(decode=lambda _: work()), b"", {})  # type: ignore[arg-type]


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

    greedy = Portion(kitchen, time.monotonic() + 30)
    all_of_it = asyncio.gather(*(greedy.decode(ordered(kitchen, work)) for _ in range(6)))
    await asyncio.to_thread(begun.wait, 20)
    assert await asyncio.wait_for(Portion(kitchen, time.monotonic() + 30).decode(ordered(kitchen)), 10)
    released.set()
    assert len(await all_of_it) == 6 and most == 1


async def test_what_is_not_decoded_in_time_is_told(kitchen: Kitchen):
    released = threading.Event()
    portion = Portion(kitchen, time.monotonic() + 0.05)
    try:
        with pytest.raises(Deadline, match="not decoded before the deadline"):
            await portion.decode(ordered(kitchen, lambda: decoded(1 + released.wait(20))))
    finally:
        released.set()


async def test_the_next_input_waits_until_there_is_room(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kitchens, "_PORTION", 100)
    portion = Portion(kitchen, time.monotonic() + 30)
    large = await portion.decode(ordered(kitchen, lambda: decoded(100)))
    portion.take(large)
    following = asyncio.create_task(portion.decode(ordered(kitchen)))
    others = await asyncio.gather(*(Portion(kitchen, time.monotonic() + 30).decode(ordered(kitchen)) for _ in range(20)))
    assert len(others) == 20 and not following.done()
    portion.give(large)
    assert await asyncio.wait_for(following, 10)


@pytest.mark.parametrize(("seconds", "heard"), [(0.0, [1, 2, 3]), (60.0, [3])], ids=["each for itself", "all at once"])
async def test_who_else_wants_the_loop_is_heard_when_others_took_enough_of_it(seconds: float, heard: list[int]):
    turns, done, seen = Turns(seconds), list[int](), list[int]()

    def look() -> None:
        if not seen or seen[-1] < len(done):
            seen.append(len(done))
        if len(done) < 3:
            asyncio.get_running_loop().call_soon(look)

    def work(number: int) -> None:
        if not done:
            asyncio.get_running_loop().call_soon(look)
        done.append(number)

    await asyncio.gather(*(turns.take(partial(work, number)) for number in range(3)))
    await asyncio.sleep(0)
    assert done == [0, 1, 2] and seen == heard


async def test_one_that_fails_or_is_given_up_leaves_its_turn_to_the_next():
    turns = Turns(0.0)
    with pytest.raises(ZeroDivisionError):
        await turns.take(lambda: 1 // 0)
    first, waiting = (asyncio.create_task(turns.take(lambda: 1)) for _ in range(2))
    await first
    waiting.cancel()
    assert await asyncio.wait_for(turns.take(lambda: 2), 10) == 2 and waiting.cancelled()


async def test_between_many_texts_of_one_request_others_come(kitchen: Kitchen):
    order = list[str]()

    def work(name: str) -> Decoded:
        order.append(name)
        return decoded()

    kitchen = replace(kitchen, here=Turns(0.0))
    many, single = Portion(kitchen, time.monotonic() + 30), Portion(kitchen, time.monotonic() + 30)
    await asyncio.gather(*(many.here(partial(work, "many")) for _ in range(20)), single.here(partial(work, "single")))
    assert len(order) == 21 and order.index("single") < 3


async def test_a_text_whose_turn_comes_too_late_is_not_read(kitchen: Kitchen):
    with pytest.raises(Deadline, match="not decoded before the deadline"):
        await Portion(kitchen, time.monotonic() - 1).here(lambda: pytest.fail("it was read"))
