"""A connection whose process is killed at every moment that there is: its caller gets every answer, whole and once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings, strategies as st
from starlette.responses import Response
from uvicorn.server import ServerState

from app.web.journal import Journal, Note, Pending, Slot, judge
from app.web.line import Line, Noted
from app.web.seen import Seen

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the journal is Linux's")
DESCRIPTOR = 7
LARGE = b"y" * 200_000
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def request(body: bytes, path: bytes = b"/predict/image") -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (path, len(body), body)


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


async def echo(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Head, then body, some turns of the loop later; a refusal comes at once."""
    if scope["path"] == "/refused":
        await send({"type": "http.response.start", "status": 429, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await asyncio.sleep(0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Refusing:
    """As `echo`, but for what it refuses at once."""

    __call__ = staticmethod(echo)

    def sketches(self, _: Any) -> bool:
        return True

    def at_once(self, _: Any, body: bytearray) -> Response | None:
        return Response(b"no", 503) if body == b"refuse" else None


NO = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno"


class Kernel:
    """A connection as the kernel has it, and its caller, who says the next thing when the last one was answered."""

    def __init__(self, journal: Journal, script: list[tuple[bytes, bytes]], fatal: list[int]) -> None:
        """`script`: what is sent, and what is to be the answer. `fatal`: at which of its moments each process is killed; the ones
        after these live on.
        """
        self.journal = journal
        self.unread, self.sent, self.read = b"", b"", 0
        self.dead, self.deaths = False, 0
        self.wanted = b""
        self._script, self._fatal = list(script), list(fatal)
        self._left = b""
        self._moments = 0

    def talk(self) -> bool:
        """Whether there is more to say, or to hear."""
        if self.heard() == self.wanted and self._script:
            said, answer = self._script.pop(0)
            self.unread += said
            self.wanted += answer
        return bool(self.unread or self._script) or self.heard() != self.wanted

    def heard(self) -> bytes:
        """Whether to continue may be told again by an heir."""
        return self.sent.replace(CONTINUE * 2, CONTINUE)

    def moment(self) -> None:
        self._moments += 1
        if self._moments in self._fatal[:1] and not self.dead:
            self.die()

    def die(self) -> None:
        self.dead, self._left = True, bytes(self._slot())

    def _slot(self) -> memoryview:
        start = DESCRIPTOR * self.journal.slot_bytes
        return self.journal.view[start : start + self.journal.slot_bytes]

    @property
    def note(self) -> Note:
        return self.journal.note(DESCRIPTOR)

    def inherited(self) -> Slot:
        """What the dead one would have done after its death has not happened."""
        self._slot()[:] = self._left
        self.dead, self._moments, self._fatal = False, 0, self._fatal[1:]
        self.deaths += 1
        seen = Seen(True, self.read, len(self.sent))
        pending = judge(self.note, seen)
        assert pending is not None, "it was let go"
        return Slot(self.journal, DESCRIPTOR, seen, pending)


class Socket:
    """A transport over it, of one process. The kernel takes up to 150,000 bytes at once."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.closing = False
        self.unsent = b""

    def write(self, data: bytes) -> None:
        self.unsent += data
        self.push()

    def push(self) -> None:
        self.kernel.moment()
        if not self.kernel.dead:
            self.kernel.sent, self.unsent = self.kernel.sent + self.unsent[:150_000], self.unsent[150_000:]
        self.kernel.moment()

    def get_write_buffer_size(self) -> int:
        return len(self.unsent)

    def get_extra_info(self, name: str) -> Any:
        return self if name == "socket" else None

    def fileno(self) -> int:
        return DESCRIPTOR

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def getpeername(self) -> tuple[str, int]:
        return "caller", 1

    getsockname = getpeername


async def live(kernel: Kernel, slot: Slot | None, piece: int) -> None:
    """A process's life: it reads what there is, in pieces, until it is killed or all is said."""
    config = uvicorn.Config(Refusing(), log_config=None, access_log=False, proxy_headers=False)  # type: ignore[arg-type]  # as ours
    connection = Noted(config, ServerState(), {})
    line, transport = Line(connection, kernel.journal, slot), Socket(kernel)
    line.connection_made(transport)  # type: ignore[arg-type]  # a fake
    while not kernel.dead and kernel.talk():
        if transport.unsent:
            transport.push()
        if kernel.unread:
            room = line.get_buffer(-1)
            size = min(len(room), len(kernel.unread), piece)
            room[:size], kernel.unread = kernel.unread[:size], kernel.unread[size:]
            kernel.read += size
            kernel.moment()
            if not kernel.dead:
                line.buffer_updated(size)
                kernel.moment()
        await asyncio.sleep(0)
    connection.connection_lost(RuntimeError("dead"))  # ends its tasks and timers
    await asyncio.gather(*connection.tasks)


async def ask(journal: Journal, bodies: list[bytes], fatal: list[int], piece: int = 1 << 20) -> int:
    """How many processes died until all was answered, rightly."""
    return await perform(journal, [(request(body), answer(body)) for body in bodies], fatal, piece)


async def perform(journal: Journal, script: list[tuple[bytes, bytes]], fatal: list[int], piece: int = 1 << 20) -> int:
    kernel, slot = Kernel(journal, script, fatal), None
    Slot(journal, DESCRIPTOR).clear()
    while await live(kernel, slot, piece) or kernel.dead:
        slot = kernel.inherited()
    assert kernel.heard() == kernel.wanted
    return kernel.deaths


@pytest.fixture(scope="module")
def journal() -> Journal:
    return Journal(1 << 19)


@pytest.mark.parametrize("piece", [30, 1 << 20], ids=["in pieces", "whole"])
async def test_a_death_at_any_moment_costs_no_answer(journal: Journal, piece: int):
    bodies = [b"", b"x" * 40, b"", b"z" * 50]
    deaths = [await ask(journal, bodies, [fatal], piece) for fatal in range(1, 60)]
    assert sum(deaths) > 10
    assert deaths[-1] == 0, "each moment was tried"


@pytest.mark.parametrize("piece", [30, 1 << 20], ids=["in pieces", "whole"])
async def test_a_death_at_any_moment_costs_no_refusal_that_comes_at_once(journal: Journal, piece: int):
    script = [(request(b"refuse"), NO), (request(b"x"), answer(b"x"))]
    deaths = [await perform(journal, script * 3, [fatal], piece) for fatal in range(1, 60)]
    assert sum(deaths) > 10
    assert deaths[-1] == 0


async def test_a_death_at_any_moment_of_large_requests_costs_no_answer(journal: Journal):
    deaths = [await ask(journal, [LARGE, b"x", LARGE], [fatal]) for fatal in range(1, 40)]
    assert sum(deaths) > 10
    assert deaths[-1] == 0


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fatal=st.lists(st.integers(1, 12), max_size=6), piece=st.sampled_from([30, 1 << 20]))
async def test_nor_do_many_deaths_in_a_row(journal: Journal, fatal: list[int], piece: int):
    await ask(journal, [b"", b"x" * 40, b"z"], fatal, piece)


async def left(journal: Journal, raw: bytes, written: bytes = b"") -> Pending | None:
    """What becomes of a connection whose process dies when it has read `raw`, and written so much."""
    kernel = Kernel(journal, [], [])
    kernel.unread, kernel.wanted = raw, written
    await live(kernel, None, 1 << 20)
    assert kernel.sent == written
    return judge(kernel.note, Seen(True, kernel.read, len(kernel.sent)))


async def test_a_request_that_waits_to_be_told_to_continue_goes_on(journal: Journal):
    head = b"POST /predict/image HTTP/1.1\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n"
    assert await left(journal, head, CONTINUE) == Pending(len(head), 0)


async def test_a_death_at_any_moment_costs_no_answer_of_those_who_wait_to_be_told_to_continue(journal: Journal):
    head = b"POST /predict/image HTTP/1.1\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n"
    script = [(head, CONTINUE), (b"first", answer(b"first")), (head, CONTINUE), (b"other", answer(b"other"))]
    deaths = [await perform(journal, script, [fatal]) for fatal in range(1, 60)]
    assert sum(deaths) > 10
    assert deaths[-1] == 0


async def test_what_a_request_was_blamed_for_is_known_to_the_process_after(journal: Journal):
    kernel, seen = Kernel(journal, [], []), list[Any]()

    async def blaming(scope: Any, *_: Any) -> None:
        seen.append(scope["state"]["past"].inherited)
        scope["state"]["past"].blame(2)
        await asyncio.Event().wait()

    kernel.unread = request(b"x")
    for slot in (None, kernel):
        connection = Noted(uvicorn.Config(blaming, log_config=None, access_log=False), ServerState(), {})
        line = Line(connection, journal, slot and kernel.inherited())
        line.connection_made(Socket(kernel))  # type: ignore[arg-type]  # a fake
        if slot is None:
            line.get_buffer(-1)[: len(kernel.unread)] = kernel.unread
            kernel.read += len(kernel.unread)
            line.buffer_updated(len(kernel.unread))
        await asyncio.sleep(0)
        kernel.die()
        for task in connection.tasks:
            task.cancel()
        await asyncio.wait(connection.tasks)
    assert seen == [0, 2]


async def test_an_idle_connection_outlives_any_number_of_processes(journal: Journal):
    kernel, slot = Kernel(journal, [], []), None
    Slot(journal, DESCRIPTOR).clear()
    for _ in range(8):
        await live(kernel, slot, 1 << 20)
        kernel.die()
        slot = kernel.inherited()
    assert kernel.sent == b""
    kernel.unread, kernel.wanted = request(b"one"), answer(b"one")
    await live(kernel, slot, 1 << 20)
    assert kernel.sent == answer(b"one")


@pytest.mark.parametrize("early", [0, 1], ids=["none of it", "a part of it"])
async def test_a_refusal_that_does_not_wait_for_the_body_costs_the_next_request_nothing(journal: Journal, early: int):
    refused, refusal = request(b"body", b"/refused"), b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"
    begun, rest = refused[: early - 4], refused[early - 4 :]
    Slot(journal, DESCRIPTOR).clear()
    for script, verdict in [
        ([(begun, refusal)], None),
        ([(begun, refusal), (rest, b"")], Pending(0, 0)),
        ([(begun, refusal), (rest, b""), (request(b"one"), b"")], Pending(len(request(b"one")), 0)),
        ([(begun, refusal), (rest, b""), (request(b"one"), answer(b"one"))], Pending(0, 0)),
        ([(begun, refusal), (rest + request(b"one"), b"")], None),
        ([(begun, refusal), (rest + request(b"one"), answer(b"one"))], Pending(0, 0)),
    ]:
        kernel = Kernel(journal, script, [])
        await live(kernel, None, 1 << 20)
        assert kernel.sent == kernel.wanted
        assert judge(kernel.note, Seen(True, kernel.read, len(kernel.sent))) == verdict
        Slot(journal, DESCRIPTOR).clear()


async def test_two_requests_at_once_are_answered_but_not_asked_again(journal: Journal):
    both = request(b"one") + request(b"two")
    assert await left(journal, both, answer(b"one")) is None
    assert await left(journal, both, answer(b"one") + answer(b"two")) == Pending(0, 0)
