"""What a frontend keeps of a sample until its answer is here. Plain values."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from app.pool.base import PAST, Answer, Past
from app.tasks.base import Sample


@dataclass(slots=True)
class Cargo:
    """What it takes to send it, again if need be."""

    sample: Sample
    outputs: tuple[str, ...]
    deadline: float
    before: int = 0
    """Samples of the same request that come before it."""
    past: Past | None = field(default_factory=PAST.get)
    """Of its request."""
    future: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
