"""Letters one at a time: small ones on the socket, large ones in memory; nothing else is taken for one."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing

import faults
import numpy as np
import psutil
import pytest

from app.wire import parcels
from app.wire.frames import PREFIX, FrameError, pack
from app.wire.messages import Cancel, Run
from app.wire.parcels import Parcel, ParcelStream

RUN = Run(7, 1.5, 99.0, ("scores",))
LARGE = {"x": np.arange(1_000_000)}
IN_MEMORY = pytest.mark.skipif(sys.platform != "linux", reason="memory is handed over on Linux")


@pytest.fixture
def pair() -> Iterator[tuple[ParcelStream, ParcelStream]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        yield ParcelStream(ours), ParcelStream(theirs)


@pytest.mark.parametrize("arrays", [{}, {"x": np.arange(5)}, {"x": np.arange(20_000)}, LARGE])
def test_a_letter_arrives_as_it_was_sent_and_again(pair: tuple[ParcelStream, ParcelStream], arrays: dict[str, np.ndarray]):
    ours, theirs = pair
    parcel = Parcel((RUN, arrays))
    for _ in range(2):
        assert ours.send(parcel)
        told = theirs.read()
        assert told is not None
        message, back = told
        assert message == RUN and list(back) == list(arrays)
        assert all(np.array_equal(back[name], array) for name, array in arrays.items())
    parcel.close()
    assert theirs.read() is None


@IN_MEMORY
def test_a_large_letter_lies_in_memory_that_nobody_can_change(pair: tuple[ParcelStream, ParcelStream]):
    parcel = Parcel((RUN, LARGE))
    assert parcel.memory is not None
    with pytest.raises(PermissionError):
        os.pwrite(parcel.memory, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(parcel.memory, 10)
    parcel.close()


@IN_MEMORY
def test_a_letter_that_nobody_has_any_more_keeps_no_memory():
    parcel = Parcel((RUN, LARGE))
    memory = parcel.memory
    assert memory is not None and os.fstat(memory)
    del parcel
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory)


@IN_MEMORY
def test_a_letter_with_more_than_its_memory_is_lost_and_leaves_nothing(pair: tuple[ParcelStream, ParcelStream]):
    sends, gets = pair
    memory = os.memfd_create("x")
    before = psutil.Process().num_fds()
    socket.send_fds(sends.stream, [bytes(PREFIX.size)], [memory, memory])
    with pytest.raises(EOFError):
        gets.read()
    assert psutil.Process().num_fds() == before and not gets.scarce
    os.close(memory)


@IN_MEMORY
@pytest.mark.parametrize("free", [0, 1])
def test_a_letter_for_whose_memory_there_is_no_descriptor_is_lost_and_that_is_known(
    pair: tuple[ParcelStream, ParcelStream], free: int
):
    """It takes two: to map it, Python has one of its own."""
    sends, gets = pair
    parcel = Parcel((Cancel(1), {"x": np.zeros(1_000_000, np.uint8)}))
    assert sends.send(parcel)
    numbers = [os.dup(sends.stream.fileno()) for _ in range(free + 1)]
    for number in numbers:
        os.close(number)
    with closing(parcel), faults.descriptors_below(numbers[free]), pytest.raises(EOFError):
        gets.read()
    assert gets.scarce


@IN_MEMORY
def test_a_letter_that_cannot_be_sent_is_heard_as_an_end(
    pair: tuple[ParcelStream, ParcelStream], monkeypatch: pytest.MonkeyPatch
):
    """As where too many descriptors are on their way: both ends waited for the other."""
    sends, gets = pair

    def too_many(*_: object) -> int:
        raise OSError(errno.ETOOMANYREFS, "Too many references")

    monkeypatch.setattr(parcels.socket, "send_fds", too_many)
    parcel = Parcel((Cancel(1), {"x": np.zeros(1_000_000, np.uint8)}))
    assert sends.send(parcel) and sends.scarce
    with pytest.raises(EOFError):
        gets.read()
    parcel.close()


@IN_MEMORY
def test_memory_that_could_be_taken_away_is_refused(pair: tuple[ParcelStream, ParcelStream]):
    ours, theirs = pair
    envelope = b"".join(bytes(part) for part in pack([(RUN, LARGE)]))
    memory = os.memfd_create("open")
    os.write(memory, envelope)
    socket.send_fds(ours.stream, [envelope[: PREFIX.size]], [memory])
    os.close(memory)
    with pytest.raises(FrameError, match="not sealed"):
        theirs.read()


@pytest.mark.parametrize("rubbish", [PREFIX.pack(1 << 30, 0), b"GET / HTTP/1.1\r\n\r\n", PREFIX.pack(8, 0) + b"\xc1" * 8])
def test_rubbish_is_none(pair: tuple[ParcelStream, ParcelStream], rubbish: bytes):
    ours, theirs = pair
    ours.stream.sendall(rubbish)
    with pytest.raises(FrameError):
        theirs.read()


def test_half_a_letter_waits_for_the_rest_and_its_end_is_told(pair: tuple[ParcelStream, ParcelStream]):
    ours, theirs = pair
    envelope = b"".join(bytes(part) for part in pack([(Cancel(3), {})]))
    ours.stream.sendall(envelope[:-3])
    assert theirs.read() is None
    ours.stream.sendall(envelope[-3:])
    assert theirs.read() == (Cancel(3), {})
    ours.stream.close()
    with pytest.raises(EOFError):
        theirs.read()


def test_two_letters_in_one_are_none(pair: tuple[ParcelStream, ParcelStream]):
    ours, theirs = pair
    ours.stream.sendall(b"".join(bytes(part) for part in pack([(Cancel(3), {}), (Cancel(4), {})])))
    with pytest.raises(FrameError, match="2 letters"):
        theirs.read()
