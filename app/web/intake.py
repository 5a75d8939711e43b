"""A request's body on its way in: no larger than its limit, and nobody waits for ever for the rest of it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.types import Message, Receive

from app.errors import RequestTimeout, TooLarge

_LOOK_S = 0.2


class Intake:
    """The bodies that this process is reading. One timer looks after all: one each would cost the many that are here at once."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._waits: dict[asyncio.Task[Any], float] = {}  # who waits for more of a body, until when (time.monotonic())
        self._late: set[asyncio.Task[Any]] = set()
        self._looking = False

    def reading(self, receive: Receive, limit: int, state: dict[str, Any]) -> Receive:
        """`receive` within bounds: `limit` bytes, so many seconds of silence, and the time `state["until"]`.

        What it gives raises TooLarge and RequestTimeout.
        """
        read, whole = 0, False

        async def receiving() -> Message:
            nonlocal read, whole
            if whole:  # what is waited for now is that the caller leaves
                return await receive()
            task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]  # each request has one
            until = self._waits[task] = min(time.monotonic() + self._silence_s, state["until"])
            if not self._looking:
                self._look_soon()
            try:
                message = await receive()
            except asyncio.CancelledError:
                if task not in self._late or task.uncancel():
                    raise
                raise self._too_slow(until >= state["until"]) from None
            finally:
                del self._waits[task]
                if self._late:
                    self._late.discard(task)
            read += len(message.get("body", b""))
            if read > limit:
                raise too_large(limit)
            whole = not message.get("more_body", False)
            return message

        return receiving

    def _look_soon(self) -> None:
        self._looking = True
        asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = False
        now = time.monotonic()
        for task, until in self._waits.items():
            if now >= until and task not in self._late:
                self._late.add(task)
                task.cancel()
        if self._waits:
            self._look_soon()

    def _too_slow(self, deadline: bool) -> RequestTimeout:
        if deadline:
            return RequestTimeout("the body was not here before the deadline; allow more time with timeout_ms, or send less")
        return silent("the body", self._silence_s)


def silent(part: str, limit_s: float) -> RequestTimeout:
    """The rest of a `part` of a request did not come."""
    return RequestTimeout(f"the rest of {part} did not come for {limit_s:g} s, the limit (HEARTH_SILENCE_S); send without pauses")


def too_large(limit: int) -> TooLarge:
    """A body has more bytes than `limit`."""
    settings = "HEARTH_MAX_BODY_MB, or HEARTH_MAX_DATASET_MB for data sets, sets it"
    return TooLarge(f"the body is larger than {limit / 2**20:g} MiB, the limit; send less at once ({settings})")
