"""One connection: uvicorn's, which in addition waits for ever neither for a request that has not wholly begun nor for a reader
who does not read, and reads headers up to a limit; the idle ones make room when there is none for more; and what an application
refuses `at_once` gets its answer before anything else is read.
"""

from __future__ import annotations

import asyncio
import select
import sys
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, ClassVar

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.errors import BadInput, HearthError, TooBusy, TooLarge
from app.web.intake import silent
from app.web.problems import from_error

_CLOSES = (b"connection", b"close")
_REST_S = 0.01  # for which the rest of a request that may be refused is waited for, and …
_MOST_WAITED = 1 << 16  # … up to how many bytes
_READ_S = 0.01  # in which the loop reads what has come
_MOST_HEADER = 1 << 16  # bytes; of small fields, each takes twenty times as much memory


class Connection(HttpToolsProtocol):
    """uvicorn bounds only the pause between two requests. Bodies are bounded by `intake.py`."""

    silence_s: ClassVar[float] = 30.0
    """How long a header may take, from the connection or its first byte on."""

    most: ClassVar[int] = sys.maxsize
    """So many may be open; then the idle ones make room."""

    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # as uvicorn has it: none before the first header
    _late: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None
    _begins: tuple[RequestResponseCycle, Any] | None = None
    """A request, and who answers it, while what came with its header is read, and a moment longer where it may be refused."""
    _rest: asyncio.TimerHandle | None = None
    """Runs while the rest of that is waited for."""
    _reading = False
    _unread = 0
    """Bytes since the last header's end, or part of a body: those of a header, or of what follows a body in chunks."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """It may stay silent no longer than a header may take."""
        super().connection_made(transport)
        if len(self.connections) > self.most and not self._make_room():
            self.give_up(TooBusy("as many connections are open as there can be; come back in 1 s", retry_after_s=1.0))
            return
        self._late = self.loop.call_later(self.silence_s, self._end)

    def data_received(self, data: bytes) -> None:
        """A timer runs while a header is half here, and only then: most come whole."""
        self._unread += len(data)
        self._reading = True
        super().data_received(data)
        self._reading = False
        if self._begins is not None:
            self._begin(*self._begins)
        if self._unread > _MOST_HEADER:
            self._refuse_header()
        if self.cycle is None or self.cycle.scope is not self.scope:
            if self._late is None:
                self._late = self.loop.call_later(self.silence_s, self._end)
            return
        if self._late is not None:
            self._late.cancel()
            self._late = None
        # The rest of a body whose request was answered early. uvicorn has stopped its timer, and would start it no more.
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._reading:
            self._begins = cycle, app
        else:
            super()._start_asgi_task(cycle, app)

    def _begin(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Refuse it, if `app` does so at once; else have it answered."""
        alone = cycle.scope is self.scope and not self.pipeline  # nothing is behind it
        able = alone and not self.flow.write_paused and not self.transport.is_closing()
        answer = None
        if able and getattr(app, "at_once", None) and app.sketches(cycle.scope):
            if not cycle.more_body:
                answer = app.at_once(cycle.scope, cycle.body)
            elif len(cycle.body) <= _MOST_WAITED and not cycle.waiting_for_100_continue:  # many send head and body apart
                self._rest = self._rest or self.loop.call_later(_REST_S, self._begin_late)
                return
        self._waited()
        if answer is None:
            super()._start_asgi_task(cycle, app)
        else:
            self._refuse(cycle, answer)

    def _begin_late(self) -> None:
        if (begins := self._waited()) is not None:
            super()._start_asgi_task(*begins)

    def _waited(self) -> tuple[RequestResponseCycle, Any] | None:
        begins, self._begins = self._begins, None
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        return begins

    def _refuse(self, cycle: RequestResponseCycle, answer: Response) -> None:
        cycle.response_started = cycle.response_complete = True
        cycle.on_response = _nothing  # it would keep this alive
        if _CLOSES in answer.raw_headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            answer.raw_headers.append(_CLOSES)
        self._write(answer)
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_headers_complete(self) -> None:
        """It was not too large."""
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """What came before this was only its length."""
        self._unread = 0
        super().on_body(body)

    def _unsupported_upgrade_warning(self) -> None:
        """Of a request that asks for another protocol the parser takes no body: what follows would be taken for the next one."""
        sent = dict(self.headers)
        if b"transfer-encoding" not in sent and sent.get(b"content-length", b"0") == b"0":
            if self.cycle is not None:  # it is answered as if it had not asked; of what came behind it nothing is read
                self.cycle.keep_alive = False
            return
        if self._begins is None or self._begins[0].scope is not self.scope:  # another one comes before it
            self.transport.abort()
        else:
            self._waited()
            why = "this server speaks HTTP/1.1 alone; tell your client so, or send what has a body without the header Upgrade"
            self.give_up(BadInput(why))

    def _refuse_header(self) -> None:
        cycle = self.cycle
        if cycle is None or cycle.response_complete or (cycle.scope is self.scope and not cycle.response_started):
            why = f"the header is larger than {_MOST_HEADER >> 10} KiB, the limit; send fewer and shorter fields"
            self.give_up(TooLarge(why))
        else:  # the answer that is under way is another one
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        super().connection_lost(exc)
        self._begin_late()  # it is counted as any other whose caller left
        for cycle, _ in self.pipeline:
            cycle.on_response = _nothing  # it would keep this alive, and this the body
        self.pipeline.clear()
        for timer in (self._late, self._reader):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        """An answer waits for its reader, who may pause no longer than a sender may."""
        super().pause_writing()
        if self._reader is None:
            self._look_at_reader(self.transport.get_write_buffer_size() + 1)

    def resume_writing(self) -> None:
        """The reader has read on."""
        super().resume_writing()
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    def _look_at_reader(self, before: int) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread < before:
            self._reader = self.loop.call_later(self.silence_s, self._look_at_reader, unread)
        else:
            self.transport.abort()

    def _make_room(self) -> bool:
        """Close idle connections: those that never asked for anything first, then those that were idle for longest. A sixteenth
        of all, so that a flood looks through them seldom.
        """
        idle = sorted(
            (one.has_asked(), since, id(one), one)
            for one in self.connections
            if isinstance(one, Connection) and (since := one._idle_since())
        )
        chosen = {one.transport.get_extra_info("socket").fileno(): one for *_, one in idle[: max(1, self.most // 16)]}
        for descriptor in chosen.keys() - _asking(chosen):
            chosen[descriptor].transport.abort()  # what it has not read of its last answer it will not read
        return bool(idle)

    def has_asked(self) -> bool:
        """For anything, ever."""
        return self.cycle is not None

    def _idle_since(self) -> float | None:
        """On the loop's clock; None while a request is here. Half a header is none yet."""
        if self._late is not None and (self.cycle is None or self.cycle.response_complete):
            return self._late.when() - self.silence_s
        waits = self.timeout_keep_alive_task
        return None if waits is None else waits.when() - self.timeout_keep_alive

    def timeout_keep_alive_handler(self, last: bool = False) -> None:
        """After a pause of the process this comes before what was sent meanwhile is read: that is waited for, once."""
        if not last and self._asks():
            self.timeout_keep_alive_task = self.loop.call_later(_READ_S, self.timeout_keep_alive_handler, True)
        else:
            super().timeout_keep_alive_handler()

    def _asks(self) -> bool:
        return not self.transport.is_closing() and bool(_asking([self.transport.get_extra_info("socket").fileno()]))

    def _end(self, last: bool = False) -> None:
        self._late = None
        if self.cycle is not None and not self.cycle.response_complete:  # the request before it is still being answered
            self._late = self.loop.call_later(self.silence_s, self._end)
            return
        if not last and self._asks():  # the same
            self._late = self.loop.call_later(_READ_S, self._end, True)
            return
        if self.scope is not None:  # something came
            self.give_up(silent("the header", self.silence_s))
        self.transport.close()

    def give_up(self, error: HearthError) -> None:
        """Answer what no endpoint will answer, and close."""
        answer = from_error(error)
        answer.headers["Connection"] = "close"
        self._write(answer)
        self.transport.close()

    def _write(self, answer: Response) -> None:
        status = HTTPStatus(answer.status_code)
        head = b"".join(b"%s: %s\r\n" % pair for pair in (*self.server_state.default_headers, *answer.raw_headers))
        self.transport.write(b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (status, status.phrase.encode(), head, bytes(answer.body)))


def _nothing() -> None: ...


def _asking(descriptors: Iterable[int]) -> set[int]:
    """Those from which something has come that this loop has yet to read."""
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poller.poll(0)}


def most_connections(descriptors: int) -> int:
    """How many a process with so many descriptors may have: some are for workers, files and children."""
    return descriptors - min(256, descriptors // 2)
