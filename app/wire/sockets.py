"""The sockets between our processes: one kind of endpoint, for a loop that waits (workers) or for asyncio (everybody else).

Unix stream sockets in a private folder (mode 0700), never blocking. What may be in flight is bounded by admission
(`pool/client.py`); a bound here would turn overload into silence, so what a peer does not yet read waits in the sender's memory.

What is sent goes out when the loop comes round, all of it to one peer in one envelope: each hand-over between processes costs
tens of microseconds, and under load many samples share it.

No message library: ZeroMQ's own threads add four hand-overs to a question and its answer, and on a quiet machine each of them
waits for a core to wake up (280 µs instead of 50; `benchmarks/results/2026-11-24.md`).
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np

from app.wire.frames import Buffer, Letter, pack, unpack
from app.wire.messages import Message, Named
from app.wire.stream import Connection

Handler = Callable[[str, Message, dict[str, np.ndarray]], None]

_BURST = 8  # envelopes handled before other tasks of the loop get a turn
_BACKLOG = 128
_LONG_S = 0.005  # waking a thread costs a hundredth of it
_LINGER_S = 1.0  # how long what was sent may take to be handed over
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Endpoint:
    """One that listens (peers have names) or one that connects (its peer is "")."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._peers: dict[str, Connection] = {}
        self._inbox: deque[tuple[str, memoryview]] = deque()
        self._outbox: dict[str, list[Letter]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handler: Handler | None = None
        self.crowded = False
        """More is coming than a socket holds: its buffer was full, or an envelope has begun."""

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
        """Connect; the listener knows this end as `name`. If nobody listens, it is like a peer that is gone."""
        endpoint = cls()
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.connect(address)
        except OSError:
            stream.close()
            return endpoint
        endpoint._add(Connection(stream, ""))
        endpoint._write("", pack([(Named(name), {})]))
        return endpoint

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
        self.crowded = False
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
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            connection = Connection(listener.accept()[0], None)
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
        self.crowded |= connection.begun

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
            peer, envelope = self._inbox.popleft()
            for message, arrays in unpack(envelope):
                yield peer, message, arrays

    def attach(self, handler: Handler) -> None:
        """Call `handler(peer, message, arrays)` on the running asyncio loop for everything that comes."""
        self._loop, self._handler = asyncio.get_running_loop(), handler
        self._loop.add_reader(self.fileno(), self._on_ready)

    def _on_ready(self) -> None:
        self.pump()
        self._handle()

    def _handle(self) -> None:
        for _ in range(_BURST):
            if self._handler is None or not self._inbox:
                return
            peer, envelope = self._inbox.popleft()
            for message, arrays in unpack(envelope):
                self._handler(peer, message, arrays)
        if self._loop is not None and self._inbox:
            self._loop.call_soon(self._handle)

    def drain(self) -> None:
        """Handle at once everything that has come: the last words of a peer that is gone."""
        while self._peers:  # until its end has come
            before = len(self._inbox)
            self.pump()
            if len(self._inbox) == before:
                break
        while self._inbox and self._handler is not None:
            self._handle()

    def fileno(self) -> int:
        """A descriptor that is readable when `pump` has something to do."""
        return self._selector.fileno()

    def idle(self) -> bool:
        """Nothing has come that was not yet received."""
        return not self._inbox

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


class Standby:
    """A thread that pumps endpoints while their owner computes (`with standby.during(…):`); both never touch them at once.

    A socket holds two photos, a batch sixty-four: without it, the batch after a long one would be a small one.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints
        self._theirs, self._ours = threading.Lock(), threading.Lock()
        self._theirs.acquire()
        self._ours.acquire()
        self._over = True
        self._wake, self._woken = socket.socketpair()
        self._poller = select.poll()
        for descriptor in (self._woken.fileno(), *(endpoint.fileno() for endpoint in endpoints)):
            self._poller.register(descriptor, select.POLLIN)
        threading.Thread(target=self._run, name="standby", daemon=True).start()

    def during(self, expected_s: float) -> AbstractContextManager[None]:
        """For a computation that will take about so long. A short one needs no help, unless more was coming than sockets hold."""
        needed = expected_s > _LONG_S or any(endpoint.crowded for endpoint in self._endpoints)
        return self if needed else contextlib.nullcontext()

    def __enter__(self) -> None:
        self._over = False
        self._theirs.release()

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._wake.send(b"\0")
        self._ours.acquire()

    def _run(self) -> None:
        while True:
            self._theirs.acquire()
            while not self._over:
                self._poller.poll()
                for endpoint in self._endpoints:
                    endpoint.pump()
            self._woken.recv(1)
            self._ours.release()
