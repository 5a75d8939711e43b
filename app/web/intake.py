"""A request's body on its way in: no larger than its limit, nobody waits for ever for the rest of it, and all that are here at a
time have a limit together: who sends without end, or never ends, takes no memory from others.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Receive

from app.errors import HearthError, RequestTimeout, TooBusy, TooLarge

_LOOK_S = 0.2
_SLOW = 1 << 16  # bytes a second: where room is short, what comes more slowly goes first
_BEGINS_S, _ANEW_S = 1.0, 5.0  # for which nobody is slow; and after which what came before does not count


@dataclass(slots=True, eq=False)
class _Body:
    """One request's, as far as it is here."""

    task: asyncio.Task[Any]
    sender: str
    began: float
    since: float
    before: int = 0
    """What was here then: how fast it comes is counted from there."""
    read: int = 0
    held: int = 0
    """What of that is kept until the request is answered."""
    waits: float = 0.0
    """Since when for more."""
    until: float = math.inf
    """When more of it must be here (time.monotonic())."""
    deadline: float = math.inf
    """When all of it must, if the caller says so."""
    whole: bool = False
    error: HearthError | None = None
    """Why it is not read on."""


class Intake:
    """The bodies that this process is reading. One timer looks after all: one each would cost the many that are here at once."""

    def __init__(self, silence_s: float, most_bytes: int) -> None:
        """`most_bytes`: of all bodies that are kept in memory, together."""
        self._silence_s = silence_s
        self._most_bytes = most_bytes
        self._held: Counter[str] = Counter()  # by sender
        self._total = 0
        self._waits: set[_Body] = set()  # for more of it
        self._looking = False

    def reading(self, receive: Receive, limit: int, state: dict[str, Any], *, sender: str = "", kept: bool = True) -> Receive:
        """`receive` within bounds: `limit` bytes, so many seconds of silence, and the time `state["until"]`. `sender`: whose it
        is. `kept`: what is read stays in memory, until the request is `over`.

        What it gives raises TooLarge, RequestTimeout, TooBusy.
        """
        body: _Body | None = None

        async def receiving() -> Message:
            nonlocal body
            now = time.monotonic()
            if body is None:
                task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]  # each request has one
                body = state["body"] = _Body(task, sender, now, now)
            if body.whole:  # what is waited for now is that the caller leaves
                return await receive()
            if now - body.since > _ANEW_S:
                body.since, body.before = now, body.read
            body.waits, body.deadline = now, state["until"]
            body.until = min(now + self._silence_s, body.deadline)
            self._waits.add(body)
            if not self._looking:
                self._look_soon()
            try:
                message = await receive()
            except asyncio.CancelledError:
                if body.error is None or body.task.uncancel():
                    raise
                raise body.error from None
            finally:
                self._waits.discard(body)
            size = len(message.get("body", b""))
            body.read += size
            if body.read > limit:
                raise too_large(limit)
            body.whole = not message.get("more_body", False)
            if kept:
                self._keep(body, size)
            return message

        return receiving

    def over(self, state: dict[str, Any]) -> None:
        """This request is answered: nothing of its body is kept any more."""
        if body := state.get("body"):
            self._let_go(body)

    def _keep(self, body: _Body, size: int) -> None:
        body.held += size
        self._held[body.sender] += size
        self._total += size
        while self._total > self._most_bytes:
            body.waits = time.monotonic()
            last = self._last([*self._waits, body])
            self._let_go(last)
            if last.error is not None:  # it is ended already, and has yet to hear of it
                continue
            told = f"bodies of {self._most_bytes / 2**20:g} MiB are here, the limit (HEARTH_MAX_BODIES_MB)"
            if _speed(last) < _SLOW:
                last.error = RequestTimeout(f"{told}, and this one came slowest; send it faster, or less at once")
            else:
                last.error = TooBusy(f"{told}; come back in 1 s, or send less at once", retry_after_s=1)
            if last is body:
                raise last.error
            last.task.cancel()

    def _last(self, bodies: Iterable[_Body]) -> _Body:
        """For which there is no room: of those that hold any, the slowest, if it is slow; else the youngest, of which the
        least is lost: of one sender, if he has more than a quarter of all.
        """
        held = [body for body in bodies if body.held]
        slowest = min(held, key=_speed)
        if _speed(slowest) < _SLOW:
            return slowest
        return max(held, key=lambda body: (max(self._held[body.sender], self._most_bytes / 4), body.began))

    def _let_go(self, body: _Body) -> None:
        self._total -= body.held
        self._held[body.sender] -= body.held
        body.held = 0
        if not self._held[body.sender]:
            del self._held[body.sender]

    def _look_soon(self) -> None:
        self._looking = True
        asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = False
        now = time.monotonic()
        for body in self._waits:
            if now >= body.until and body.error is None:
                why = "the body was not here before the deadline; allow more time with timeout_ms, or send less"
                body.error = RequestTimeout(why) if body.until >= body.deadline else silent("the body", self._silence_s)
                body.task.cancel()
        if self._waits:
            self._look_soon()


def _speed(body: _Body) -> float:
    """Bytes a second of late; infinite for what is here, and for what has just begun."""
    now = time.monotonic()
    seconds = now - body.since
    if body.whole or seconds < _BEGINS_S:
        return math.inf
    return (body.read - body.before) / seconds if now - body.waits < _ANEW_S else 0.0


def silent(part: str, limit_s: float) -> RequestTimeout:
    """The rest of a `part` of a request did not come."""
    return RequestTimeout(f"the rest of {part} did not come for {limit_s:g} s, the limit (HEARTH_SILENCE_S); send without pauses")


def too_large(limit: int) -> TooLarge:
    """A body has more bytes than `limit`."""
    settings = "HEARTH_MAX_BODY_MB, or HEARTH_MAX_DATASET_MB for data sets, sets it"
    return TooLarge(f"the body is larger than {limit / 2**20:g} MiB, the limit; send less at once ({settings})")
