"""Letters ⇄ byte frames: one msgpack header for all, small arrays inside it, each large one as raw memory. Knows no sockets.

A letter is a message and its arrays. What goes to one peer at one moment goes as one envelope: under load that is a batch of
them, and sending costs the same as for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod

import msgspec
import numpy as np

from app.wire.messages import Message

Frame = bytes | memoryview
Letter = tuple[Message, Mapping[str, np.ndarray]]

_SMALL = 4096  # bytes: copying so many costs less than a frame of their own


class FrameError(ValueError):
    """The frames are not letters of ours."""


class _Array(msgspec.Struct, frozen=True, array_like=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | None
    """None: the next frame holds it."""


class _Letter(msgspec.Struct, frozen=True, array_like=True):
    message: Message
    arrays: tuple[_Array, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[_Letter])
_KINDS = "biuf"  # bool, int, unsigned, float: nothing that could hold an object


def pack(letters: Sequence[Letter]) -> list[Frame]:
    """Return the header and one frame per large array (no copy where an array is contiguous)."""
    frames: list[Frame] = [b""]
    frames[0] = _encoder.encode([_Letter(message, _told(arrays, frames)) for message, arrays in letters])
    return frames


def _told(arrays: Mapping[str, np.ndarray], frames: list[Frame]) -> tuple[_Array, ...]:
    told = []
    for name, array in arrays.items():
        if array.nbytes <= _SMALL:
            told.append(_Array(name, array.dtype.str, array.shape, array.tobytes()))
        else:
            told.append(_Array(name, array.dtype.str, array.shape, None))
            frames.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return tuple(told)


def unpack(frames: Sequence[Frame]) -> list[tuple[Message, dict[str, np.ndarray]]]:
    """Read what `pack` wrote. The arrays are read-only views of the frames. Raises FrameError on anything else."""
    if not frames:
        raise FrameError("no frames")
    try:
        letters = _decoder.decode(frames[0])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:  # msgspec lets the second through for bad UTF-8 in names
        raise FrameError(f"header: {error}") from error
    announced = sum(array.data is None for letter in letters for array in letter.arrays)
    if announced != len(frames) - 1:
        raise FrameError(f"{announced} arrays announced, {len(frames) - 1} frames came")
    large = iter(frames[1:])
    return [
        (letter.message, {a.name: _read(a, next(large) if a.data is None else a.data) for a in letter.arrays})
        for letter in letters
    ]


def _read(spec: _Array, data: Frame) -> np.ndarray:
    dtype = _dtype(spec.dtype)
    if dtype is None or any(size < 0 for size in spec.shape):
        raise FrameError(f"{spec.name}: dtype {spec.dtype!r} with shape {spec.shape} is not allowed")
    if prod(spec.shape) * dtype.itemsize != len(data):
        raise FrameError(f"{spec.name}: {len(data)} bytes do not make {spec.dtype} {spec.shape}")
    return np.frombuffer(data, dtype).reshape(spec.shape)


@lru_cache(64)
def _dtype(text: str) -> np.dtype | None:
    """None for what is no plain number."""
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError, SyntaxError):
        return None
    return dtype if dtype.kind in _KINDS else None
