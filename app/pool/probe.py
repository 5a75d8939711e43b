"""Whether workers answer: the card's sample as a proof of life, one real forward per worker at a time, however many ask.

Where others have asked it, an answer to one of them proves as much: the sample may wait behind what they sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from app.card import Card
from app.errors import HearthError, UnknownModel
from app.pool.base import Renewed
from app.pool.directory import Directory, Known

_PROVEN_S = 0.5  # an answer to a real request proves a worker for so long
_BUSY, _BUSY_CUDA = 2.5, 3.5  # of its longest batches until it is proven: what runs (or two), what the sample is in, a half
_PASSES = 3  # if the workers are others by then: a storm of loads shall not keep who asks waiting

Forward = Callable[[Card, str, float], Awaitable[None]]
"""Have a worker answer the card's sample, until a deadline. Raises HearthError; Renewed where it is not there any more."""


class Probe:
    """What one frontend knows of its workers' lives. Shares one running proof among all who ask for the same worker."""

    def __init__(self, directory: Directory, forward: Forward) -> None:
        self._directory = directory
        self._forward = forward
        self._answered: dict[str, float] = {}  # worker → its last answer
        self._longest: dict[str, float] = {}  # worker → seconds of its longest batch, slowly forgotten
        self._running: dict[str, asyncio.Task[str]] = {}
        self._begun: set[str] = set()  # a task that is cancelled before it begins tells nothing

    def answered(self, worker: str, run_s: float) -> None:
        """It has answered somebody, with a batch that took so long."""
        self._answered[worker] = time.monotonic()
        self._longest[worker] = max(run_s, 0.9 * self._longest.get(worker, 0.0))
        if worker in self._begun:
            self._running[worker].cancel()

    def forget(self, worker: str) -> None:
        """It is gone."""
        self._answered.pop(worker, None)
        self._longest.pop(worker, None)

    async def prove(self, known: Known, within_s: float) -> str:
        """Empty if each of its workers has answered just now, or does so within `within_s`, or a few of its longest batches, if
        that is longer; else what is wrong. Those that have come meanwhile are asked, too.
        """
        why = ""
        for _ in range(_PASSES):
            if known.entry.state != "ready":
                return known.entry.why or known.entry.state
            ready, why = _ready(known), ""
            try:
                if wrong := await self._each(known.card, ready, within_s):
                    return wrong
            except Renewed as error:
                why = error.detail
            try:
                known = self._directory[known.card.name]
            except UnknownModel as error:
                return error.detail
            if not why and _ready(known) == ready:
                return ""
        return why or "its workers are being replaced"

    async def _each(self, card: Card, workers: dict[str, str], within_s: float) -> str:
        """What is wrong with the first of these workers that does not answer. Raises Renewed."""
        now = time.monotonic()
        for worker, device in workers.items():
            if now - self._answered.get(worker, 0.0) <= _PROVEN_S:
                continue
            allowed_s = max(within_s, (_BUSY if device == "cpu" else _BUSY_CUDA) * self._longest.get(worker, 0.0))
            if wrong := await self._shared(worker, partial(self._forward, card, worker, now + allowed_s)):
                return wrong
        return ""

    async def _shared(self, worker: str, attempt: Callable[[], Awaitable[None]]) -> str:
        """Await `attempt`, or the one that runs already. Returns "" or what went wrong. Raises Renewed."""
        task = self._running.get(worker)
        if task is None:
            task = self._running[worker] = asyncio.create_task(self._attempt(worker, attempt))
        return await asyncio.shield(task)

    async def _attempt(self, worker: str, attempt: Callable[[], Awaitable[None]]) -> str:
        self._begun.add(worker)
        try:
            await attempt()
        except Renewed:
            raise
        except HearthError as error:
            return f"{worker}: {error.code}: {error.detail}"
        except asyncio.CancelledError:  # by `answered`: whoever asks is shielded from
            return ""
        finally:
            self._begun.discard(worker)
            del self._running[worker]
        return ""


def _ready(known: Known) -> dict[str, str]:
    """Worker → its device."""
    return {worker.name: worker.device for worker in known.entry.workers if worker.state == "ready"}
