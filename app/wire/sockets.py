"""The only file that knows ZeroMQ: one endpoint, for a loop that waits (workers) or for asyncio (everybody else).

Sockets are `ipc://` files in a private folder (mode 0700). High-water marks are off: what may be in flight is bounded by
admission (`pool/client.py`), and a mark would turn overload into silence.

What is sent goes out when the loop comes round, all of it to one peer in one envelope: each hand-over between processes costs
tens of microseconds, and under load many samples share it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import zmq

from app.wire.frames import Letter, pack, unpack
from app.wire.messages import Message

Handler = Callable[[str, Message, dict[str, np.ndarray]], None]

_BURST = 8  # envelopes handled before other tasks of the loop get a turn
_LAST = 1000  # envelopes of a peer that is gone, at most; each may hold many answers
_LINGER_MS = 1000  # how long what was sent may take to be handed over


class Endpoint:
    """A ROUTER that listens (peers have names) or a DEALER that connects (its peer is "")."""

    def __init__(self, socket: zmq.SyncSocket, *, router: bool) -> None:
        self._socket = socket
        self._router = router
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handler: Handler | None = None
        self._outbox: dict[str, list[Letter]] = {}

    @classmethod
    def listen(cls, address: str) -> Endpoint:
        """Bind a ROUTER at `address`. A name that comes back (a restarted child) takes over."""
        socket = _open(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.bind(address)
        return cls(socket, router=True)

    @classmethod
    def connect(cls, address: str, name: str) -> Endpoint:
        """Connect a DEALER that the listener knows as `name`."""
        socket = _open(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, name.encode())
        socket.connect(address)
        return cls(socket, router=False)

    def send(self, message: Message, arrays: Mapping[str, np.ndarray] | None = None, *, to: str = "") -> None:
        """Put into the outbox, which goes out when the asyncio loop comes round, or before `receive`, `wait` and `close`.

        Never blocks. A listener's message to a peer that is gone vanishes.
        """
        if self._loop is not None and not self._outbox:
            self._loop.call_soon(self.flush)
        self._outbox.setdefault(to, []).append((message, arrays or {}))

    def flush(self) -> None:
        """Send what stands in the outbox: one envelope per peer."""
        outbox, self._outbox = self._outbox, {}
        for peer, letters in outbox.items():
            frames = pack(letters)
            if self._router:
                frames.insert(0, peer.encode())
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=len(frames) < 3)
        if self._loop is not None and outbox and int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            # The descriptor is edge-triggered, and sending may have eaten the edge (zmq_getsockopt(3), ZMQ_FD).
            self._loop.call_soon(self._on_readable)

    def receive(self) -> Iterator[tuple[str, Message, dict[str, np.ndarray]]]:
        """Yield what has come, as (peer, message, arrays), without waiting."""
        self.flush()
        while (envelope := self._envelope()) is not None:
            peer, letters = envelope
            for message, arrays in letters:
                yield peer, message, arrays

    def _envelope(self) -> tuple[str, list[tuple[Message, dict[str, np.ndarray]]]] | None:
        try:
            frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        peer = bytes(frames.pop(0).buffer).decode() if self._router else ""
        return peer, unpack([frame.buffer for frame in frames])

    def attach(self, handler: Handler) -> None:
        """Call `handler(peer, message, arrays)` on the running asyncio loop for everything that comes."""
        self._loop, self._handler = asyncio.get_running_loop(), handler
        self._loop.add_reader(int(self._socket.getsockopt(zmq.FD)), self._on_readable)
        self._loop.call_soon(self._on_readable)

    def _on_readable(self) -> None:
        if self._loop is not None and self._handle(_BURST):
            self._loop.call_soon(self._on_readable)

    def drain(self) -> None:
        """Handle at once everything that has come: the last words of a peer that is gone."""
        self._handle(_LAST)

    def _handle(self, most: int) -> bool:
        """Give up to so many envelopes to the handler. False: no more has come."""
        for _ in range(most):
            if self._handler is None or (envelope := self._envelope()) is None:
                return False
            peer, letters = envelope
            for message, arrays in letters:
                self._handler(peer, message, arrays)
        return True

    def close(self) -> None:
        """Stop. What was sent is still handed over for up to a second, if the process lives on or ends with `hand_over`."""
        self.flush()
        if self._loop is not None:
            self._loop.remove_reader(int(self._socket.getsockopt(zmq.FD)))
            self._loop = None
        self._socket.close(linger=_LINGER_MS)


def wait(endpoints: list[Endpoint], timeout_s: float) -> None:
    """Return when one of the endpoints has something, or after `timeout_s`."""
    poller = zmq.Poller()
    for endpoint in endpoints:
        endpoint.flush()
        poller.register(endpoint._socket, zmq.POLLIN)
    poller.poll(int(timeout_s * 1000))


def hand_over() -> None:
    """Wait until what closed endpoints had sent is with their peers, for at most a second. The last thing that a process does.

    `os._exit` ends ZeroMQ's thread with everything else, and only the end of the context waits for it (zmq_ctx_term(3)).
    """
    zmq.Context.instance().term()


def _open(kind: int) -> zmq.SyncSocket:
    socket: zmq.SyncSocket = zmq.Context.instance().socket(kind)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
    return socket


def address(folder: str, name: str) -> str:
    """Where the process `name` listens, or "supervisor" for the supervisor."""
    return f"ipc://{folder}/{name}"
