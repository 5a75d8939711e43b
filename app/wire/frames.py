"""Messages ⇄ byte frames: one msgpack header, then each array's raw memory. Pure; knows no sockets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import msgspec
import numpy as np

from app.wire.messages import Message

Frame = bytes | memoryview


class FrameError(ValueError):
    """The frames are not a message of ours."""


class _Array(msgspec.Struct, frozen=True, array_like=True):
    name: str
    dtype: str
    shape: tuple[int, ...]


class _Header(msgspec.Struct, frozen=True, array_like=True):
    message: Message
    arrays: tuple[_Array, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Header)
_KINDS = "biuf"  # bool, int, unsigned, float: nothing that could hold an object


def pack(message: Message, arrays: Mapping[str, np.ndarray] | None = None) -> list[Frame]:
    """Return the header and one frame per array (no copy where an array is contiguous)."""
    if not arrays:
        return [_encoder.encode(_Header(message))]
    solid = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = _Header(message, tuple(_Array(name, a.dtype.str, a.shape) for name, a in solid.items()))
    return [_encoder.encode(header), *(a.reshape(-1).view(np.uint8).data for a in solid.values())]


def unpack(frames: Sequence[Frame]) -> tuple[Message, dict[str, np.ndarray]]:
    """Read what `pack` wrote. The arrays are read-only views of the frames. Raises FrameError on anything else."""
    if not frames:
        raise FrameError("no frames")
    try:
        header = _decoder.decode(frames[0])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:  # msgspec lets the second through for bad UTF-8 in names
        raise FrameError(f"header: {error}") from error
    if len(header.arrays) != len(frames) - 1:
        raise FrameError(f"{len(header.arrays)} arrays announced, {len(frames) - 1} frames came")
    return header.message, {spec.name: _read(spec, frame) for spec, frame in zip(header.arrays, frames[1:], strict=True)}


def _read(spec: _Array, frame: Frame) -> np.ndarray:
    try:
        dtype = np.dtype(spec.dtype)
    except (TypeError, ValueError, SyntaxError) as error:
        raise FrameError(f"{spec.name}: unknown dtype {spec.dtype!r}") from error
    if dtype.kind not in _KINDS or any(size < 0 for size in spec.shape):
        raise FrameError(f"{spec.name}: dtype {spec.dtype!r} with shape {spec.shape} is not allowed")
    if prod(spec.shape) * dtype.itemsize != len(frame):
        raise FrameError(f"{spec.name}: {len(frame)} bytes do not make {spec.dtype} {spec.shape}")
    return np.frombuffer(frame, dtype).reshape(spec.shape)
