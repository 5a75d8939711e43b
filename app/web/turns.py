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
from heapq import heappop, heappush
from itertools import count
from typing import TypeVar

T = TypeVar("T")

_NEWEST = 0.1  # weight of the newest in what work usually takes


class Turns:
    """Of one event loop, each time that it comes round, about `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._left = seconds  # of this round
        self._each = seconds  # what work usually takes
        self._rounds = 0
        self._woken = 0  # whose turn it is, and who have not come yet: nobody passes them
        self._comes = False  # the loop calls when it has come round
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = count()

    async def take(self, place: int, work: Callable[[], T]) -> T:
        """What `work` returns, or raises. Who waits lets those pass that come up to `place` rounds later at a lower one: as its
        place a text has its number in its request, so others come between many of one, and those wait no longer for that.
        """
        self._call()
        if self._left <= 0 or self._waiting or self._woken:
            await self._turn((self._rounds + place, next(self._numbers)))
        started = time.monotonic()
        try:
            return work()
        finally:
            took = time.monotonic() - started
            self._left -= took
            self._each += _NEWEST * (took - self._each)

    async def _turn(self, order: tuple[int, int]) -> None:
        """More than one are woken, and one of those before us may have taken all of the round: then it is a later one."""
        while True:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heappush(self._waiting, (*order, turn))
            try:
                await turn
            finally:
                if turn.done() and not turn.cancelled():
                    self._woken -= 1
            if self._left > 0:
                return
            self._call()

    def _call(self) -> None:
        if not self._comes:
            self._comes = True
            asyncio.get_running_loop().call_soon(self._round, context=Context())  # it is no part of any request

    def _round(self) -> None:
        """Wake as many as there should be time for, and come again behind them."""
        self._left, self._comes, self._rounds = self._seconds, False, self._rounds + 1
        most = max(1.0, self._seconds / max(self._each, 1e-9))
        woken = 0
        while self._waiting and woken < most:
            *_, turn = heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                woken += 1
        self._woken += woken
        if woken or self._waiting:
            self._call()
