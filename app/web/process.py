"""The frontend process: uvicorn on the inherited socket, one pool client, one app.

`python -m app.web.process PARENT LISTENING CONTROL FOLDER`, started by the supervisor, is its keeper (`keeper.py`), which forks
it.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import resource
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from app import logs, metrics
from app.decoding import nursery
from app.decoding.client import Decoders, decoder_count, room_for
from app.logs import log
from app.pool.client import Client
from app.process import can_fork_beside, die_with_parent, set_name, take_short_turns
from app.settings import Settings, cores
from app.tasks import prepare
from app.web.connection import Connection, most_connections
from app.web.heirs import take_over
from app.web.journal import Journal, Slot
from app.web.keeper import keep
from app.web.line import Line, Noted
from app.web.listening import Listening
from app.web.server import make_app
from app.wire.blackbox import BlackBox

# Young objects before cycles among them are looked for. A request leaves none, so what grows is what waits: a full queue has
# 40,000, and to look through those takes 30 ms, in which a flood is not refused.
_GARBAGE = 100_000
_BEAT_S = 1.0
_HEADER_BYTES = 1 << 16


def main() -> None:
    """Keep a frontend until the supervisor is gone."""
    supervisor = int(sys.argv[1])
    die_with_parent(supervisor)
    take_short_turns()
    set_name("hearth keeper")
    settings = Settings.from_environment()
    logs.configure(settings)
    with suppress(OSError):  # large uploads are kept on the disk of the home folder; /tmp may be memory
        (settings.home / "tmp").mkdir(parents=True, exist_ok=True)
        if os.access(settings.home / "tmp", os.W_OK):
            tempfile.tempdir = str(settings.home / "tmp")
    Connection.silence_s = settings.silence_s
    Connection.most = most_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    listening, control = (socket.socket(fileno=int(number)) for number in sys.argv[2:4])
    journal = _journal(settings)
    uvicorn.Config("", log_config=None).get_loop_factory()  # imports uvloop, for all
    prepare()
    keep(supervisor, control, listening, partial(serve, settings, sys.argv[4], journal))


def _journal(settings: Settings) -> Journal | None:
    """Where no other process can go on with the connections, none is needed."""
    if can_fork_beside():
        try:
            return Journal(int(settings.max_body_mb * 2**20) + _HEADER_BYTES)
        except OSError as error:
            log.warning("no memory can be shared (%s); a frontend that dies takes its connections along", error)
    return None


def serve(
    settings: Settings,
    folder: str,
    journal: Journal | None,
    number: int,
    listening: socket.socket | None,
    left: list[socket.socket],
) -> None:
    """Be frontend `number` until SIGTERM; then finish what was accepted. `listening`, `left`: see `keeper.Live`."""
    set_name(f"hearth http {number}")
    if journal is not None:  # callers' requests are nothing for those who read strangers' files
        journal.map.madvise(mmap.MADV_DONTFORK)
    # The decoders' nursery first: it is a copy of this process, which has no thread yet.
    decoders = Decoders(decoder_count(cores(), settings.frontend_count()), room_for(settings), nursery.begin())
    metrics.for_frontend(Path(folder) / "metrics")  # behind it, for the same reason
    client = Client(settings, folder, number)
    box = BlackBox(Path(folder) / f"frontend.{number}.blackbox")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        client.start()
        await client.told()
        _beat(box)
        gc.collect()
        gc.freeze()  # what is there stays; looking through it again took a tenth of the time, tens of milliseconds at once
        gc.set_threshold(_GARBAGE, 2, 2)
        yield
        decoders.close()
        client.close()

    app = make_app(client, settings, decoders, lifespan=lifespan, stopping=lambda: server.should_exit)
    client.on_keys = app.guard.take
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody's word is taken for a caller's address
        timeout_graceful_shutdown=int(settings.drain_s),
        backlog=2048,
    )
    server = _Server(config, journal, left)
    server.should_exit = listening is None
    server.run(sockets=[listening] if listening else [])


class _Server(uvicorn.Server):
    """uvicorn's, whose connections have a journal where there is one, and which begins with those that were left behind."""

    def __init__(self, config: uvicorn.Config, journal: Journal | None, left: list[socket.socket]) -> None:
        super().__init__(config)
        self._journal, self._left = journal, left
        if journal is not None:
            config.http = lambda **_: self._line(journal)  # type: ignore[assignment]  # it is called as a class is

    def _line(self, journal: Journal, slot: Slot | None = None) -> Line:
        return Line(Noted(self.config, self.server_state, self.lifespan.state), journal, slot)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept, and take over."""
        await super().startup([])
        kind: Any = self.config.http_protocol_class
        line = partial(kind, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        self.servers = [Listening(each, line) for each in sockets or []]  # type: ignore[misc]
        left, self._left = self._left, []
        if self._journal is not None:
            await take_over(left, self._journal, partial(self._line, self._journal))
        else:
            for connection in left:  # nothing is known of it
                connection.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Have all that was accepted among those that are told to end."""
        for each in self.servers:
            each.close()
            await each.wait_closed()
        await super().shutdown(sockets)


def _beat(box: BlackBox) -> None:
    """Tell the supervisor that the loop turns."""
    box.beat(time.monotonic(), 0)
    asyncio.get_running_loop().call_later(_BEAT_S, _beat, box)


if __name__ == "__main__":
    main()
