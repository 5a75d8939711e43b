"""Connections are accepted one by one, and none is hung up on because there is no descriptor for it."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from app.web import listening
from app.web.listening import Listening

Run = Callable[[Coroutine[Any, Any, None]], None]


class Greeting(asyncio.Protocol):
    """Says something to whoever comes."""

    made = 0

    def connection_made(self, transport: Any) -> None:
        type(self).made += 1
        transport.write(b"hello")
        transport.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """On uvloop, whose way to accept this stands in for, and on asyncio's own, which stands in for uvloop."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


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


def test_who_comes_while_there_is_no_descriptor_waits(
    home: socket.socket, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Nor may there be room to look for one: that is tried again, too."""

    class Scarce(socket.socket):
        """None for the first two connections."""

        refused = 0

        def accept(self) -> Any:
            type(self).refused += 1
            if self.refused <= 2:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def scenario() -> None:
        server = Listening(scarce, Greeting)
        looks, begin = iter([OSError(errno.ENOMEM, "Cannot allocate memory")]), server._loop.add_reader

        class Loop:
            """Fails the first time that it shall look again."""

            def __getattr__(self, name: str) -> Any:
                return getattr(asyncio.get_running_loop(), name)

            def add_reader(self, *what: Any) -> None:
                if error := next(looks, None):
                    raise error
                begin(*what)

        server._loop = Loop()  # type: ignore[assignment]
        with caller_of(home) as one, caller_of(home) as other:
            assert [await hears(one), await hears(other)] == [b"hello"] * 2
        assert next(looks, None) is None
        server.close()

    monkeypatch.setattr(listening, "_AGAIN_S", 0.001)
    with Scarce(fileno=home.dup().detach()) as scarce:
        run(scenario())
    assert Scarce.refused >= 4 and caplog.text.count("nobody more can be let in") == 2


def test_a_caller_that_another_process_took_is_no_error(home: socket.socket, run: Run, caplog: pytest.LogCaptureFixture):
    async def scenario() -> None:
        server = Listening(home, Greeting)
        server._accept()
        assert not server._begun and not caplog.text
        server.close()

    run(scenario())


def test_who_was_accepted_has_its_protocol_when_the_server_is_closed(
    home: socket.socket, run: Run, monkeypatch: pytest.MonkeyPatch
):
    async def scenario() -> None:
        server = Listening(home, Greeting)
        with caller_of(home) as caller, caller_of(home) as late:
            server._accept()
            server.close()
            assert not Greeting.made
            await server.wait_closed()
            assert Greeting.made == 1
            assert await hears(caller) == b"hello"
            with pytest.raises(BlockingIOError):
                late.recv(1)

    monkeypatch.setattr(Greeting, "made", 0)
    run(scenario())


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "Cannot allocate memory"), TypeError("three arguments are missing")])
def test_a_connection_that_cannot_begin_ends_no_other_and_nobody_waits(
    home: socket.socket, run: Run, caplog: pytest.LogCaptureFixture, error: Exception
):
    fails = iter([error])

    def line() -> Greeting:
        if error := next(fails, None):
            raise error
        return Greeting()

    async def scenario() -> None:
        server = Listening(home, line)
        with caller_of(home) as one, caller_of(home) as other:
            assert [await hears(one), await hears(other)] == [b"", b"hello"]
        server.close()

    run(scenario())
    assert "a connection was lost as it began" in caplog.text
