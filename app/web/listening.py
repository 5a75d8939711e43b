"""Where a frontend accepts connections. One that finds no descriptor waits in the kernel until there is one.

libuv, which uvloop is made of, keeps a descriptor in reserve to accept such a connection with, and hangs up: whoever asks just
then has lost its request. Where there is no reserve, it looks again without end (`uv__server_io` and `uv__emfile_trick`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from app.logs import log

_AGAIN_S = 0.1  # after which one is looked for that there was no descriptor for


class Listening:
    """Accepts until it is closed. uvicorn takes it for an `asyncio.Server`."""

    def __init__(self, listening: socket.socket, line: Callable[[], asyncio.Protocol]) -> None:
        """`line` makes the protocol of a connection. Needs the running loop."""
        self._listening = listening
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._begun: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._loop.add_reader(listening, self._accept)

    def close(self) -> None:
        """Accept no more. The socket stays open."""
        self._loop.remove_reader(self._listening)
        if self._again is not None:
            self._again.cancel()

    async def wait_closed(self) -> None:
        """Returns when every connection that was accepted has its protocol."""
        while self._begun:
            await asyncio.wait(self._begun)

    def _go_on(self) -> None:
        try:
            self._loop.add_reader(self._listening, self._accept)
        except OSError:
            self._again = self._loop.call_later(_AGAIN_S, self._go_on)

    def _accept(self) -> None:
        """One: where idle connections have to make room for it, the next one is to find that done."""
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another frontend has it, or its caller left
            return
        except OSError as error:
            log.error("nobody more can be let in for now: %s", error)
            self._loop.remove_reader(self._listening)
            self._again = self._loop.call_later(_AGAIN_S, self._go_on)
            return
        task = self._loop.create_task(self._attach(connection))
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    async def _attach(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._line, connection)
        except Exception as error:  # noqa: BLE001  whatever hinders it, its caller shall not wait
            log.error("a connection was lost as it began: %s", error)
            connection.close()
