"""Letters survive the wire; nothing else is taken for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.wire.frames import FrameError, pack, unpack
from app.wire.messages import Cancel, Done, Run, Stop, Table

BIG = np.arange(3000, dtype=np.float64)


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
    ((message, back),) = unpack(pack([(run, arrays)]))
    assert message == run
    same(back, arrays)


def test_letters_of_one_envelope_keep_their_order_and_their_own_arrays():
    letters = [(Run(n, 1.0, 2.0, ("x",)), {"x": BIG[n:] if n % 2 else np.array([n])}) for n in range(6)]
    frames = pack(letters)
    assert len(frames) == 1 + 3, "only large arrays have a frame of their own"
    for (message, arrays), (sent, given_) in zip(unpack(frames), letters, strict=True):
        assert message == sent
        same(arrays, given_)


@pytest.mark.parametrize("message", [Cancel(3), Stop(), Table({}, 2), Done(1, 0.1, 0.2, 4)])
def test_a_message_without_arrays_is_one_frame(message):
    frames = pack([(message, {})])
    assert len(frames) == 1
    assert unpack(frames) == [(message, {})]


def test_arrays_cannot_be_written_to():
    ((_, arrays),) = unpack([bytes(frame) for frame in pack([(Cancel(1), {"small": np.ones(3), "large": BIG})])])
    assert not any(array.flags.writeable for array in arrays.values())


@pytest.mark.parametrize("array", [np.zeros(1), BIG])
def test_objects_are_not_let_through(array):
    frames = pack([(Cancel(1), {"x": array})])
    with pytest.raises(FrameError, match="not allowed"):
        unpack([bytes(frames[0]).replace(b"<f8", b"|O8"), *frames[1:]])


def test_wrong_lengths_are_named():
    frames = pack([(Cancel(1), {"x": BIG})])
    with pytest.raises(FrameError, match="x: 23999 bytes"):
        unpack([frames[0], bytes(frames[1])[:-1]])
    with pytest.raises(FrameError, match="1 arrays announced"):
        unpack(frames[:1])


@given(st.lists(st.binary(max_size=60).filter(lambda frame: frame[:1] != b"\x90"), max_size=4))
def test_garbage_is_a_frame_error(frames):
    """(0x90 is msgpack's empty list: an envelope without letters.)"""
    with pytest.raises(FrameError):
        unpack(frames)


@given(st.data())
def test_flipped_bits_never_raise_anything_else(data):
    arrays = {"x": np.ones((2, 3), np.float32), "y": BIG}
    frames = [bytearray(frame) for frame in pack([(Run(1, 2.0, 3.0, ("a",)), arrays), (Cancel(3), {})])]
    position = data.draw(st.integers(0, len(frames[0]) * 8 - 1))
    frames[0][position // 8] ^= 1 << position % 8
    try:
        unpack([bytes(frame) for frame in frames])
    except FrameError:
        pass
