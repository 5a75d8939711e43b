"""What the supervisor does for its hands (`loading.py`, `switching.py`, …)."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from app.wire.messages import Message


class House(Protocol):
    """The supervisor, as they see it."""

    frontends: set[str]
    """Those that live."""

    @property
    def expected(self) -> int:
        """How many of them there are to be."""
        ...

    def publish(self) -> None:
        """Tell every frontend what there is now."""
        ...

    def tell(self, message: Message, to: str) -> None:
        """Send a message to a frontend or worker."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None], errand: str = "") -> None:
        """Run it; that it fails ends the server."""
        ...

    def settled(self, model: str) -> None:
        """A model is ready, has failed, or is unloaded and its processes are gone."""
        ...
