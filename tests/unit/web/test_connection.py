"""What a connection reads of a header, and of what follows a body in chunks: up to a limit, however it comes."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from starlette.responses import Response
from uvicorn.server import ServerState

from app.web.connection import _MOST_HEADER, Connection
from tests.unit.web.test_line import echo, request

GET = b"GET / HTTP/1.1\r\nhost: x\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n"
SMALL = b"a: b\r\n"
PIECE = 1000
HEADS = [(b"date", b"now")]  # of every answer


class Transport:
    """Keeps what is written."""

    def __init__(self, socket: socket.socket | None = None) -> None:
        self.sent, self.closed, self.aborted = b"", False, False
        self._socket = socket

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> Any:
        return self._socket if name == "socket" else None

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


async def held(_: Any, receive: Callable[..., Any], __: Callable[..., Any]) -> None:
    """Answers nothing until the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Refusing:
    """Refuses at once what says so; the rest goes the usual way."""

    def __init__(self, usual: Any = echo, close: bool = False) -> None:
        self.usual, self.close = usual, close
        self.begun = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun.set()
        await self.usual(scope, receive, send)

    def sketches(self, _: Any) -> bool:
        return True

    def at_once(self, _: Any, body: bytearray) -> Response | None:
        return Response(b"no", 503, {"Connection": "close"} if self.close else None) if body == b"refuse" else None


def made(app: Any, transport: Transport) -> Connection:
    config = uvicorn.Config(app, log_config=None, access_log=False, proxy_headers=False)
    state = ServerState()
    state.default_headers = HEADS
    connection = Connection(config, state, {})
    connection.connection_made(transport)  # type: ignore[arg-type]
    return connection


async def feed(data: bytes, app: Any = echo, piece: int = PIECE) -> tuple[Transport, int]:
    """What a connection says to it, and how much of it is read."""
    transport = Transport()
    connection = made(app, transport)
    read = 0
    while read < len(data) and not transport.closed:
        connection.data_received(data[read : read + piece])
        read += piece
        for _ in range(5):
            await asyncio.sleep(0)
    connection.connection_lost(None)
    await asyncio.gather(*connection.tasks)
    return transport, read


@pytest.mark.parametrize("fields", [SMALL * 90_000, b"a: " + b"x" * 500_000], ids=["many fields", "one field"])
async def test_a_header_is_read_up_to_its_limit(fields: bytes):
    transport, read = await feed(GET + fields)
    assert transport.sent.startswith(b"HTTP/1.1 413 ") and b"64 KiB" in transport.sent
    assert b"connection: close" in transport.sent.lower()
    assert _MOST_HEADER < read <= _MOST_HEADER + PIECE


async def test_neither_a_request_line_nor_empty_lines_are_read_without_end():
    for endless in (b"GET /" + b"a" * 500_000, b"\r\n" * 250_000):
        transport, read = await feed(endless)
        assert transport.sent.startswith(b"HTTP/1.1 413 ")
        assert read <= _MOST_HEADER + PIECE


@pytest.mark.parametrize("rest", [b"0\r\n" + SMALL * 90_000, b"2;" + b"x" * 500_000], ids=["trailers", "extension"])
async def test_what_surrounds_a_body_in_chunks_is_read_up_to_the_limit(rest: bytes):
    transport, read = await feed(CHUNKED + rest)
    assert transport.sent.startswith(b"HTTP/1.1 413 ")
    assert read <= _MOST_HEADER + 2 * PIECE


async def test_a_header_too_large_behind_a_request_that_waits_for_its_answer_ends_the_connection():
    transport, read = await feed(GET + b"\r\n" + GET + SMALL * 90_000, held)
    assert transport.aborted and not transport.sent
    assert read <= _MOST_HEADER + 2 * PIECE


@pytest.mark.parametrize("piece", [PIECE, 1 << 16, 1 << 22])
async def test_bodies_and_many_requests_are_not_taken_for_headers(piece: int):
    large = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n" + bytes(300_000)
    chunks = CHUNKED + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"
    for wanted in (large + GET + SMALL * 10_000 + b"\r\n", chunks + large, (GET + b"\r\n") * 5000):
        transport, read = await feed(wanted, piece=piece)
        assert read >= len(wanted) and b" 413 " not in transport.sent


NO = b"HTTP/1.1 503 Service Unavailable\r\ndate: now\r\ncontent-length: 2\r\n\r\nno"


async def at_once(*parts: bytes, writable: bool = True, wait_s: float = 0.0) -> tuple[bytes, int]:
    """What a connection has said when this was read and the loop has not come round, and how many tasks it has then."""
    transport, app = Transport(), Refusing(held)
    connection = made(app, transport)
    connection.flow.write_paused = not writable
    for part in parts:
        connection.data_received(part)
    if wait_s:
        await asyncio.wait_for(app.begun.wait(), wait_s)
    sent, tasks = transport.sent, set(connection.tasks)
    connection.connection_lost(None)
    for task in tasks:
        task.cancel()
    if connection.tasks:
        await asyncio.wait(connection.tasks, timeout=20)
    await asyncio.sleep(0.03)
    assert not connection.tasks, "one began after the end"
    return sent, len(tasks)


