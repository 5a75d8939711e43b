"""uvicorn's server as a frontend runs it."""

from __future__ import annotations

import socket
import threading
from typing import Any

import httpx
import pytest
import uvicorn

from app.process import can_fork_beside
from app.web.connection import Connection
from app.web.journal import Journal
from app.web.process import _Server


async def answers(scope: dict[str, Any], _: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.mark.parametrize(
    "with_journal", [False, pytest.param(True, marks=pytest.mark.skipif(not can_fork_beside(), reason="Linux"))]
)
def test_it_answers_with_a_journal_and_without_one(with_journal: bool):
    """Where nobody could go on with a connection, or no memory can be shared, there is none."""
    config = uvicorn.Config(answers, http=Connection, lifespan="off", ws="none", log_config=None)
    server = _Server(config, Journal(1 << 16) if with_journal else None, [])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            with httpx.Client(base_url=f"http://{host}:{port}", timeout=30) as http:
                assert [http.get("/").text for _ in range(2)] == ["hello"] * 2
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()
