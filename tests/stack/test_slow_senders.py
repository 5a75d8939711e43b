"""Callers that stop in the middle of a request, over real sockets: each is answered and let go, and who is only slow is not."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from pathlib import Path

import pytest

from tests.stack.conftest import Server, picture, wait_for

PNG = picture(1, 2, 3)
FORM = b'--b\r\nContent-Disposition: form-data; name="spec"\r\n\r\n{}\r\n--b--\r\n'
HEAD = "{call} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media}\r\nContent-Length: {length}\r\n\r\n"
MEDIA = {
    "POST /predict/image": "image/png",
    "POST /finetune": "multipart/form-data; boundary=b",
    "PUT /models/toy/traffic": "application/json",
}


@pytest.fixture(scope="module")
def server(toys: Path) -> Iterator[Server]:
    with Server(toys, HEARTH_MODELS="toy", HEARTH_FRONTENDS="1", HEARTH_SILENCE_S="1") as server:
        yield server


@pytest.fixture
def caller(server: Server) -> Iterator[socket.socket]:
    with called(server) as caller:
        yield caller


def called(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(call: str = "POST /predict/image", length: int = len(PNG)) -> bytes:
    return HEAD.format(call=call, length=length, media=MEDIA[call.partition("?")[0]]).encode()


def everything(caller: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    came = b""
    while part := caller.recv(65536):
        came += part
    return came


def status_of(caller: socket.socket) -> int:
    """Of the next answer, which is read to its end."""
    answer = HTTPResponse(caller)
    answer.begin()
    answer.read()
    return answer.status


def told(answer: bytes) -> str:
    """The detail of a 408 that closes the connection."""
    first, _, body = answer.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 408 Request Timeout\r\n"), answer
    assert b"connection: close" in first.lower()
    assert b"content-type: application/problem+json" in first.lower()
    problem = json.loads(body)
    assert (problem["code"], problem["status"]) == ("request_timeout", 408)
    return str(problem["detail"])


def nothing_comes(caller: socket.socket, seconds: float) -> None:
    caller.settimeout(seconds)
    with pytest.raises(TimeoutError):
        caller.recv(1)
    caller.settimeout(20)


@pytest.mark.parametrize("call", MEDIA)
def test_half_a_body_is_ended_after_the_silence(caller: socket.socket, call: str):
    caller.sendall(head(call, 1000) + b"--b\r\n")
    assert "the body did not come for 1 s" in told(everything(caller))


def test_timeout_ms_covers_the_reading_of_the_body(server: Server, caller: socket.socket):
    caller.sendall(head("POST /predict/image?timeout_ms=300") + PNG[:10])
    assert "timeout_ms" in told(everything(caller))
    wait_for(lambda: server.metric('hearth_errors_total{code="request_timeout",endpoint="/predict/image"}'))


def test_half_a_header_is_ended(caller: socket.socket):
    caller.sendall(head()[:40])
    assert "the header did not come for 1 s" in told(everything(caller))


def test_half_a_header_after_an_answer_is_ended_and_a_byte_now_and_then_does_not_help(caller: socket.socket):
    caller.sendall(head() + PNG)
    assert status_of(caller) == 200
    for byte in (b"P", b"O", b"S"):
        caller.sendall(byte)
        nothing_comes(caller, 0.2)
    assert "the header did not come for 1 s" in told(everything(caller))


def test_a_connection_without_a_word_is_closed_without_one(caller: socket.socket):
    assert everything(caller) == b""


def test_the_rest_of_a_body_that_was_refused_early_holds_no_connection(caller: socket.socket):
    caller.sendall(head("POST /predict/image?colour=red", 1000))
    assert status_of(caller) == 422
    caller.sendall(b"x")
    assert everything(caller) == b""


@pytest.mark.parametrize(
    ("call", "body", "status"), [("POST /predict/image", PNG, 200), ("POST /finetune", FORM, 422)], ids=["picture", "form"]
)
def test_a_slow_but_steady_body_is_read_to_its_end(caller: socket.socket, call: str, body: bytes, status: int):
    """It takes longer than the silence that is allowed."""
    caller.sendall(head(call, len(body)))
    for start in range(0, 50, 10):
        caller.sendall(body[start : start + 10])
        nothing_comes(caller, 0.3)
    caller.sendall(body[50:])
    assert status_of(caller) == status


def test_bodies_have_a_limit_together_and_the_first_are_read_on(toys: Path):
    half, whole = 4_000_000, PNG + bytes(7_000_000)  # what follows a picture's end is not looked at
    request = head(length=len(whole)) + whole
    limits = {"HEARTH_MAX_BODY_MB": "8", "HEARTH_MAX_BODIES_MB": "10"}
    with Server(toys, HEARTH_MODELS="toy", HEARTH_FRONTENDS="1", **limits) as server, ExitStack() as callers:
        first, second, third = (callers.enter_context(called(server)) for _ in range(3))
        for number, caller in enumerate((first, second), 1):
            caller.sendall(request[:half])
            wait_for(lambda number=number: server.metric("hearth_requests_in_flight") == number + 1)  # and the one that asks
        third.sendall(request[:half])
        assert status_of(third) == 503
        first.sendall(request[half:])
        assert [status_of(second), status_of(first)] == [503, 200]
        first.sendall(request)
        assert status_of(first) == 200, "there is room again"


def test_an_answer_may_take_longer_than_the_silence(caller: socket.socket):
    cyan = picture(0, 255, 255)  # 4 s
    caller.sendall(head(length=len(cyan)) + cyan)
    assert status_of(caller) == 200


def test_a_header_without_end_is_refused_before_it_takes_memory(server: Server, caller: socket.socket):
    (frontend,) = (child for name, child in server.children().items() if name.startswith("hearth http"))
    before = frontend.memory_info().rss
    caller.sendall(b"GET / HTTP/1.1\r\n")
    with suppress(ConnectionError):  # it stops reading
        for _ in range(300):
            caller.sendall(b"a: b\r\n" * 16_000)
    assert frontend.memory_info().rss - before < 32 << 20
    assert server.http.get("/health/live").status_code == 200
