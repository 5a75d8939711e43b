"""Messages survive the wire; nothing else is taken for one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.wire.frames import FrameError, pack, unpack
from app.wire.messages import Cancel, Done, Run, Stop, Table


def test_a_message_and_its_arrays_come_back_equal():
    arrays = {
        "pixels": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "half": np.array([[1.5, -2.0]], np.float16),
        "ids": np.array([], np.int64),
        "scalar": np.array(3.25, np.float32),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    run = Run(7, 1.5, 99.0, ("scores",), True)
    message, back = unpack(pack(run, arrays))
    assert message == run
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("message", [Cancel(3), Stop(), Table({}, 2), Done(1, 0.1, 0.2, 4)])
def test_a_message_without_arrays_is_one_frame(message):
    frames = pack(message)
    assert len(frames) == 1
    assert unpack(frames) == (message, {})


def test_objects_are_not_let_through():
    frames = pack(Cancel(1), {"x": np.zeros(1)})
    with pytest.raises(FrameError, match="not allowed"):
        unpack([bytes(frames[0]).replace(b"<f8", b"|O8"), frames[1]])


def test_wrong_lengths_are_named():
    frames = pack(Cancel(1), {"x": np.zeros(4, np.float32)})
    with pytest.raises(FrameError, match="x: 15 bytes"):
        unpack([frames[0], bytes(frames[1])[:-1]])
    with pytest.raises(FrameError, match="1 arrays announced"):
        unpack(frames[:1])


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_garbage_is_a_frame_error(frames):
    with pytest.raises(FrameError):
        unpack(frames)


@given(st.data())
def test_flipped_bits_never_raise_anything_else(data):
    frames = [bytearray(frame) for frame in pack(Run(1, 2.0, 3.0, ("a",)), {"x": np.ones((2, 3), np.float32)})]
    position = data.draw(st.integers(0, len(frames[0]) * 8 - 1))
    frames[0][position // 8] ^= 1 << position % 8
    try:
        unpack([bytes(frame) for frame in frames])
    except FrameError:
        pass
