"""Letters survive the wire; nothing else is taken for one."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.wire.frames import FrameError, Splitter, pack, unpack
from app.wire.messages import Cancel, Done, Named, Run, Stop, Table

BIG = np.arange(3000, dtype=np.float64)


def envelope(letters: list[Any]) -> bytes:
    return b"".join(pack(letters))


def same(left: dict[str, Any], right: Any) -> None:
    assert list(left) == list(right)
    for name, array in right.items():
        assert left[name].dtype == array.dtype
        np.testing.assert_array_equal(left[name], array)


def test_a_message_and_its_arrays_come_back_equal():
    arrays = {
        "pixels": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "half": np.array([[1.5, -2.0]], np.float16),
        "ids": np.array([], np.int64),
        "scalar": np.array(3.25, np.float32),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "large": BIG.reshape(30, 100).T,
    }
    run = Run(7, 1.5, 99.0, ("scores",), True)
    ((message, back),) = unpack(envelope([(run, arrays)]))
    assert message == run
    same(back, arrays)


def test_letters_of_one_envelope_keep_their_order_and_their_own_arrays():
    letters = [(Run(n, 1.0, 2.0, ("x",)), {"x": BIG[n:].astype(np.int8) if n % 2 else np.array([n])}) for n in range(6)]
    letters += [(Run(n, 1.0, 2.0, ("x",)), {"x": np.arange(5000 + n, dtype=np.uint8)}) for n in range(6)]
    for (message, arrays), (sent, given_) in zip(unpack(envelope(letters)), letters, strict=True):
        assert message == sent
        same(arrays, given_)


def test_only_large_arrays_are_sent_from_where_they_lie():
    parts = pack([(Cancel(1), {"x": BIG, "y": np.ones(3)})])
    assert len(parts) == 2
    assert np.shares_memory(np.frombuffer(parts[1]), BIG)


@pytest.mark.parametrize("message", [Cancel(3), Stop(), Table({}, 2), Done(1, 0.1, 0.2, 4, 0.1), Named("toy.1")])
def test_a_message_without_arrays_is_one_part(message):
    assert len(pack([(message, {})])) == 1
    assert unpack(envelope([(message, {})])) == [(message, {})]


def test_arrays_are_aligned_and_cannot_be_written_to():
    letters = [(Cancel(n), {"odd": np.ones(4099 + n, np.uint8), "large": BIG}) for n in range(8)]
    for _, arrays in unpack(memoryview(bytearray(envelope(letters)))):
        assert not any(array.flags.writeable for array in arrays.values())
        assert arrays["large"].flags.aligned


@pytest.mark.parametrize("array", [np.zeros(1), BIG])
def test_objects_are_not_let_through(array):
    with pytest.raises(FrameError, match="not allowed"):
        unpack(envelope([(Cancel(1), {"x": array})]).replace(b"<f8", b"|O8"))


@pytest.mark.parametrize("shape", [b"\x92\0\xcf\x80" + bytes(7), b"\xdc\0\x46" + bytes(70)], ids=["long", "deep"])
def test_a_shape_that_no_array_has_is_a_frame_error(shape: bytes):
    whole = envelope([(Cancel(1), {"x": np.zeros((0, 7))})])
    header = whole[16 : 16 + struct.unpack("<QQ", whole[:16])[0]].replace(b"\x92\0\7", shape)
    with pytest.raises(FrameError, match="no array has the shape"):
        unpack(struct.pack("<QQ", len(header), 0) + header + bytes(-len(header) % 8))


def test_wrong_lengths_are_named():
    whole = envelope([(Cancel(1), {"x": BIG})])
    with pytest.raises(FrameError, match="24000 of arrays announced"):
        unpack(whole[:-1])
    header, large = struct.unpack("<QQ", whole[:16])
    with pytest.raises(FrameError, match="x: 23992 bytes"):
        unpack(struct.pack("<QQ", header, large - 8) + whole[16:-8])
    with pytest.raises(FrameError, match="8 bytes belong to no array"):
        unpack(struct.pack("<QQ", header, large + 8) + whole[16:] + bytes(8))
    with pytest.raises(FrameError, match="not even a prefix"):
        unpack(b"")


@given(st.binary(max_size=60).filter(lambda data: data[:1] != b"\x90"))
def test_garbage_is_a_frame_error(data):
    """(0x90 is msgpack's empty list: an envelope without letters.)"""
    with pytest.raises(FrameError):
        unpack(data)
    with pytest.raises(FrameError):
        unpack(struct.pack("<QQ", len(data), 0) + data + bytes(-len(data) % 8))


@given(st.data())
def test_flipped_bits_never_raise_anything_else(data):
    whole = bytearray(envelope([(Run(1, 2.0, 3.0, ("a",)), {"x": np.ones((2, 3), np.float32), "y": BIG}), (Cancel(3), {})]))
    position = data.draw(st.integers(0, (len(whole) - BIG.nbytes) * 8 - 1))
    whole[position // 8] ^= 1 << position % 8
    with suppress(FrameError):
        unpack(bytes(whole))


@given(st.lists(st.integers(1, 30_000), max_size=12), st.lists(st.integers(0, 3000), min_size=1, max_size=5))
def test_a_stream_is_cut_into_its_envelopes_wherever_it_is_torn(tears, sizes):
    """What a large envelope still lacks is read into place, everything else comes as bytes."""
    stream = memoryview(b"".join(envelope([(Cancel(n), {"x": BIG[:size]})]) for n, size in enumerate(sizes)))
    splitter, found = Splitter(), []
    tears = [*tears, len(stream)]
    while stream:
        size = tears.pop(0) if len(tears) > 1 else tears[0]
        if (room := splitter.room) is None:
            piece, stream = stream[:size], stream[size:]
            found += splitter.feed(bytes(piece))
        else:
            taken = min(size, len(room), len(stream))
            room[:taken], stream = stream[:taken], stream[taken:]
            found += splitter.fill(taken)
    assert not stream and splitter.room is None
    assert [unpack(whole)[0][0] for whole in found] == [Cancel(n) for n in range(len(sizes))]
    assert [len(unpack(whole)[0][1]["x"]) for whole in found] == sizes
