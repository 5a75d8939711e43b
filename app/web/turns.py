"""Work for which the event loop stands still, of many: so much of it at a time that whoever else wants the loop is heard.

Two hundred and fifty texts of one request would hold it for fifty milliseconds, and the hundred that a flood brings before the
rest of it is refused keep those waiting who are. To another thread such work is not worth handing over; one at a time, each would
reach its worker alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar

T = TypeVar("T")


class Turns:
    """Of one event loop, each time that it comes round, `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._left = seconds
        self._waiting: list[tuple[int, int, asyncio.Future[Any], Callable[[], Any]]] = []
        self._numbers = count()
        self._comes = False  # the loop calls when it has come round

    async def take(self, place: int, work: Callable[[], T]) -> T:
        """What `work` returns, or raises. Of those that wait, the lowest place is first, and then who came first: as its place
        a request's text has its number, so many texts of one request do not go before the first one of another.
        """
        self._call()
        if self._left > 0 and not self._waiting:
            return self._timed(work)
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (place, next(self._numbers), done, work))
        try:
            return await done
        finally:
            del done  # it may hold an error, which holds this frame: they would wait for the garbage collector

    def _call(self) -> None:
        if not self._comes:
            self._comes = True
            asyncio.get_running_loop().call_soon(self._round, context=Context())  # it is no part of any request

    def _round(self) -> None:
        self._left, self._comes = self._seconds, False
        while self._waiting and self._left > 0:
            *_, done, work = heappop(self._waiting)
            if not done.done():
                _fill(done, partial(self._timed, work))
        if self._waiting:
            self._call()

    def _timed(self, work: Callable[[], T]) -> T:
        started = time.monotonic()
        try:
            return work()
        finally:
            self._left -= time.monotonic() - started


def _fill(done: asyncio.Future[T], work: Callable[[], T]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:  # noqa: BLE001  whatever it is (a panic in Rust is no Exception), it is for who waits
        done.set_exception(error)
