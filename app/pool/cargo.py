"""What a frontend keeps of a sample until its answer is here. Plain values."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from app.errors import Deadline
from app.pool.base import PAST, Answer, Past
from app.tasks.base import Codec, Sample


@dataclass(slots=True)
class Cargo:
    """What it takes to send it, again if need be."""

    sample: Sample
    outputs: tuple[str, ...]
    deadline: float
    codec: Codec | None
    """What decoded it, where it matters that it is the model's."""
    before: int = 0
    """Samples of the same request that come before it."""
    past: Past | None = field(default_factory=PAST.get)
    """Of its request."""
    future: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def sole(self) -> bool:
        """It is all that its request asks."""
        return self.past is None or not self.past.several

    def fail(self, error: Exception) -> None:
        """That is its answer, unless there was one."""
        if not self.future.done():
            self.future.set_exception(error)

    def late(self) -> None:
        """Nobody waits any longer."""
        self.fail(Deadline("no answer before the deadline; allow more time with timeout_ms, or send less"))
