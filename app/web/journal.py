"""What must outlive a frontend that is killed: the requests it has not answered, in memory that its heir has too. Knows no HTTP.

A connection is read straight into its slot, so that there is no moment at which bytes have left the kernel and are nowhere else;
and before an answer is written, the slot says how long it is. Together with the kernel's own counts of what was read from a
connection and written to it (tcp(7), TCP_INFO), a slot tells what is to be done with a connection that was left behind.
"""

from __future__ import annotations

import mmap
import os
import resource
import struct
from typing import NamedTuple

from app.web.seen import Seen

_NOTE = struct.Struct("<QQQQQIIIIQ")
# Two notes in turn, and which of them counts: one that is half written when a frontend is killed does not.
_WHICH = 2 * _NOTE.size
_HEAD_BYTES = 192
_ROOM_BYTES = 1 << 16  # read at once
_KEPT = 256  # slots of a page or two that stay ours when their connections end: giving one back and taking it again costs 26 µs
_SPARSE_BYTES = 1 << 42  # of addresses, not of memory; processes have 2 ** 47

GONE, EARLY, LET_IN = 1, 2, 4


class Note(NamedTuple):
    """What stands at the head of a slot."""

    read: int = 0
    """Bytes ever read from the connection."""
    length: int = 0
    """Those that stand in the slot: the request that is under way, as far as it is here."""
    before: int = 0
    """Bytes ever written when it came."""
    after: int = 0
    """Bytes ever written once its answer is; as long as there is none, the same as before."""
    kept: int = 0
    """Bytes of the answer that stand behind the request."""
    lives: int = 0
    """How many heirs got it since its last byte came."""
    marks: int = 0
    """GONE: it cannot be asked again; a part of it is not here, or another one follows. EARLY: it was answered before its end.
    LET_IN: it found room, and is not to be refused by those who have it next."""
    interim: int = 0
    """Of the bytes before, those of a 100 Continue, which may not have been written."""
    blamed: int = 0
    """How often it was blamed for a worker's death (`pool/flights.py`)."""
    flight: int = 0
    """The id of its first sample there."""


class Pending(NamedTuple):
    """A connection that goes on: the bytes of its slot that are to be taken for read anew, and how many heirs got them before."""

    length: int
    lives: int
    unsent: int = 0
    """The end of an answer, which is still to be written."""
    blamed: int = 0
    before: int = 0
    """What was noted as its flight."""
    let_in: bool = False


def judge(note: Note, seen: Seen) -> Pending | None:
    """What becomes of a connection that was left behind. None: it is in the middle of an answer, or worse; let it go."""
    unnoted = seen.read - note.read
    if not seen.alive or unnoted < 0:
        return None
    answered = note.after != note.before
    if answered and seen.written == note.after:
        return None if note.marks & EARLY else Pending(unnoted, 0)
    if note.kept and note.before <= seen.written < note.after and not unnoted:
        return Pending(note.length, 0, note.after - seen.written)
    silent = seen.written in (note.before, note.before - note.interim)
    if not silent or note.marks & GONE or (answered and unnoted):
        return None
    if unnoted:
        return Pending(note.length + unnoted, 0)
    return Pending(note.length, note.lives, blamed=note.blamed, before=note.flight, let_in=bool(note.marks & LET_IN))


