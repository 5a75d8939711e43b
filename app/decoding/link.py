"""One decoder as its frontend sees it: asked one thing at a time, and it may end at any moment."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from app.wire.frames import FrameError
from app.wire.parcels import Parcel, ParcelStream, Told


class Died(Exception):
    """The decoder ended before it answered."""

    def __init__(self, status: int, *, scarce: bool = False) -> None:
        super().__init__(status)
        self.status = status
        """Negative: the signal that ended it."""
        self.scarce = scarce
        """There was no descriptor left here for what it was told, or said; so it was sent away."""


class Decoder:
    """`free` is called when it has answered. That it ended is the nursery's to say (`ended`), who knows how."""

    def __init__(self, number: int, stream: socket.socket, free: Callable[[Decoder], None]) -> None:
        self.number = number
        self.asked: asyncio.Future[Told] | None = None
        stream.setblocking(False)
        self._parcels = ParcelStream(stream)
        self._free = free
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(stream, self._read)

    def ask(self, parcel: Parcel) -> asyncio.Future[Told]:
        """Its answer. Raises Died."""
        self.asked = self._loop.create_future()
        if not self._parcels.send(parcel):
            self._loop.add_writer(self._parcels.stream, self._push)
        return self.asked

    def _push(self) -> None:
        if self._parcels.push():
            self._loop.remove_writer(self._parcels.stream)

    def _read(self) -> None:
        try:
            if told := self._parcels.read():
                self._answered(told)
        except (EOFError, FrameError):
            self.close()

    def _answered(self, told: Told) -> None:
        asked, self.asked = self.asked, None
        if asked is None:
            raise FrameError("it answers what nobody asked")
        if not asked.done():
            asked.set_result(told)
        self._free(self)

    def ended(self, status: int) -> None:
        """It is gone. What it said before counts."""
        if self._parcels.stream.fileno() >= 0:
            self._read()
        self.close()
        if self.asked is not None and not self.asked.done():
            self.asked.set_exception(Died(status, scarce=self._parcels.scarce))

    def close(self) -> None:
        """Hear no more of it, if that has not been said before. It ends if it can."""
        if self._parcels.stream.fileno() < 0:
            return
        self._loop.remove_reader(self._parcels.stream)
        self._loop.remove_writer(self._parcels.stream)
        self._parcels.stream.close()
