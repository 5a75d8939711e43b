"""Letters ⇄ bytes: envelopes, and the stream cut into envelopes again. Knows no sockets.

A letter is a message and its arrays. What goes to one peer at one moment goes as one envelope: under load that is a batch of
letters, and sending costs the same as for one. An envelope:

    u64 bytes of the header | u64 bytes of all arrays | header | array | array …

The header is msgpack and holds the small arrays too; large ones follow as raw memory. Each part is padded to eight bytes, so
that arrays can be used where they lie.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod

import msgspec
import numpy as np

from app.wire.messages import Message

Buffer = bytes | memoryview
Letter = tuple[Message, Mapping[str, np.ndarray]]

_SMALL = 4096  # bytes: copying so many costs less than a part of their own
PREFIX = struct.Struct("<QQ")
_ALIGN = 8  # bytes: the largest item of an array
_MOST = (
    1 << 34
)  # bytes of an envelope: far above what any limit on bodies lets in, and nothing to ask an allocator for by mistake


class FrameError(ValueError):
    """The bytes are not letters of ours."""


class _Array(msgspec.Struct, frozen=True, array_like=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | None
    """None: it follows the header."""


class _Letter(msgspec.Struct, frozen=True, array_like=True):
    message: Message
    arrays: tuple[_Array, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[_Letter])
_KINDS = "biuf"  # bool, int, unsigned, float: nothing that could hold an object


def pack(letters: Sequence[Letter]) -> list[Buffer]:
    """Return the envelope in parts: prefix and header, then each large array (no copy where it is contiguous)."""
    large: list[Buffer] = []
    header = _encoder.encode([_Letter(message, _told(arrays, large)) for message, arrays in letters])
    prefix = PREFIX.pack(len(header), sum(len(part) for part in large))
    return [prefix + header + _padding(len(header)), *large]


def _told(arrays: Mapping[str, np.ndarray], large: list[Buffer]) -> tuple[_Array, ...]:
    told = []
    for name, array in arrays.items():
        if array.nbytes <= _SMALL:
            told.append(_Array(name, array.dtype.str, array.shape, array.tobytes()))
        else:
            told.append(_Array(name, array.dtype.str, array.shape, None))
            large.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            if padding := _padding(array.nbytes):
                large.append(padding)
    return tuple(told)


def _padding(size: int) -> bytes:
    return bytes(-size % _ALIGN)


def unpack(envelope: Buffer) -> list[tuple[Message, dict[str, np.ndarray]]]:
    """Read what `pack` wrote. The arrays are read-only views of the envelope. Raises FrameError on anything else."""
    rest = memoryview(envelope).toreadonly()
    if len(rest) < PREFIX.size:
        raise FrameError(f"{len(rest)} bytes are not even a prefix")
    size, large = PREFIX.unpack(rest[: PREFIX.size])
    rest = rest[PREFIX.size :]
    if size + -size % _ALIGN + large != len(rest):
        raise FrameError(f"{size} bytes of header and {large} of arrays announced, {len(rest)} came")
    try:
        letters = _decoder.decode(rest[:size])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:  # msgspec lets the second through for bad UTF-8 in names
        raise FrameError(f"header: {error}") from error
    reader = _Reader(rest[size + -size % _ALIGN :])
    found = [(letter.message, {array.name: reader.read(array) for array in letter.arrays}) for letter in letters]
    if reader.left:
        raise FrameError(f"{reader.left} bytes belong to no array")
    return found


def size_of(prefix: Buffer) -> int:
    """Bytes of the envelope that begins so. Raises FrameError where none can begin."""
    try:
        header, large = PREFIX.unpack(prefix)
    except struct.error as error:
        raise FrameError(f"{len(prefix)} bytes are not even a prefix") from error
    size: int = PREFIX.size + header + -header % _ALIGN + large
    if size > _MOST:
        raise FrameError(f"an envelope of {size} bytes is announced")
    return size


class _Reader:
    """Takes arrays out of an envelope, one behind the other."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.left = len(data)

    def read(self, spec: _Array) -> np.ndarray:
        dtype = _dtype(spec.dtype)
        if dtype is None or any(size < 0 for size in spec.shape):
            raise FrameError(f"{spec.name}: dtype {spec.dtype!r} with shape {spec.shape} is not allowed")
        size = prod(spec.shape) * dtype.itemsize
        data: Buffer | None = spec.data
        if data is None:
            start = len(self._data) - self.left
            data = self._data[start : start + size]
            self.left = max(0, self.left - size - -size % _ALIGN)
        if size != len(data):
            raise FrameError(f"{spec.name}: {len(data)} bytes do not make {spec.dtype} {spec.shape}")
        try:
            return np.frombuffer(data, dtype).reshape(spec.shape)
        except (ValueError, OverflowError) as error:  # more dimensions, or a longer one, than arrays have
            raise FrameError(f"{spec.name}: no array has the shape {spec.shape}"[:200]) from error


@lru_cache(64)
def _dtype(text: str) -> np.dtype | None:
    """None for what is no plain number."""
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError, SyntaxError):
        return None
    return dtype if dtype.kind in _KINDS else None


def _empty(size: int) -> memoryview:
    """So many bytes; a bytearray would be zeroed. Raises FrameError where the announcement was too much."""
    try:
        return np.empty(size, np.uint8).data
    except MemoryError as error:
        raise FrameError(f"there is no room for the {size} bytes that are announced") from error


class Splitter:
    """A stream of bytes → envelopes. A large one is read straight to where it will be used."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = memoryview(b"")  # an envelope whose end has not come
        self._filled = 0

    @property
    def room(self) -> memoryview | None:
        """Where the next bytes of an envelope that has begun belong (then call `fill`); None: `feed` whatever comes."""
        return self._begun[self._filled :] if self._begun else None

    def fill(self, size: int) -> Iterator[memoryview]:
        """So many bytes were put into `room`. Yields the envelope if they were its last."""
        self._filled += size
        if self._filled == len(self._begun):
            whole, self._begun = self._begun, memoryview(b"")
            yield whole

    def feed(self, data: bytes) -> Iterator[memoryview]:
        """Yields the envelopes that end in these bytes. Raises FrameError where no envelope can begin."""
        view = memoryview(self._rest + data if self._rest else data)
        while len(view) >= PREFIX.size:
            size = size_of(view[: PREFIX.size])
            if len(view) < size:
                self._begun, self._filled = _empty(size), len(view)
                self._begun[: len(view)] = view
                view = view[:0]
                break
            yield view[:size]
            view = view[size:]
        self._rest = bytes(view)
