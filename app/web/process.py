"""The frontend process: uvicorn on the inherited socket, one pool client, one app.

`python -m app.web.process FD FOLDER NUMBER`, started by the supervisor.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI

from app import logs
from app.pool.client import Client
from app.process import die_with_parent, set_name, take_short_turns
from app.settings import Settings
from app.web.connection import Connection, most_connections
from app.web.server import make_app

_GARBAGE = 10_000  # young objects before cycles among them are looked for: those of a hundred requests, a few megabytes


def main() -> None:
    """Serve until SIGTERM; then finish what was accepted and exit 0."""
    die_with_parent()
    take_short_turns()
    descriptor, folder, number = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    set_name(f"hearth http {number}")
    settings = Settings.from_environment()
    logs.configure(settings)
    with suppress(OSError):  # large uploads are kept on the disk of the home folder; /tmp may be memory
        (settings.home / "tmp").mkdir(parents=True, exist_ok=True)
        if os.access(settings.home / "tmp", os.W_OK):
            tempfile.tempdir = str(settings.home / "tmp")
    client = Client(settings, folder, number)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        client.start()
        gc.collect()
        gc.freeze()  # what was imported stays; looking through it again took a tenth of the time, tens of milliseconds at once
        gc.set_threshold(_GARBAGE)
        yield
        client.close()

    Connection.silence_s = settings.silence_s
    Connection.most = most_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    config = uvicorn.Config(
        make_app(client, settings, lifespan=lifespan, stopping=lambda: server.should_exit),
        http=Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody's word is taken for a caller's address
        timeout_graceful_shutdown=int(settings.drain_s),
        backlog=2048,
    )
    server = uvicorn.Server(config)
    server.run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main()
