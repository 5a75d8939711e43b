"""Callers who read or write as slowly as they can, beside good ones."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import faults
from callers import Callers

from tests.chaos.conftest import Chaos, questions
from tests.stack.conftest import Server, picture, wait_for

FILES = 256  # pictures in one request: an answer that no socket holds
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%d.png"\r\nContent-Type: image/png\r\n\r\n%s\r\n'
HEAD = b"POST /predict/image?top_k=16 HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n"


def large() -> bytes:
    """A request, as bytes on the wire."""
    body = b"".join(PART % (number, picture(number % 200, 7, 9)) for number in range(FILES)) + b"--b--\r\n"
    return HEAD % len(body) + body


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
        known, raw = questions(server), large()
        (frontend,) = faults.processes(server.process.pid, "http")
        at_rest = frontend.num_fds()
        with Callers(server.url, known) as callers:
            callers.more()
            for number in range(chaos.times(20, 200)):
                one = held.enter_context(stranger(server))
                one.sendall(raw if number % 2 else raw[:3000])
            wait_for(lambda: frontend.num_fds() > at_rest + 10)
            callers.more()
            wait_for(lambda: frontend.num_fds() <= at_rest + 4, 120)  # 4: the callers
        steady = held.enter_context(stranger(server))
        steady.sendall(raw)
        read, over = b"", threading.Event()
        while not read.endswith(b"]}"):  # for longer than the silence that is allowed, and always a little
            part = steady.recv(16384)
            assert part, read[-100:]
            read += part
            over.wait(0.1)
        assert read.startswith(b"HTTP/1.1 200") and read.count(b'"predictions"') == FILES
    chaos.note("slow readers and slow writers", callers.counts)
