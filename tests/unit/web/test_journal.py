"""What a slot and the kernel's counts together say of a connection that was left behind, and how much memory slots take."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from app.web import journal as journal_module
from app.web.journal import EARLY, GONE, LET_IN, Journal, Note, Pending, Slot, judge
from app.web.seen import Seen

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the journal is Linux's")
ASKED = Note(read=500, length=100, before=900, after=900, lives=2)
ANSWERED = ASKED._replace(after=1200)
LARGE = 1 << 20


@pytest.mark.parametrize(
    ("note", "read", "written", "verdict"),
    [
        (Note(), 0, 0, Pending(0, 0)),
        (Note(), 70, 0, Pending(70, 0)),
        (ASKED, 500, 900, Pending(100, 2)),
        (ASKED, 530, 900, Pending(130, 0)),
        (ASKED._replace(blamed=3, flight=9), 500, 900, Pending(100, 2, blamed=3, before=9)),
        (ASKED._replace(blamed=3, flight=9), 530, 900, Pending(130, 0)),
        (ASKED._replace(marks=LET_IN), 500, 900, Pending(100, 2, let_in=True)),
        (ASKED._replace(marks=LET_IN), 530, 900, Pending(130, 0)),
        (ANSWERED._replace(marks=LET_IN), 500, 1200, Pending(0, 0)),
        (ASKED, 500, 901, None),
        (ASKED, 499, 900, None),
        (ASKED._replace(marks=1), 500, 900, None),
        (ANSWERED, 500, 1200, Pending(0, 0)),
        (ANSWERED, 540, 1200, Pending(40, 0)),
        (ANSWERED, 500, 900, Pending(100, 2)),
        (ANSWERED, 500, 1100, None),
        (ANSWERED._replace(marks=1), 500, 1200, Pending(0, 0)),
        (ANSWERED, 540, 900, None),
        (ANSWERED._replace(kept=300), 500, 1100, Pending(100, 0, 100)),
        (ANSWERED._replace(kept=300), 500, 1200, Pending(0, 0)),
        (ANSWERED._replace(kept=300), 540, 1100, None),
        (ASKED._replace(interim=25), 500, 875, Pending(100, 2)),
        (ASKED._replace(interim=25), 500, 880, None),
        (ANSWERED._replace(marks=EARLY), 500, 1200, None),
        (ANSWERED._replace(marks=EARLY), 500, 900, Pending(100, 2)),
        (ANSWERED._replace(marks=EARLY | GONE), 500, 900, None),
    ],
    ids=[
        *(
            "new",
            "new, its first bytes not noted",
            "asked",
            "asked, more came",
            "blamed",
            "blamed, more came",
            "let in",
            "let in, more came",
            "let in and answered",
            "half an answer",
            "less than was noted",
        ),
        *("a part of it is not here", "answered", "answered, the next came", "the answer never left", "half of it left"),
        *(
            "too large to be asked again, answered",
            "two at once",
            "half of a large answer",
            "all of it",
            "half of it, two at once",
            "told to continue, which never left",
            "half of that left",
            "answered before its end",
            "that never left",
            "that never left, and a part is not here",
        ),
    ],
)
def test_verdicts(note: Note, read: int, written: int, verdict: Pending | None):
    assert judge(note, Seen(True, read, written)) == verdict
    assert judge(note, Seen(False, read, written)) is None, "its caller has left"


def test_the_kernel_counts_what_was_read_and_written_and_sees_that_a_caller_left():
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as caller:
        ours, _ = listening.accept()
        with ours:
            assert Seen.of(ours) == Seen(True, 0, 0)
            caller.sendall(b"x" * 100)
            assert ours.recv(40) == b"x" * 40
            ours.sendall(b"y" * 7)
            assert Seen.of(ours) == Seen(True, 40, 7)
            caller.shutdown(socket.SHUT_WR)
            assert len(ours.recv(100)) == 60
            assert ours.recv(100) == b""
            assert not Seen.of(ours).alive


@pytest.fixture
def journal() -> Journal:
    return Journal(2 * LARGE)


def held(journal: Journal) -> int:
    return os.fstat(journal.file).st_blocks * 512


def read(slot: Slot, size: int) -> None:
    while size:
        room = slot.room()[:size]
        room[:] = b"x" * len(room)
        slot.came(len(room))
        size -= len(room)


def test_a_note_that_was_half_written_when_a_frontend_was_killed_does_not_count(journal: Journal):
    slot = Slot(journal, 3)
    head = slice(3 * journal.slot_bytes, 3 * journal.slot_bytes + journal_module._HEAD_BYTES)
    for size in (50, 70, 90):
        before, noted = bytes(journal.map[head]), journal.note(3)
        read(slot, size)
        after, now = bytes(journal.map[head]), journal.note(3)
        assert noted != now
        for written in range(journal_module._WHICH + 1):
            journal.map[head] = after[:written] + before[written:]
            assert journal.note(3) == noted, f"{written} bytes of it"
        journal.map[head] = after
        slot.going(10, last=True)
    heir = Slot(journal, 3, Seen(True, 210, 30), judge(journal.note(3), Seen(True, 210, 30)))
    assert journal.note(3).read == 210 and heir.length == 0
    slot.clear()
    assert not any(journal.map[head])


def test_a_large_request_gives_its_memory_back_when_it_was_answered(journal: Journal):
    slot = Slot(journal, 3)
    read(slot, LARGE)
    assert held(journal) > LARGE
    slot.going(10, last=True)
    slot.settle()
    assert held(journal) < LARGE / 10
    read(slot, 50)
    assert judge(journal.note(3), Seen(True, LARGE + 50, 10)) == Pending(50, 0)


@pytest.mark.parametrize(("descriptor", "pages"), [(3, 1), (5000, 0)])
def test_a_connection_leaves_a_page_behind_or_nothing(journal: Journal, descriptor: int, pages: int):
    slot = Slot(journal, descriptor)
    read(slot, LARGE)
    slot.clear()
    assert held(journal) == pages * 4096
    assert journal.note(descriptor) == Note()


def test_what_a_request_is_blamed_for_stands_there_until_the_next_one_comes_and_never_where_another_connection_is(
    journal: Journal,
):
    slot = Slot(journal, 3)
    read(slot, 50)
    slot.blame(2)
    slot.blame(1)
    slot.sent(70)
    slot.sent(71)
    assert journal.note(3).blamed == slot.blamed == 2
    assert (slot.inherited, slot.before, journal.note(3).flight) == (0, 0, 70), "its other samples have nothing to do with that"
    heir = Slot(journal, 3, Seen(True, 50, 0), judge(journal.note(3), Seen(True, 50, 0)))
    assert heir.blamed == journal.note(3).blamed == 2
    assert heir.before == journal.note(3).flight == 70 and heir.inherited == 2
    heir.sent(80)
    assert not heir.several
    heir.sent(81)
    assert heir.several and (heir.before, journal.note(3).flight) == (70, 80)
    heir.blame(3)
    heir.again()
    assert (heir.inherited, heir.before, heir.several) == (3, 80, True), "as in the next process, of which it is known that"
    heir.sent(90)
    assert journal.note(3).flight == 90
    heir.sent(91)
    assert journal.note(3).flight == 90
    heir.going(10, last=True)
    heir.blame(4)
    heir.again()
    assert heir.inherited == 3
    heir.settle()
    heir.blame(3)
    read(heir, 20)
    assert not heir.several
    assert journal.note(3).blamed == heir.blamed == heir.inherited == heir.before == journal.note(3).flight == 0, (
        "one that is answered is not blamed, nor is the next one for it"
    )
    heir.clear()
    other = Slot(journal, 3)
    read(other, 7)
    heir.blame(3)
    assert journal.note(3).length == 7 and journal.note(3).blamed == 0


@pytest.mark.parametrize("inputs", [1, 2])
def test_one_input_is_all_of_its_request_however_often_it_begins_again(journal: Journal, inputs: int):
    """Several were taken for one, until the second of them was read."""
    slot = Slot(journal, 3)
    read(slot, 50)
    slot.admitted(inputs)
    for id in (70, 80):
        slot.sent(id)
        assert slot.several == (inputs > 1) and journal.note(3).flight == id
        slot.again()
        assert slot.before == id


def test_what_does_not_fit_is_not_asked_again_from_the_moment_that_it_is_read(journal: Journal):
    slot = Slot(journal, 3)
    while slot.room() is not journal.spill:
        read(slot, 1 << 16)
    assert judge(journal.note(3), Seen(True, journal.note(3).read + 1, 0)) is None


def test_room_that_was_not_used_changes_nothing(journal: Journal):
    slot = Slot(journal, 3)
    while slot.room() is not journal.spill:
        read(slot, 1 << 16)
    slot.going(10, last=True)
    slot.room()[:4] = b"next"
    assert bytes(slot.came(4)) == b"next"


def test_what_does_not_fit_is_served_but_not_asked_again(journal: Journal):
    slot = Slot(journal, 3)
    read(slot, 4 * LARGE)
    assert judge(journal.note(3), Seen(True, 4 * LARGE, 0)) is None
    assert held(journal) < 3 * LARGE
    slot.going(10, last=True)
    read(slot, 50)
    assert judge(journal.note(3), Seen(True, 4 * LARGE + 50, 10)) == Pending(50, 0)


def test_what_was_let_in_is_let_in_for_every_heir_until_its_next_byte_comes():
    journal = Journal(LARGE)
    first = Slot(journal, 5)
    first.admitted(1)
    assert not journal.note(5).marks, "nothing was asked yet"
    first.room()[:3] = b"abc"
    first.came(3)
    first.admitted(1)
    assert journal.note(5).marks == LET_IN
    for _ in range(2):
        pending = judge(journal.note(5), Seen(True, 3, 0))
        assert pending and pending.let_in
        heir = Slot(journal, 5, Seen(True, 3, 0), pending)
        assert heir.let_in
    heir.room()[:3] = b"def"
    heir.came(3)
    assert not heir.let_in and not journal.note(5).marks
    heir.admitted(1)
    heir.going(9, last=True)
    assert judge(journal.note(5), Seen(True, 6, 9)) == Pending(0, 0)
    heir.room()[:3] = b"ghi"
    heir.came(3)
    assert journal.note(5).length == 3 and not journal.note(5).marks, "the next one was not"
