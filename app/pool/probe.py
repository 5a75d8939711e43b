"""The card's sample as a proof of life: one real forward per worker at a time, however many ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from app.errors import HearthError


class Probe:
    """Shares one running proof among all who ask for the same worker."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[str]] = {}

    async def run(self, worker: str, attempt: Callable[[], Awaitable[None]]) -> str:
        """Await `attempt`, or the one that runs already. Returns "" or what went wrong."""
        task = self._running.get(worker)
        if task is None:
            task = self._running[worker] = asyncio.create_task(self._attempt(worker, attempt))
        return await asyncio.shield(task)

    async def _attempt(self, worker: str, attempt: Callable[[], Awaitable[None]]) -> str:
        try:
            await attempt()
        except HearthError as error:
            return f"{worker}: {error.code}: {error.detail}"
        finally:
            del self._running[worker]
        return ""
