"""The sockets between our processes: one kind of endpoint, for a loop that waits (workers) or for asyncio (everybody else).

Unix stream sockets in a private folder (mode 0700), never blocking. What may be in flight is bounded by admission
(`pool/client.py`); a bound here would turn overload into silence, so what a peer does not yet read waits in the sender's memory.

What is sent goes out when the loop comes round, all of it to one peer in one envelope: each hand-over between processes costs
tens of microseconds, and under load many samples share it.

No message library: ZeroMQ's own threads add four hand-overs to a question and its answer, and on a quiet machine each of them
waits for a core to wake up (280 µs instead of 50; `benchmarks/results/2026-11-24b.md`).
"""

from __future__ import annotations

import asyncio
import select
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from app.logs import log
from app.wire.frames import Buffer, FrameError, Letter, pack, unpack
from app.wire.messages import Message, Named
from app.wire.stream import Connection

Handler = Callable[[str, Message, dict[str, np.ndarray]], None]

_BURST = 8  # letters handled before others of the loop get a turn: a batch brings dozens, and what each sets off takes 0.2 ms
_BACKLOG = 128
_FULL_S = 0.01
_LINGER_S = 1.0  # how long what was sent may take to be handed over
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Endpoint:
    """One that listens (peers have names) or one that connects (its peer is "")."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._peers: dict[str, Connection] = {}
        self._inbox: deque[tuple[str, memoryview]] = deque()
        self._opened: deque[tuple[str, Message, dict[str, np.ndarray]]] = deque()  # letters for the handler
        self._outbox: dict[str, list[Letter]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handler: Handler | None = None
        self._handling = False

    @classmethod
    def listen(cls, address: str) -> Endpoint:
        """Listen at `address`. A name that comes back (a restarted child) takes over."""
        endpoint = cls()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(_BACKLOG)
        endpoint._selector.register(listener, _READ)
        return endpoint

    @classmethod
    def connect(cls, address: str, name: str) -> Endpoint:
        """Connect; the listener knows this end as `name`. If nobody listens, it is like a peer that is gone.

        Raises OSError when this process has no descriptors left.
        """
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            endpoint = cls()
            stream.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            stream.close()
            return endpoint
        except OSError:
            stream.close()
            raise
        endpoint._add(Connection(stream, ""))
        endpoint._write("", pack([(Named(name), {})]))
        return endpoint

    @property
    def gone(self) -> bool:
        """Nobody is at the other end."""
        return not self._peers

    @property
    def crowded(self) -> bool:
        """An envelope has begun and not ended: more is coming than a socket holds."""
        return any(connection.begun for connection in self._peers.values())

    def send(self, message: Message, arrays: Mapping[str, np.ndarray] | None = None, *, to: str = "") -> None:
        """Put into the outbox, which goes out when the asyncio loop comes round, or before `receive`, `wait` and `close`.

        Never blocks. A message to a peer that is gone vanishes.
        """
        if self._loop is not None and not self._outbox:
            self._loop.call_soon(self.flush)
        self._outbox.setdefault(to, []).append((message, arrays or {}))

    def flush(self) -> None:
        """Send what stands in the outbox: one envelope per peer."""
        outbox, self._outbox = self._outbox, {}
        for peer, letters in outbox.items():
            if peer in self._peers:
                self._write(peer, pack(letters))

    def _write(self, peer: str, parts: Sequence[Buffer]) -> None:
        connection = self._peers[peer]
        waiting = bool(connection.unsent)
        connection.unsent.extend(memoryview(part) for part in parts)
        if not waiting:
            self._push(connection)

    def _push(self, connection: Connection) -> None:
        if connection.stream.fileno() < 0:  # its end was heard a moment ago
            return
        try:
            connection.write()
        except EOFError:
            # Not forgotten: what it said before it went is still to be read, and then its end.
            connection.unsent.clear()
        wanted = _READ | _WRITE if connection.unsent else _READ
        if self._selector.get_key(connection.stream).events != wanted:
            self._selector.modify(connection.stream, wanted, connection)

    def pump(self) -> None:
        """Take in what has come and hand over what peers have room for again, without waiting."""
        for key, events in self._selector.select(0):
            connection: Connection | None = key.data
            if connection is None:
                self._accept(key.fileobj)  # type: ignore[arg-type]  # the socket that was registered
                continue
            if events & _WRITE:
                self._push(connection)
            if events & _READ:
                self._read(connection)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection = Connection(listener.accept()[0], None)
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptors are left; whoever knocks goes on knocking
            log.error("nobody more can be let in for now: %s", error)
            time.sleep(_FULL_S)
            return
        self._add(connection)
        self._read(connection)

    def _add(self, connection: Connection) -> None:
        self._selector.register(connection.stream, _READ, connection)
        if connection.peer is not None:
            self._peers[connection.peer] = connection

    def _read(self, connection: Connection) -> None:
        try:
            for envelope in connection.read():
                if connection.peer is not None:
                    self._inbox.append((connection.peer, envelope))
                    continue
                for message, _ in unpack(envelope):
                    if isinstance(message, Named):
                        connection.peer = message.name
                        self._peers[message.name] = connection
        except EOFError:
            self._forget(connection)
        except FrameError as error:
            log.error("%s talks rubbish and is let go: %s", connection.peer or "somebody", error)
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        self._selector.unregister(connection.stream)
        connection.stream.close()
        if connection.peer is not None and self._peers.get(connection.peer) is connection:
            del self._peers[connection.peer]

    def receive(self) -> Iterator[tuple[str, Message, dict[str, np.ndarray]]]:
        """Yield what has come, as (peer, message, arrays), without waiting."""
        self.flush()
        self.pump()
        while self._inbox:
            yield from self._next()

    def _next(self) -> list[tuple[str, Message, dict[str, np.ndarray]]]:
        peer, envelope = self._inbox.popleft()
        try:
            return [(peer, message, arrays) for message, arrays in unpack(envelope)]
        except FrameError as error:
            log.error("%s sent what is no letter: %s", peer or "the peer", error)
            return []

    def attach(self, handler: Handler) -> None:
        """Call `handler(peer, message, arrays)` on the running asyncio loop for everything that comes."""
        self._loop, self._handler = asyncio.get_running_loop(), handler
        self._loop.add_reader(self.fileno(), self._on_ready)
        self._loop.call_soon(self.flush)

    def _on_ready(self) -> None:
        self.pump()
        if not self._handling:
            self._handle()

    def _handle(self) -> None:
        self._handling = False
        try:
            for _ in range(_BURST):
                if not self._handle_one():
                    break
        finally:  # whatever a handler raised, the others are heard
            if self._loop is not None and not self.idle() and not self._handling:
                self._handling = True
                self._loop.call_soon(self._handle)

    def drain(self) -> None:
        """Handle at once everything that has come: the last words of a peer that is gone."""
        while self._peers:  # until its end has come
            before = len(self._inbox)
            self.pump()
            if len(self._inbox) == before:
                break
        while self._handle_one():
            pass

    def _handle_one(self) -> bool:
        """The next letter, if there is one and a handler."""
        while self._inbox and not self._opened:
            self._opened.extend(self._next())
        if self._handler is None or not self._opened:
            return False
        self._handler(*self._opened.popleft())
        return True

    def fileno(self) -> int:
        """A descriptor that is readable when `pump` has something to do."""
        return self._selector.fileno()

    def idle(self) -> bool:
        """Nothing has come that was not yet received."""
        return not self._inbox and not self._opened

    def close(self) -> None:
        """Stop. What was sent is still handed over to peers that live, for up to a second."""
        self.flush()
        if self._loop is not None:
            self._loop.remove_reader(self.fileno())
            self._loop = None
        until = time.monotonic() + _LINGER_S
        while any(connection.unsent for connection in self._peers.values()) and (left := until - time.monotonic()) > 0:
            self._selector.select(left)
            self.pump()
        self._peers.clear()
        for key in [*(self._selector.get_map() or {}).values()]:
            self._selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]  # a socket
        self._selector.close()


def wait(endpoints: Sequence[Endpoint], timeout_s: float) -> None:
    """Return when one of the endpoints has something, or after `timeout_s`."""
    poller = select.poll()
    for endpoint in endpoints:
        endpoint.flush()
        poller.register(endpoint, select.POLLIN)
    if all(endpoint.idle() for endpoint in endpoints):
        poller.poll(1000 * timeout_s)


def address(folder: str, name: str) -> str:
    """Where the process `name` listens, or "supervisor" for the supervisor."""
    return f"{folder}/{name}"
