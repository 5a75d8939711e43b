"""Callers who read or write as slowly as they can, beside good ones."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from http.client import HTTPResponse
from pathlib import Path

import faults
from callers import Callers

from tests.chaos.conftest import Chaos, questions
from tests.stack.conftest import Server, wait_for

ASK = b"GET /docs/static/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"  # over a megabyte, which no socket holds
HALF = b"POST /predict/image HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nhalf"


def stranger(server: Server) -> socket.socket:
    """A connection whose end reads little at once."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    found.settimeout(20)
    found.connect((host, int(port)))
    return found


def test_slow_readers_and_slow_writers_hold_nobody_up_and_are_let_go(frail: Path, chaos: Chaos):
    settings = {"HEARTH_MODELS": "toy", "HEARTH_FRONTENDS": "1", "HEARTH_SILENCE_S": "2"}
    with Server(frail, **settings) as server, contextlib.ExitStack() as held:
        known = questions(server)
        (frontend,) = faults.processes(server.process.pid, "http")
        at_rest = frontend.num_fds()
        with Callers(server.url, known) as callers:
            callers.more()
            for number in range(chaos.times(20, 200)):
                one = held.enter_context(stranger(server))
                one.sendall(ASK if number % 2 else HALF)
            wait_for(lambda: frontend.num_fds() > at_rest + 10)
            callers.more()
            wait_for(lambda: frontend.num_fds() <= at_rest + 4, 120)  # 4: the callers
        steady = held.enter_context(stranger(server))
        steady.sendall(ASK)
        answer = HTTPResponse(steady)
        answer.begin()
        over, read = threading.Event(), 0
        slowly_until = time.monotonic() + 5
        while part := answer.read1(16384):  # for longer than the silence that is allowed, and always a little
            read += len(part)
            over.wait(0.05 if time.monotonic() < slowly_until else 0)
        assert read == int(answer.headers["content-length"]) > 1_000_000
    chaos.note("slow readers and slow writers", callers.counts)
