"""A keeper that cannot fork as it needs to, and which descriptors are callers'."""

from __future__ import annotations

import os
import select
import socket
import struct

import faults
import pytest

from app.web import keeper


class Ended(BaseException):
    """Instead of the process's end."""


def test_where_descriptors_cannot_be_shared_the_keeper_is_the_frontend(monkeypatch: pytest.MonkeyPatch):
    def refuse() -> int:
        raise OSError(1, "not permitted")

    def end(status: int) -> None:
        raise Ended(status)

    lives: list[tuple[int, int]] = []

    def live(number: int, accepting: socket.socket | None, left: list[socket.socket]) -> None:
        assert accepting is listening
        lives.append((number, len(left)))
        for one in left:
            one.close()

    monkeypatch.setattr(keeper, "fork_beside", refuse)
    monkeypatch.setattr(keeper, "die_with_parent", lambda _: None)
    monkeypatch.setattr(os, "_exit", end)
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listening:
        before = keeper._descriptors()
        monkeypatch.setattr(keeper, "_descriptors", lambda: next(found))
        with socket.create_connection(listening.getsockname()):
            caller, _ = listening.accept()  # of a frontend that the keeper could still fork
            found = iter([before, before | {caller.detach()}])
            ours.sendall(b"3\n")
            with pytest.raises(Ended, match="0"):
                keeper.keep(os.getppid(), theirs, listening, live)
        assert int(ours.recv(99)) == os.getpid()
    assert lives == [(3, 1)]


def test_a_keeper_whose_frontend_closed_what_all_listen_on_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keeper, "fork_beside", lambda: pytest.fail("a frontend that nobody can reach"))
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as other:
        os.dup2(other.fileno(), listening.fileno())  # another one has its number since
        ours.sendall(b"3\n")
        keeper.keep(os.getppid(), theirs, listening, lambda *_: None)


def test_what_lists_the_descriptors_is_none_of_them():
    found = keeper._descriptors()
    with socket.socket() as next_one:
        assert next_one.fileno() not in found, "the first of a frontend's was taken for the keeper's, and never closed"


def test_callers_are_connections_to_where_we_listen():
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_connection(listening.getsockname()) as out,
        listening.accept()[0] as caller,
        socket.create_connection(other.getsockname()),
        other.accept()[0] as others,
        socket.socket(socket.AF_UNIX) as local,
        socket.create_connection(listening.getsockname()) as leaving,
        listening.accept()[0] as left,
    ):
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        leaving.close()  # by a reset: its other end has no peer, and what the journal has of it must be cleared
        select.select([left], [], [], 10)
        found = (caller, left, listening, out, others, local)
        assert [keeper.is_caller(one, listening.getsockname()) for one in found] == [True, True, False, False, False, False]


def test_descriptors_are_known_where_none_is_left_to_list_them_by():
    before = keeper._descriptors()
    with faults.descriptors_below(3):
        assert keeper._descriptors() == before
