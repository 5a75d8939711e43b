"""Connections are accepted one by one, and none is hung up on because there is no descriptor for it."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator

import pytest

from app.web import listening
from app.web.listening import Listening


class Greeting(asyncio.Protocol):
    """Says something to whoever comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        transport.close()


@pytest.fixture
def home() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as home:
        yield home


async def hears(caller: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(caller, 99), 30)


def caller_of(home: socket.socket) -> socket.socket:
    caller = socket.create_connection(home.getsockname())
    caller.setblocking(False)
    return caller


async def test_who_comes_while_there_is_no_descriptor_waits(
    home: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    class Scarce:
        """The socket, with none for the first two connections."""

        refused = 0

        def __getattr__(self, name: str) -> object:
            return getattr(home, name)

        def accept(self) -> object:
            self.refused += 1
            if self.refused <= 2:
                raise OSError(errno.EMFILE, "Too many open files")
            return home.accept()

    monkeypatch.setattr(listening, "_AGAIN_S", 0.001)
    scarce = Scarce()
    server = Listening(scarce, Greeting)  # type: ignore[arg-type]
    with caller_of(home) as one, caller_of(home) as other:
        assert [await hears(one), await hears(other)] == [b"hello"] * 2
    assert scarce.refused >= 4 and caplog.text.count("nobody more can be let in") == 2
    server.close()


async def test_a_caller_that_another_process_took_is_no_error(home: socket.socket, caplog: pytest.LogCaptureFixture):
    home.setblocking(False)
    server = Listening(home, Greeting)
    server._accept()
    assert not server._begun and not caplog.text
    server.close()


async def test_who_was_accepted_has_its_protocol_when_the_server_is_closed(home: socket.socket):
    server = Listening(home, Greeting)
    with caller_of(home) as caller, caller_of(home) as late:
        server._accept()
        server.close()
        await server.wait_closed()
        assert await hears(caller) == b"hello"
        with pytest.raises(BlockingIOError):
            late.recv(1)


async def test_a_connection_that_cannot_begin_ends_no_other(home: socket.socket, caplog: pytest.LogCaptureFixture):
    fails = iter([OSError(errno.ENOMEM, "Cannot allocate memory")])

    def line() -> Greeting:
        if error := next(fails, None):
            raise error
        return Greeting()

    server = Listening(home, line)
    with caller_of(home) as one, caller_of(home) as other:
        assert [await hears(one), await hears(other)] == [b"", b"hello"]
    assert "a connection was lost as it began" in caplog.text
    server.close()
