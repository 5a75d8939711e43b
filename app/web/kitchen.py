"""What every inference route works with, and the work on one request: decode, submit, interpret, each input for itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from msgspec import Struct

from app.decoding.client import Decoders, Threads, timed
from app.errors import Deadline, HearthError
from app.metrics import tally
from app.pool.base import Model, Pool, Renewed
from app.settings import Settings
from app.tasks.base import Codec, Decoded
from app.web.turns import Turns

T = TypeVar("T")
Pair = tuple[Decoded | None, dict[str, Any] | HearthError]
"""An input as it was decoded, and its result or its error."""

_HERE_S = 0.0005  # each time that the event loop comes round: three texts of usual length
_PORTION = 128 << 20  # bytes that one request may hold decoded before its next input is; a half hour of sound has 115 MB


@dataclass(frozen=True, slots=True)
class Kitchen:
    """What every route needs."""

    pool: Pool
    settings: Settings
    decoders: Decoders | Threads
    stopping: Callable[[], bool] = lambda: False
    """Whether this process is told to end: streams end then."""
    shadows: set[asyncio.Task[None]] = field(default_factory=set)
    """Copies of requests that versions without traffic answer, for nobody to hear."""
    here: Turns = field(default_factory=lambda: Turns(_HERE_S))
    """For what is decoded in this process."""


class Order(Struct, frozen=True, kw_only=True):
    """What one request wants of which model."""

    task: str
    model: str | None
    items: Sequence[bytes | str]
    outputs: tuple[str, ...]
    decode: dict[str, Any]
    interpret: dict[str, Any]
    timeout_ms: int | None


async def answers(
    kitchen: Kitchen, model: Model, codec: Codec, order: Order, deadline: float, timing: dict[str, float]
) -> list[Pair]:
    """All items of an order, in order; `timing` gets the seconds of each stage. Raises Renewed for all of them together."""
    portion = Portion(kitchen, deadline)
    work = [_caught(partial(_one, kitchen, portion, model, codec, order, timing, number)) for number in range(len(order.items))]
    return [await work[0]] if len(work) == 1 else await _together(work)


async def _one(
    kitchen: Kitchen,
    portion: Portion,
    model: Model,
    codec: Codec,
    order: Order,
    timing: dict[str, float],
    number: int,
) -> tuple[Decoded, dict[str, Any]]:
    asked, item = time.monotonic(), order.items[number]
    if codec.light(item):
        decoded, took = await portion.here(number, partial(codec.decode, item, **order.decode))
    else:
        decoded, took = await portion.decode(partial(kitchen.decoders.decode, codec, item, order.decode))
    portion.take(decoded)
    waited = time.monotonic() - asked - took
    _spent(timing, "decode", took, model)
    submit = partial(kitchen.pool.submit, model.card.name, outputs=order.outputs, deadline=portion.deadline, codec=codec)
    try:
        if len(decoded.samples) == 1:
            answers = [await submit(decoded.samples[0], before=number)]
        else:
            answers = await _together([submit(sample, before=before) for before, sample in enumerate(decoded.samples, number)])
    finally:
        portion.give(decoded)
    timing["queue"] = max(timing.get("queue", 0.0), *(waited + answer.queue_s for answer in answers))
    timing["run"] = max(timing.get("run", 0.0), *(answer.run_s for answer in answers))
    started = time.monotonic()
    result = codec.interpret(decoded, [answer.output for answer in answers], **order.interpret)
    _spent(timing, "interpret", time.monotonic() - started, model)
    return decoded, result


async def _together(work: list[Coroutine[Any, Any, T]]) -> list[T]:
    """All or the first error: what else was to be answered, as the other windows of a recording, is dropped with it."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        while tasks:
            tasks.pop().cancel()  # and none left to hold an error that holds this frame


async def _caught(work: Callable[[], Awaitable[tuple[Decoded, dict[str, Any]]]]) -> Pair:
    try:
        return await work()
    except Renewed:
        raise
    except HearthError as error:
        return None, error


def _spent(timing: dict[str, float], stage: str, seconds: float, model: Model) -> None:
    timing[stage] = timing.get(stage, 0.0) + seconds
    tally().stage(stage, model.card.name, seconds)


class Portion:
    """What one request may take at a time of the decoders and of memory, so that its neighbours are not kept waiting."""

    def __init__(self, kitchen: Kitchen, deadline: float) -> None:
        self.deadline = deadline
        self._here = kitchen.here
        self._turn = asyncio.Semaphore(max(1, kitchen.decoders.count - 1))  # others find one free
        self._held = 0  # bytes decoded and not yet answered
        self._room = asyncio.Event()
        self._room.set()

    async def decode(self, work: Callable[[], Awaitable[tuple[Decoded, float]]]) -> tuple[Decoded, float]:
        """Await it when it is its turn among this request's. Raises Deadline, and what `work` raises."""
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()), self._turn:
                await self._room.wait()
                return await work()
        except TimeoutError as error:
            raise _late() from error

    async def here(self, number: int, work: Callable[[], Decoded]) -> tuple[Decoded, float]:
        """The same in this process, of the input with this number."""
        return await self._here.take(number, partial(self._in_time, work))

    def _in_time(self, work: Callable[[], Decoded]) -> tuple[Decoded, float]:
        if time.monotonic() > self.deadline:
            raise _late()
        return timed(work)

    def take(self, decoded: Decoded) -> None:
        """It is kept until it is answered."""
        self._held += _size(decoded)
        if self._held >= _PORTION:
            self._room.clear()

    def give(self, decoded: Decoded) -> None:
        """It is answered, and may be forgotten."""
        self._held -= _size(decoded)
        if self._held < _PORTION:
            self._room.set()


def _late() -> Deadline:
    return Deadline("not decoded before the deadline; allow more time with timeout_ms, or send less")


def _size(decoded: Decoded) -> int:
    return sum(array.nbytes for sample in decoded.samples for array in sample.arrays.values())
