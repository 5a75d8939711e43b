"""The least that a flood costs: uvicorn's smallest application, which refuses everything with 503 and reads nothing of it.

python benchmarks/refusing.py      (on a free port; as our frontends, it asks for a core soon after it wakes up)
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from common import running
from starlette.types import Receive, Scope, Send

from app.process import take_short_turns

_HEAD = {
    "type": "http.response.start",
    "status": 503,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"2"), (b"retry-after", b"1")],
}


async def refuse(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send(_HEAD)
    await send({"type": "http.response.body", "body": b"{}"})


@contextmanager
def refusing() -> Iterator[str]:
    """Its address, in a process of its own."""
    with running([sys.executable, __file__], r"at (http://\S+)", {}) as (url, _):
        yield url


def main() -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    take_short_turns()
    plain = {"proxy_headers": False, "server_header": False, "access_log": False, "ws": "none", "lifespan": "off"}  # as ours
    uvicorn.Server(uvicorn.Config(refuse, loop="uvloop", http="httptools", log_level="critical", **plain)).run([listening])


if __name__ == "__main__":
    main()
