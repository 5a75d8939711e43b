"""Letters between two processes, one at a time each way: small ones on a stream socket, large ones in memory that is handed over.

A socket holds 200 KB; for more, sender and receiver would have to wake each other for every part, and half an hour of sound
took a second longer on a busy machine. What is larger is written once, sealed, and mapped by the receiver where it lies.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from app.patience import is_scarce
from app.wire.frames import PREFIX, Buffer, FrameError, Letter, pack, size_of, unpack
from app.wire.messages import Message

_SMALL = 320 << 10  # bytes: of pictures, most files and all arrays
_MEMORY = hasattr(os, "memfd_create")
_BUFFER = _SMALL * 5 // 4  # what the kernel counts for a socket is a little more than what is in it

Told = tuple[Message, Mapping[str, np.ndarray]]


class Parcel:
    """A letter, ready to be sent, more than once if need be. To pack a large one takes a millisecond per 2 MB."""

    def __init__(self, letter: Letter) -> None:
        self.memory: int | None = None
        self.parts: Sequence[Buffer] = pack([letter])
        if _MEMORY and sum(len(part) for part in self.parts) > _SMALL:
            self.memory = os.memfd_create("letter", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            self._write(self.memory)

    def _write(self, memory: int) -> None:
        with open(memory, "wb", buffering=0, closefd=False) as file:
            for part in self.parts:
                rest = memoryview(part)
                while rest:
                    rest = rest[file.write(rest) :]
        try:
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            if error.errno == errno.EBUSY:  # the kernel holds one of its pages: it moves them when memory is short (fcntl(2))
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
            raise
        self.parts = [bytes(memoryview(self.parts[0])[: PREFIX.size])]

    def close(self) -> None:
        """It is not sent again."""
        if self.memory is not None:
            os.close(self.memory)
            self.memory = None

    def __del__(self) -> None:
        """Whoever had it packed in a thread may have been cancelled meanwhile, and never have had it."""
        self.close()


_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK if _MEMORY else 0


class ParcelStream:
    """One end. Blocks if its socket does."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.scarce = False
        """A letter was lost, because there was no descriptor left for its memory."""
        self._unsent: list[memoryview] = []
        self._begun = memoryview(b"")  # a letter whose end has not come
        self._filled = 0
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)

    def send(self, parcel: Parcel) -> bool:
        """Whether all is on its way; if not, `push` the rest when the socket has room."""
        self._unsent = [memoryview(part).cast("B") for part in parcel.parts]
        if parcel.memory is not None:
            try:
                socket.send_fds(self.stream, self._unsent, [parcel.memory])
            except OSError as error:  # heard as its end; where it is not gone, it is told
                self.scarce = is_scarce(error)
                with suppress(OSError):
                    self.stream.shutdown(socket.SHUT_RDWR)
            self._unsent = []
        return self.push()

    def push(self) -> bool:
        """The rest of a letter. Whether it is all on its way."""
        try:
            while self._unsent:
                size = self.stream.sendmsg(self._unsent)
                while self._unsent and size >= len(self._unsent[0]):
                    size -= len(self._unsent.pop(0))
                if size:
                    self._unsent[0] = self._unsent[0][size:]
        except BlockingIOError:
            return False
        except OSError:  # heard as its end
            self._unsent = []
        return True

    def read(self) -> Told | None:
        """The next letter; None: its end has not come. Raises EOFError when the other end is gone, FrameError on rubbish."""
        try:
            if not self._begun and (whole := self._begin()) is not None:
                return _the_one(whole)
            while self._filled < len(self._begun):
                self._filled += self._more(self.stream.recv_into(self._begun[self._filled :]))
        except BlockingIOError:
            return None
        except OSError as error:
            raise EOFError from error
        whole, self._begun, self._filled = self._begun, memoryview(b""), 0
        return _the_one(whole)

    def _begin(self) -> memoryview | None:
        """Read the prefix: the whole letter where it came in memory, else room for it."""
        prefix, descriptors, flags, _ = socket.recv_fds(self.stream, PREFIX.size, 1)
        self._more(len(prefix))
        if flags & socket.MSG_CTRUNC:
            for descriptor in descriptors:  # there were more
                os.close(descriptor)
            self.scarce = not descriptors
            raise EOFError
        if descriptors:
            try:
                return _mapped(descriptors[0])
            except OSError as error:  # to map it takes one more
                self.scarce = True
                raise EOFError from error
        size = size_of(prefix)
        if _MEMORY and size > _SMALL:
            raise FrameError(f"a letter of {size} bytes is announced")
        self._begun, self._filled = np.empty(size, np.uint8).data, len(prefix)
        self._begun[: len(prefix)] = prefix
        return None

    @staticmethod
    def _more(size: int) -> int:
        if not size:
            raise EOFError
        return size


def _mapped(descriptor: int) -> memoryview:
    """The memory behind it, which nobody can change or take away any more. Raises OSError where there is too little to map it."""
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise FrameError("the memory of a letter is not sealed")
        return memoryview(mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))
    except (OSError, ValueError) as error:
        if is_scarce(error):
            raise
        raise FrameError(f"the memory of a letter cannot be read: {error}") from error
    finally:
        os.close(descriptor)


def _the_one(envelope: memoryview) -> Told:
    letters = unpack(envelope)
    if len(letters) != 1:
        raise FrameError(f"{len(letters)} letters came in one")
    return letters[0]
