"""Between a socket and its `Connection`, so that both can outlive the process: what is read goes through the journal, and an
answer is noted there before it is written. To the loop this is a protocol, to the connection it is the transport.

Head and body of an answer are written at once: there is no moment at which half of a usual answer is on its way, and one packet
is cheaper than two.
"""

from __future__ import annotations

import asyncio
from typing import cast

from app.errors import WorkerLost
from app.web.connection import Connection
from app.web.journal import Journal, Slot

_BULK_BYTES = 1 << 16  # whoever answers more waits until this is on its way
_HEIRS = 6  # that a request gets: more would try one that kills them all for longer than its neighbours should bear


class Noted(Connection):
    """It knows the end even of a request that was answered before that came; uvicorn does not look."""

    slot: Slot | None = None

    def has_asked(self) -> bool:
        """A frontend before this one, too."""
        return super().has_asked() or (self.slot is not None and self.slot.written > 0)

    def on_message_begin(self) -> None:
        """Whoever answers it can note what outlives this process."""
        super().on_message_begin()
        self.scope["state"]["past"] = self.slot

    def on_message_complete(self) -> None:
        """It has come."""
        super().on_message_complete()
        if self.cycle is not None:
            self.cycle.more_body = False


class Line(asyncio.BufferedProtocol):
    """One connection's."""

    def __init__(self, connection: Noted, journal: Journal, slot: Slot | None = None) -> None:
        """`slot`: of a connection that was left behind."""
        self._connection = connection
        self._journal = journal
        self._inherited = slot
        self._parts: list[bytes] = []
        self._size = 0
        self._taking = False

    # To the loop: a protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It begins, or goes on where the process before this one left it."""
        connection, self._transport = self._connection, cast("asyncio.Transport", transport)
        self.get_extra_info, self.is_closing, self.abort = transport.get_extra_info, transport.is_closing, self._transport.abort
        self.pause_reading, self.resume_reading = self._transport.pause_reading, self._transport.resume_reading
        self._slot = self._inherited or Slot(self._journal, transport.get_extra_info("socket").fileno())
        connection.slot = self._slot
        connection.connection_made(cast("asyncio.Transport", self))
        if self._slot.unsent:
            self._transport.write(bytes(self._slot.rest()))
        elif self._slot.lives > _HEIRS:
            why = f"{_HEIRS + 1} processes ended while they answered this"
            remedy = "send it again later, and if that repeats itself, report it"
            connection.give_up(WorkerLost(f"{why}; {remedy}", retry_after_s=1))
        elif self._slot.length:
            self._take(self._slot.waiting())

    def get_buffer(self, _: int) -> memoryview:
        """Where to read into."""
        if self._parts:
            self._flush()  # first the answer to what stands there
        return self._slot.room()

    def buffer_updated(self, size: int) -> None:
        """So much was read."""
        self._take(self._slot.came(size))

    def eof_received(self) -> None:
        """The caller has left."""
        self._connection.eof_received()

    def pause_writing(self) -> None:
        """The socket takes no more."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self._connection.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """It is over."""
        self._connection.connection_lost(error)
        self._slot.clear()
        del self._connection  # they hold each other: both would wait for the garbage collector

    # To the connection: a transport

    def write(self, data: bytes) -> None:
        """When the loop comes round, or once what was read is looked through."""
        if self.is_closing():
            return
        if not self._parts and not self._taking:
            self._connection.loop.call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > _BULK_BYTES:
            self._connection.pause_writing()

    def get_write_buffer_size(self) -> int:
        """Bytes that the socket has not taken."""
        return self._size + self._transport.get_write_buffer_size()

    def close(self) -> None:
        """Once all is written."""
        self._flush()
        self._transport.close()

    # Between them

    def _take(self, data: memoryview) -> None:
        connection = self._connection
        before = connection.cycle
        ended = before is not None and before.response_complete
        self._taking = True
        connection.data_received(data)  # type: ignore[arg-type]  # any buffer will do
        self._taking = False
        self._flush()
        cycle = connection.cycle
        if cycle is None:
            return
        if not cycle.response_complete:
            if cycle.scope is not connection.scope or connection.pipeline:
                self._slot.spoil()  # a request came before the one before it was answered
        elif cycle is before and ended and cycle.scope is connection.scope and not cycle.more_body:
            self._slot.forget()

    def _flush(self) -> None:
        parts, size = self._parts, self._size
        if not parts or self._transport.is_closing():
            return
        self._parts, self._size = [], 0
        connection, cycle, slot, data = self._connection, self._connection.cycle, self._slot, b"".join(parts)
        last = cycle is not None and cycle.response_complete and cycle.scope is connection.scope
        early = last and cycle is not None and cycle.more_body
        if size > _BULK_BYTES:
            connection.resume_writing()
            if last and not early:
                slot.keep(data)
        slot.going(size, last=last, early=early, interim=cycle is not None and not cycle.response_started)  # 100 Continue
        self._transport.write(data)
        if last and not self._transport.get_write_buffer_size():
            slot.settle()