async def test_a_refusal_is_written_before_anything_else_is_read_and_the_connection_goes_on():
    whole = request(b"refuse")
    assert await at_once(whole) == (NO, 0)
    assert await at_once(whole, whole, whole) == (NO * 3, 0)
    transport, read = await feed(whole * 3, Refusing(), len(whole))
    assert (transport.sent, read) == (NO * 3, 3 * len(whole))


async def test_the_rest_of_what_may_be_refused_is_waited_for_a_moment():
    whole = request(b"refuse")
    for cut in (len(whole) - len(b"refuse"), len(whole) - 1):
        assert await at_once(whole[:cut], whole[cut:]) == (NO, 0)
        assert await at_once(whole[:cut]) == (b"", 0)
        assert await at_once(whole[:cut], wait_s=20) == (b"", 1)


async def test_who_leaves_while_the_rest_is_waited_for_is_seen_as_any_other_who_leaves():
    app = Refusing(held)
    connection = made(app, Transport())
    connection.data_received(request(b"refuse")[:-1])
    assert not app.begun.is_set()
    connection.connection_lost(None)
    await asyncio.wait_for(asyncio.gather(*connection.tasks), 20)
    assert app.begun.is_set()


UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"


@pytest.mark.parametrize("size", [b"content-length: 18\r\n", b"transfer-encoding: chunked\r\n"], ids=["length", "chunks"])
@pytest.mark.parametrize("at_a_time", [1 << 16, 1])
async def test_a_body_behind_a_wish_for_another_protocol_is_not_taken_for_the_next_request(size: bytes, at_a_time: int):
    app = Refusing(held)
    wish = b"POST / HTTP/1.1\r\nhost: x\r\n" + UPGRADE + size + b"\r\n"
    transport, read = await feed(wish + b"GET / HTTP/1.1\r\n\r\n", app, at_a_time)
    assert (
        transport.sent.startswith(b"HTTP/1.1 400 ") and transport.sent.count(b"HTTP/1.1 ") == 2 and b"without" in transport.sent
    )
    assert transport.closed and read <= max(at_a_time, len(wish)) and not app.begun.is_set()
    behind, _ = await feed(GET + b"\r\n" + wish)
    assert behind.aborted and b" 400 " not in behind.sent


async def test_a_wish_for_another_protocol_without_a_body_is_answered_as_if_there_were_none():
    transport, _ = await feed(GET + UPGRADE + b"\r\n")
    assert transport.sent.startswith(b"HTTP/1.1 200 ")


async def test_neither_a_large_body_is_waited_for_nor_one_that_waits_to_be_told_to_continue():
    large = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n" + bytes(100_000)
    polite = b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"
    for begun in (large, polite):
        assert await at_once(begun) == (b"", 1)


async def test_of_several_requests_at_once_none_is_refused_at_once():
    whole = request(b"refuse")
    for data in (whole * 2, whole + b"GET"):
        assert await at_once(data) == (b"", 1)


async def test_nothing_is_refused_at_once_to_who_does_not_read_his_answers():
    assert await at_once(request(b"refuse"), writable=False) == (b"", 1)


async def test_a_connection_whose_last_request_was_refused_at_once_is_gone_with_its_end():
    """Waiting for the garbage collector, those of a flood would be many."""
    gc.disable()
    try:
        connection = made(Refusing(held), Transport())
        connection.data_received(request(b"refuse"))
        connection.connection_lost(None)
        seen = weakref.ref(connection.cycle)
        del connection
        assert seen() is None
    finally:
        gc.enable()


async def test_what_was_sent_behind_a_request_is_gone_with_its_caller():
    """Its body, too."""
    gc.disable()
    try:
        transport = Transport()
        connection = made(held, transport)
        connection.data_received(request(b"one") * 3)
        seen = [weakref.ref(cycle) for cycle, _ in connection.pipeline]
        assert len(seen) == 2
        transport.close()
        connection.connection_lost(None)
        tasks = list(connection.tasks)
        del connection
        tasks[0].cancel()
        await asyncio.wait(tasks, timeout=10)
        del tasks
        await asyncio.sleep(0)
        assert not [cycle for cycle in seen if cycle() is not None]
    finally:
        gc.enable()


async def test_a_refusal_says_that_it_closes_where_it_does():
    old = request(b"refuse").replace(b"HTTP/1.1", b"HTTP/1.0")
    for data, app in ((old, Refusing()), (request(b"refuse"), Refusing(close=True))):
        transport, read = await feed(data + request(b"next"), app, len(data))
        assert b"connection: close" in transport.sent.lower() and transport.sent.endswith(b"no") and transport.closed
        assert read == len(data)


@pytest.mark.parametrize("timer", [Connection.timeout_keep_alive_handler, Connection._end], ids=["idle", "new"])
async def test_what_came_while_the_process_was_paused_is_read_before_its_connection_is_closed_for_silence(timer: Any):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = Transport(ours)
        connection = made(echo, transport)
        theirs.sendall(GET)
        timer(connection)
        assert not transport.closed and (connection.timeout_keep_alive_task or connection._late)
        timer(connection, True)
        assert transport.closed, "once is enough: the loop would have read it"
        transport.closed = False
        ours.recv(99)
        timer(connection)
        assert transport.closed
        connection.connection_lost(None)
