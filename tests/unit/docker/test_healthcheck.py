"""What Docker is told of a container: healthy means a 200, whatever else stands in the environment."""

from __future__ import annotations

import importlib.util
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.conftest import ROOT


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """A server that answers everything with `status`: its port, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


def checked(port: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status with the server at `port`."""
    monkeypatch.setenv("HEARTH_PORT", str(port))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens there: it must not be asked
    spec = importlib.util.spec_from_file_location("healthcheck", ROOT / "docker" / "healthcheck.py")
    assert spec is not None
    assert spec.loader is not None
    healthcheck = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(healthcheck)
    status: int = healthcheck.main()
    return status


def test_ready_is_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200) as (port, asked):
        assert checked(port, monkeypatch) == 0
    assert asked == ["/health/ready"]


def test_not_ready_is_unhealthy_and_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(503) as (port, _):
        assert checked(port, monkeypatch) == 1
    assert "503" in capsys.readouterr().err


def test_nothing_listening_is_unhealthy_and_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        assert checked(taken.getsockname()[1], monkeypatch) == 1
    assert "refused" in capsys.readouterr().err
