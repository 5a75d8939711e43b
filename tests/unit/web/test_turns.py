"""How many use one event loop for what it stands still for."""

from __future__ import annotations

import asyncio
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
    names = await asyncio.gather(*(turns.take(n, partial(clock.work, 0.001, n, done)) for n in range(10)))
    clock.counting = False
    assert names == list(range(10)) == [name for name, _ in done]
    rounds = [at for _, at in done]
    assert [rounds.count(at) for at in sorted(set(rounds))] == [4, 4, 2], "as many as begin within it, in each"
    assert max(rounds) - min(rounds) == 2, "and none passes unused"


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


@pytest.mark.parametrize("failure", [ValueError, BaseException])
async def test_one_that_fails_waiting_fails_alone(clock: Clock, failure: type[BaseException]):
    turns, done = Turns(0.001), list[tuple[str, int]]()

    def fails() -> None:
        raise failure("no text")

    work = [partial(clock.work, 0.001, "a", done), fails, partial(clock.work, 0.001, "c", done)]
    answers = await asyncio.gather(*(turns.take(0, one) for one in work), return_exceptions=True)
    assert answers[::2] == ["a", "c"] and isinstance(answers[1], failure)


async def test_what_nobody_waits_for_is_not_done(clock: Clock):
    turns, done = Turns(0.001), list[tuple[str, int]]()
    tasks = [asyncio.create_task(turns.take(0, partial(clock.work, 0.001, name, done))) for name in "abc"]
    asyncio.get_running_loop().call_soon(tasks[1].cancel)  # all wait, and the loop has not come round
    assert await asyncio.wait_for(tasks[2], 10) == "c" and [name for name, _ in done] == ["a", "c"]