class Journal:
    """A slot for each descriptor that this process may have; memory only where something was written."""

    def __init__(self, largest: int) -> None:
        """`largest`: bytes of a request. For Linux. Raises OSError."""
        slots = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        size = _HEAD_BYTES + largest + 2 * _ROOM_BYTES
        self.slot_bytes = min(_SPARSE_BYTES // slots, size) // mmap.PAGESIZE * mmap.PAGESIZE
        self.file = os.memfd_create("hearth journal")
        os.ftruncate(self.file, slots * self.slot_bytes)
        self.map = mmap.mmap(self.file, slots * self.slot_bytes)
        self.view = memoryview(self.map)
        self.spill = memoryview(bytearray(_ROOM_BYTES))

    def fits(self, length: int) -> bool:
        """Whether a request of so many bytes can stand in a slot."""
        return _HEAD_BYTES + length <= self.slot_bytes

    def note(self, descriptor: int) -> Note:
        """What stands there."""
        start = descriptor * self.slot_bytes
        return Note._make(_NOTE.unpack_from(self.map, start + self.which(descriptor) * _NOTE.size))

    def which(self, descriptor: int) -> int:
        """Which of the two notes there counts."""
        return self.map[descriptor * self.slot_bytes + _WHICH] & 1


class Slot:
    """The place of one connection. Its state is here as well as there; what changes is written at once."""

    __slots__ = (
        *("_after", "_before", "_marks", "_cleared", "_first", "_interim"),
        *("_journal", "_kept", "_read", "_spilling", "_start", "_which"),
        *("before", "blamed", "flight", "inherited", "length", "let_in", "lives", "several", "unsent", "written"),
    )

    def __init__(self, journal: Journal, descriptor: int, seen: Seen | None = None, pending: Pending | None = None) -> None:
        """Of a new connection, or of one that was left behind."""
        self._journal = journal
        self._start = descriptor * journal.slot_bytes
        self._which = journal.which(descriptor) if seen else 0  # as `clear` leaves it
        self._first = self._part(0, _ROOM_BYTES)
        self._read, self.written = (seen.read, seen.written) if seen else (0, 0)
        self.length, self.lives, self.unsent = (pending.length, pending.lives + 1, pending.unsent) if pending else (0, 0, 0)
        self.blamed, self.before, self.let_in = (pending.blamed, pending.before, pending.let_in) if pending else (0, 0, False)
        self.inherited = self.blamed
        self.flight, self.several = self.before, False  # until it is sent again
        if not self.length:  # nobody can have died of it
            self._begin()
        self._before = self._after = self.written
        self._marks = LET_IN if self.let_in else 0
        self._kept = self._interim = 0
        self._spilling = self._cleared = False
        if self.unsent:  # the note stays as it is
            note = journal.note(descriptor)
            self._before, self._after, self._kept, self.written = note.before, note.after, note.kept, note.after
        elif seen:
            self._write()

    def _part(self, start: int, length: int) -> memoryview:
        start += self._start + _HEAD_BYTES
        return self._journal.view[start : start + length]

    def _write(self) -> None:
        sizes = (self._read, self.length, self._before, self._after, self._kept)
        rest = (self.lives, self._marks, self._interim, self.blamed, self.flight)
        self._which ^= 1
        _NOTE.pack_into(self._journal.map, self._start + self._which * _NOTE.size, *sizes, *rest)
        self._journal.map[self._start + _WHICH] = self._which

    def waiting(self) -> memoryview:
        """The request that is under way, as far as it is here."""
        return self._part(0, self.length)

    def rest(self) -> memoryview:
        """Of its answer, what is still to be written."""
        return self._part(self.length + self._kept - self.unsent, self.unsent)

    def _fits(self, more: int) -> bool:
        return self._journal.fits(self.length + more)

    def room(self) -> memoryview:
        """Where the next bytes are to be read into."""
        if self._after != self._before:
            self.settle()
        self._spilling = self.length > 0 and not self._fits(_ROOM_BYTES)
        if self.length == 0:
            return self._first
        if self._spilling:
            self.spoil()  # before it is read: whoever comes after us has no part of that
            return self._journal.spill
        return self._part(self.length, _ROOM_BYTES)

    def came(self, size: int) -> memoryview:
        """So many bytes were read into the room; they are returned."""
        self._read += size
        self._begin()
        self._marks &= ~LET_IN
        if self._spilling:
            self._spilling = False
            came = self._journal.spill[:size]
        else:
            came = self._part(self.length, size)
            self.length += size
        self._write()
        return came

    def _begin(self) -> None:
        self.lives = self.blamed = self.inherited = self.before = self.flight = 0
        self.several = self.let_in = False

    def admitted(self, inputs: int) -> None:
        """What stands here was let in (`pool/base.py: Past`)."""
        if not self._asked():
            return
        self.several |= inputs > 1
        if not self._marks & LET_IN:
            self._marks |= LET_IN
            self._write()

    def blame(self, times: int) -> None:
        """What stands here was blamed so often (`pool/base.py: Past`)."""
        if self._asked():
            self.blamed = max(self.blamed, times)
            self._write()

    def sent(self, id: int) -> None:
        """The same: a sample of it is on its way, in this process."""
        if not self._asked():
            return
        if self.flight != self.before:
            self.several = True
        else:
            self.flight = id
            self._write()

    def again(self) -> None:
        """The same: it begins anew."""
        if self._asked():
            self.inherited, self.before = self.blamed, self.flight

    def _asked(self) -> bool:
        """Whether a request stands here whose answer has not begun to go; else it was the one before it."""
        return self._before == self._after and self.length > 0 and not self._cleared

    def spoil(self) -> None:
        """What stands here cannot be asked again."""
        if not self._marks & GONE:
            self._marks |= GONE
            self._write()

    def going(self, size: int, *, last: bool, early: bool = False, interim: bool = False) -> None:
        """So many bytes are about to be written: those before any answer, or its last ones (`early`: the request goes on)."""
        self.written += size
        if last:
            self._after = self.written
            self._marks |= EARLY if early else 0
        elif interim:
            self._before = self._after = self.written
            self._interim = size
        else:
            return
        self._write()

    def keep(self, answer: bytes) -> None:
        """All of an answer that may take its time, before it goes: heirs write what was not written."""
        if self.written == self._before and self._fits(len(answer)):
            self._part(self.length, len(answer))[:] = answer
            self._kept = len(answer)

    def settle(self) -> None:
        """The answer is the kernel's: nothing here is needed any more."""
        large = self.length + self._kept > _ROOM_BYTES
        self._marks = GONE if self._marks & EARLY else 0  # the rest of it comes: no request can be told from that
        self.length = self._kept = self._interim = 0
        self._before = self._after
        if large:
            self._write()
            self._give_back(mmap.PAGESIZE)

    def forget(self) -> None:
        """What stands here was the end of a request that was answered before it was whole."""
        self._marks = 0
        self.settle()
        self._write()

    def clear(self) -> None:
        """The connection is gone."""
        self._cleared = True
        self._journal.map[self._start : self._start + _HEAD_BYTES] = bytes(_HEAD_BYTES)
        if self._start >= _KEPT * self._journal.slot_bytes:
            self._give_back(0)
        elif self.length + self._kept > _ROOM_BYTES:
            self._give_back(mmap.PAGESIZE)

    def _give_back(self, beginning: int) -> None:
        self._journal.map.madvise(mmap.MADV_REMOVE, self._start + beginning, self._journal.slot_bytes - beginning)
