"""Which requests may be answered by two processes, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
from typing import Any

import pytest

from app.web import heirs
from app.web.journal import Journal, Note, Slot


def is_harmless(request: bytes) -> bool:
    return heirs.is_harmless(request[: 1 << 16], len(request))


@pytest.mark.parametrize(
    "line",
    [
        *("GET /models", "HEAD /", "PUT /models/toy/traffic", "POST /predict/image?top_k=3", "POST /embed/text"),
        *("POST /transcribe", "POST /models/toy@2/load", "POST /models/toy/unload"),
    ],
)
def test_what_changes_nothing_more_the_second_time_is_asked_again(line: str):
    assert is_harmless(f"{line} HTTP/1.1\r\nhost: x\r\n\r\nbody".encode())


@pytest.mark.parametrize(
    "line",
    [
        *("POST /finetune", "POST /finetune/1/cancel", "POST /finetune/1/resume", "DELETE /finetune/1"),
        *("POST /models/toy/rollback", "POST /models/toy/%72ollback", "POST /models/load/rollback", "nonsense"),
        *("POST http://x/finetune", "POST //finetune", "\r\nPOST /finetune", "\r\n\r\nPOST /finetune"),
    ],
)
def test_the_others_are_not(line: str):
    assert not is_harmless(f"{line} HTTP/1.1\r\nhost: x\r\n\r\nbody".encode())


def test_empty_lines_before_a_request_change_nothing():
    assert is_harmless(b"\r\n\r\nGET /models HTTP/1.1\r\nhost: x\r\n\r\n")


def test_half_a_data_set_has_done_nothing_yet_and_a_whole_one_has():
    head = b"POST /finetune HTTP/1.1\r\nhost: x\r\nContent-Length: 9\r\n\r\n"
    assert is_harmless(head + b"12345678")
    assert not is_harmless(head + b"123456789")
    assert not is_harmless(head.replace(b"/finetune", b"/finetune/1/cancel") + b"1")


def test_a_header_whose_end_is_out_of_sight_may_have_done_something():
    header = b"POST /finetune/1/cancel HTTP/1.1\r\nhost: x\r\n" + b"x-padding: " + b"x" * (1 << 16) + b"\r\n\r\n"
    assert not is_harmless(header)


@pytest.mark.skipif(sys.platform != "linux", reason="the journal is Linux's")
def test_a_note_that_reaches_into_anothers_slot_is_not_believed():
    journal = Journal(1 << 16)
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as caller:
        ours, _ = listening.accept()
        with ours:
            caller.sendall(request := b"GET / HTTP/1.1\r\n\r\n")
            slot = Slot(journal, ours.fileno())
            slot.came(ours.recv_into(slot.room()))
            assert bytes(slot.waiting()) == request
            lost: list[str] = []
            assert heirs._slot(journal, ours, lost) is not None and not lost
            slot.length = journal.slot_bytes
            slot._write()
            assert heirs._slot(journal, ours, lost) is None
            assert f"length={journal.slot_bytes}" in lost[0], "its caller is here"
            assert journal.note(ours.fileno()) == Note()


@pytest.mark.skipif(sys.platform != "linux", reason="the journal is Linux's")
async def test_a_connection_that_cannot_be_taken_over_is_closed_and_forgotten_and_ends_no_other(monkeypatch: pytest.MonkeyPatch):
    journal, there = Journal(1 << 16), asyncio.get_running_loop().connect_accepted_socket
    with socket.create_server(("127.0.0.1", 0)) as listening, contextlib.ExitStack() as callers:
        left = []
        for _ in range(2):
            caller = callers.enter_context(socket.create_connection(listening.getsockname()))
            left.append(callers.enter_context(listening.accept()[0]))
            caller.sendall(b"GET / HTTP/1.1\r\n\r\n")
            slot = Slot(journal, left[-1].fileno())
            slot.came(left[-1].recv_into(slot.room()))
        number = left[0].fileno()

        async def connect(protocol: Any, connection: socket.socket) -> None:
            if connection is left[0]:
                raise OSError(errno.EMFILE, "Too many open files")
            transport, _ = await there(asyncio.Protocol, connection)
            callers.callback(transport.close)

        monkeypatch.setattr(asyncio.get_running_loop(), "connect_accepted_socket", connect, raising=False)
        assert journal.note(number) != Note()
        await heirs.take_over(left, journal, lambda _: None)  # type: ignore[arg-type, return-value]
        assert journal.note(number) == Note()
        assert left[0].fileno() == -1 and left[1].fileno() != -1


@pytest.mark.parametrize("begun", [b"", b"P", b"POST /finetune HTTP/1.1\r\nhost: x\r\n"])
def test_a_header_that_is_half_here_has_done_nothing_yet(begun: bytes):
    assert is_harmless(begun)
