"""What a frontend does with the connections of the one before it, which was killed: it goes on with them.

Nothing of a request's answer was written: the request is taken from the journal and answered anew, if that does no harm. All of
it was: the connection waits for the next one. A part of it was: the rest is written, if it is in the journal. Whatever else it is
that a connection was in the middle of, it is closed.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from app.logs import log
from app.web.journal import Journal, Slot, judge
from app.web.line import Line
from app.web.seen import Seen

_HEADER_BYTES = 1 << 16
_TWICE = re.compile(  # what may be done twice: it changes nothing, or the second time nothing more
    rb"(?:GET|HEAD|OPTIONS|PUT) |POST /(?:(?:predict|embed)/\w+|transcribe|models/[^/? ]+/(?:un)?load)[? ]"
)
_UPLOAD, _STATED = re.compile(rb"POST /finetune[? ]"), re.compile(rb"\r\ncontent-length: *0*(\d+)", re.IGNORECASE)


async def take_over(left: Sequence[socket.socket], journal: Journal, line: Callable[[Slot], Line]) -> None:
    """Go on with what can be gone on with; close the others."""
    loop, closed = asyncio.get_running_loop(), 0
    lost: list[str] = []
    for connection in left:
        descriptor = connection.fileno()
        try:
            if slot := _slot(journal, connection, lost):
                await loop.connect_accepted_socket(partial(line, slot), connection)
                continue
        except Exception as error:  # noqa: BLE001  of one connection, which must not end the others
            log.error("a connection could not be taken over: %s", error)
            with suppress(OSError):
                Slot(journal, descriptor).clear()  # the next one with its number begins anew
        connection.close()
        closed += 1
    if left:
        log.warning("%d connections of a lost frontend go on; %d could not", len(left) - closed, closed)
    if lost:
        log.warning("%d of these have callers, such as %s", len(lost), lost[0])


def _slot(journal: Journal, connection: socket.socket, lost: list[str]) -> Slot | None:
    """The slot of a connection that can go on. If it cannot, and its caller is here, what was seen is added to `lost`."""
    descriptor = connection.fileno()
    note, seen = journal.note(descriptor), Seen.of(connection)
    pending = judge(note, seen)
    if pending and not journal.fits(pending.length):
        pending = None
    slot = Slot(journal, descriptor, seen, pending)
    if pending is None or not (pending.unsent or is_harmless(bytes(slot.waiting()[:_HEADER_BYTES]), slot.length)):
        slot.clear()
        if seen.alive:
            lost.append(f"{note}, {seen}")
        return None
    return slot


def is_harmless(request: bytes, length: int) -> bool:
    """Whether it may be answered by two processes, in turn. Half a header has done nothing yet, nor has half a data set.

    `request` is its beginning, `length` how much of it is here.
    """
    head, end, _ = request.lstrip(b"\r\n").partition(b"\r\n\r\n")
    if not end:
        return len(request) < _HEADER_BYTES
    stated = _STATED.search(head) if _UPLOAD.match(head) else None
    return _TWICE.match(head) is not None or (stated is not None and length < len(head + end) + int(stated[1]))
