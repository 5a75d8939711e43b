"""The card's sample as a proof of life: one real forward per worker at a time, however many ask.

Where others have asked it, an answer to one of them proves as much: the sample may wait behind what they sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from app.errors import HearthError
from app.pool.base import Renewed


class Probe:
    """Shares one running proof among all who ask for the same worker."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[str]] = {}
        self._begun: set[str] = set()  # a task that is cancelled before it begins tells nothing

    async def run(self, worker: str, attempt: Callable[[], Awaitable[None]]) -> str:
        """Await `attempt`, or the one that runs already. Returns "" or what went wrong. Raises Renewed."""
        task = self._running.get(worker)
        if task is None:
            task = self._running[worker] = asyncio.create_task(self._attempt(worker, attempt))
        return await asyncio.shield(task)

    def proven(self, worker: str) -> None:
        """It has answered somebody."""
        if worker in self._begun:
            self._running[worker].cancel()

    async def _attempt(self, worker: str, attempt: Callable[[], Awaitable[None]]) -> str:
        self._begun.add(worker)
        try:
            await attempt()
        except Renewed:
            raise
        except HearthError as error:
            return f"{worker}: {error.code}: {error.detail}"
        except asyncio.CancelledError:  # by `proven`: whoever asks is shielded from
            return ""
        finally:
            self._begun.discard(worker)
            del self._running[worker]
        return ""
