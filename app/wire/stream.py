"""One connection between two of our processes: what is to be written, and what was read so far."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from app.wire.frames import Splitter

_CHUNK = 1 << 16  # bytes to ask for where no large envelope has begun
_GULP = 1 << 22  # bytes read before others get their turn
_PARTS = 64  # of an envelope per system call; the kernel takes up to 1024 (IOV_MAX)


class Connection:
    """One stream: what is to be written, and what was read so far."""

    def __init__(self, stream: socket.socket, peer: str | None) -> None:
        self.stream = stream
        self.peer = peer
        """None until it has said its name."""
        self.unsent: deque[memoryview] = deque()
        self._splitter = Splitter()
        stream.setblocking(False)

    def read(self) -> Iterator[memoryview]:
        """Yield the envelopes that have come to their end. Raises EOFError when the peer is gone, FrameError on rubbish."""
        taken = 0
        while taken < _GULP:
            room = self._splitter.room
            try:
                if room is None:
                    data = self.stream.recv(_CHUNK)
                    size, full = len(data), len(data) == _CHUNK
                else:
                    size = self.stream.recv_into(room)
                    full = size == len(room)
            except BlockingIOError:
                return
            except OSError as error:
                raise EOFError from error
            if not size:
                raise EOFError
            yield from self._splitter.feed(data) if room is None else self._splitter.fill(size)
            if not full:
                return
            taken += size

    @property
    def begun(self) -> bool:
        """The start of an envelope has come, its end has not."""
        return self._splitter.room is not None

    def write(self) -> None:
        """Hand over as much as the peer has room for. Raises EOFError when it is gone."""
        while self.unsent:
            try:
                size = self.stream.sendmsg(islice(self.unsent, _PARTS))
            except BlockingIOError:
                return
            except OSError as error:
                with suppress(OSError):  # half an envelope may be there: nothing may follow it
                    self.stream.shutdown(socket.SHUT_WR)
                raise EOFError from error
            while self.unsent and size >= len(self.unsent[0]):
                size -= len(self.unsent.popleft())
            if size:
                self.unsent[0] = self.unsent[0][size:]
