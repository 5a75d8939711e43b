"""How many use one event loop for what it stands still for."""

from __future__ import annotations

import asyncio
import gc
import weakref
from functools import partial
from typing import Any

import pytest

from app.web import turns as module
from app.web.turns import Turns


class Clock:
    """Work takes as long as it says."""

    now = 0.0
    rounds = 0
    """The loop came round so often."""
    counting = True

    def monotonic(self) -> float:
        return self.now

    def work(self, seconds: float, name: Any, done: list[tuple[Any, int]]) -> Any:
        self.now += seconds
        done.append((name, self.rounds))
        return name

    def count(self) -> None:
        self.rounds += 1
        if self.counting:
            asyncio.get_running_loop().call_soon(self.count)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


async def test_who_else_wants_the_loop_is_heard_when_the_time_of_a_round_is_used_up(clock: Clock):
    turns, done = Turns(0.0035), list[tuple[int, int]]()
    clock.count()
    names = await asyncio.gather(*(turns.take(n, partial(clock.work, 0.001, n, done)) for n in range(100)))
    clock.counting = False
    assert names == list(range(100)) == [name for name, _ in done]
    rounds = [at for _, at in done]
    each = [rounds.count(at) for at in sorted(set(rounds))]
    assert each[0] == 4, "as many as begin within it"
    assert max(each) == 4 and each[-3] == 4, "and it is learned how many those are"


async def test_what_takes_longer_than_what_came_before_is_not_done_at_once(clock: Clock):
    """A hundred short texts taught how many a round has time for, and so many long ones held the loop for a quarter of a second."""
    turns, done = Turns(0.0005), list[tuple[int, int]]()
    clock.count()
    seconds = [0.00002] * 128 + [0.002] * 128
    await asyncio.gather(*(turns.take(n, partial(clock.work, one, n, done)) for n, one in enumerate(seconds)))
    clock.counting = False
    assert [name for name, _ in done] == list(range(256))
    long = [at for name, at in done if name >= 128]
    assert len(set(long)) == len(long), "one in a round"


async def test_other_requests_come_between_the_texts_of_one(clock: Clock):
    turns, done = Turns(0.001), list[tuple[str, int]]()
    many = [turns.take(number, partial(clock.work, 0.001, f"many {number}", done)) for number in range(4)]
    others = [turns.take(0, partial(clock.work, 0.001, name, done)) for name in ("one", "other")]
    await asyncio.gather(*many, *others)
    assert [name for name, _ in done] == ["many 0", "one", "other", "many 1", "many 2", "many 3"]


async def test_who_finds_others_waiting_waits_behind_them(clock: Clock):
    turns, done = Turns(0.001), list[tuple[str, int]]()

    async def late() -> None:
        await asyncio.sleep(0)
        await turns.take(0, partial(clock.work, 0.001, "late", done))

    await asyncio.gather(*(turns.take(0, partial(clock.work, 0.001, n, done)) for n in "abc"), late())
    assert [name for name, _ in done] == ["a", "b", "c", "late"]


async def test_who_was_woken_is_passed_by_nobody(clock: Clock):
    """Who came between that and its work took the round, again and again: one caller in a loop kept another one out for good."""
    turns, done, over = Turns(0.001), list[tuple[str, int]](), asyncio.Event()

    async def again_and_again() -> None:
        while not over.is_set():
            await turns.take(0, partial(clock.work, 0.001, "again", done))
            await asyncio.sleep(0)

    looping = asyncio.create_task(again_and_again())
    await asyncio.sleep(0)
    await asyncio.wait_for(turns.take(0, partial(clock.work, 0.001, "other", done)), 10)
    over.set()
    await looping
    assert [name for name, _ in done[:4]].count("other") == 1


async def test_who_was_woken_and_left_keeps_nobody_waiting(clock: Clock):
    turns, done = Turns(0.001), list[tuple[str, int]]()
    tasks = [asyncio.create_task(turns.take(0, partial(clock.work, 0.001, name, done))) for name in "ab"]
    await asyncio.sleep(0)
    turns._round()
    tasks[1].cancel()
    assert await asyncio.wait_for(turns.take(0, partial(clock.work, 0.001, "c", done)), 10) == "c"
    assert turns._woken == 0


async def test_who_waits_is_passed_no_longer_than_his_place_says(clock: Clock):
    turns, done, over = Turns(0.001), list[tuple[str, int]](), asyncio.Event()

    async def flood() -> None:
        while not over.is_set():
            await turns.take(0, partial(clock.work, 0.001, "flood", []))

    async def many() -> None:
        await asyncio.gather(*(turns.take(n, partial(clock.work, 0.001, f"{n}", done)) for n in range(20)))
        over.set()

    await asyncio.wait_for(asyncio.gather(many(), *(flood() for _ in range(4))), 30)
    assert len(done) == 20


async def test_one_that_fails_waiting_fails_alone_and_is_gone_with_its_error(clock: Clock):
    turns, done = Turns(0.001), list[tuple[str, int]]()

    def fails() -> None:
        raise ValueError("no text")

    async def ask(text: Clock) -> None:
        await turns.take(0, fails)
        raise AssertionError(text)

    text = Clock()
    seen = weakref.ref(text)
    gc.disable()
    try:
        work = [turns.take(0, partial(clock.work, 0.001, "a", done)), ask(text), turns.take(0, lambda: "c")]
        del text
        answers = await asyncio.gather(*work, return_exceptions=True)
        assert answers[::2] == ["a", "c"] and isinstance(answers[1], ValueError)
        del answers, work
        await asyncio.sleep(0)
        assert seen() is None, "waiting for the garbage collector, many would hold what was uploaded"
    finally:
        gc.enable()


async def test_what_nobody_waits_for_is_not_done(clock: Clock):
    turns, done = Turns(0.001), list[tuple[str, int]]()
    tasks = [asyncio.create_task(turns.take(0, partial(clock.work, 0.001, name, done))) for name in "abc"]
    asyncio.get_running_loop().call_soon(tasks[1].cancel)  # all wait, and the loop has not come round
    assert await asyncio.wait_for(tasks[2], 10) == "c" and [name for name, _ in done] == ["a", "c"]
