"""Whether this process keeps up with what it is asked. Where more comes than it can read, requests wait in their sockets, where
nobody sees them: each is let in when its caller has long given up, and nothing is answered in time any more.

What tells it is the event loop, which comes round late twice within a second: some dozens of callers who begin at once make it
late once. That requests are why, tells their number: another process that holds the core makes it late, too.
"""

from __future__ import annotations

import asyncio
import contextvars
import math

from app.logs import log

LOOK_S = 0.05
LATE_S = 0.1  # on two busy cores the loop is late by up to 50 ms though little is asked
MANY = 20  # requests between two looks
AGAIN_S = 1.0


class Overrun:
    """One process's. While it is `on`, a new request should be refused as cheaply as can be."""

    def __init__(self) -> None:
        self.on = False
        self._came = 0
        self._due = 0.0
        self._late = -math.inf  # when it last was

    def came(self) -> bool:
        """A request is here; whether it is one too many."""
        self._came += 1
        if not self._due:
            self._look_again()
        return self.on

    def _look_again(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + LOOK_S
        loop.call_at(self._due, self._look, context=contextvars.Context())  # it is no part of any request

    def _look(self) -> None:
        now, came, before = asyncio.get_running_loop().time(), self._came, self.on
        late_s = now - self._due
        self.on = (late := late_s > LATE_S and came > MANY) and now - self._late < AGAIN_S + late_s
        self._late = now if late else self._late
        if self.on and not before:
            log.warning("more is asked than can be read: %d requests came in %.1f s, new ones are refused", came, LOOK_S + late_s)
        self._came, self._due = 0, 0.0
        if came:
            self._look_again()
