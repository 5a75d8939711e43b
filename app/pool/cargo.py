"""What a frontend keeps of a sample until its answer is here. Plain values."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from app.pool.base import Answer
from app.tasks.base import Sample


@dataclass(slots=True)
class Cargo:
    """What it takes to send it, again if need be."""

    sample: Sample
    outputs: tuple[str, ...]
    deadline: float
    future: asyncio.Future[Answer]
