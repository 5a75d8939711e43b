"""A reader that does what its file says, as native code may; and a nursery whose decoders read with it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from app import tasks
from app.decoding import nursery
from app.tasks.base import Decoded, Sample
from app.wire.frames import PREFIX


class Reader:
    seconds_each = 60.0

    def __init__(self, *_: Any) -> None:
        pass

    @staticmethod
    def prepare() -> None:
        pass

    def decode(self, item: bytes) -> Decoded:
        word, _, more = item.partition(b" ")
        return Decoded(samples=(Sample(arrays={"x": np.array(getattr(self, word.decode())(more))}, cost=1.0),))

    def size(self, more: bytes) -> int:
        return len(more)

    def large(self, more: bytes) -> np.ndarray:
        return np.arange(int(more))

    def crash(self, _: bytes) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def leave(self, _: bytes) -> None:
        os._exit(0)

    def two(self, more: bytes) -> None:
        """Answer with two pieces of memory, where one is expected."""
        memory = os.memfd_create("x")
        for number in range(64):
            with contextlib.suppress(OSError):
                socket.send_fds(socket.socket(fileno=os.dup(number)), [bytes(PREFIX.size)], [memory, memory])
        os._exit(int(more))

    def starve(self, more: bytes) -> np.ndarray:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        return self.large(more)

    def hang(self, _: bytes) -> None:
        while True:
            pass

    def spin(self, more: bytes) -> int:
        end = time.process_time() + float(more)
        while time.process_time() < end:
            pass
        return os.getpid()

    def slow(self, more: bytes) -> int:
        time.sleep(float(more))
        return os.getpid()

    def fill(self, more: bytes) -> int:
        return len(bytearray(int(more)))

    def stumble(self, _: bytes) -> None:
        raise ValueError("over its own feet")

    def thread(self, _: bytes) -> bool:
        done: list[bool] = []
        thread = threading.Thread(target=lambda: done.append(True))
        thread.start()
        thread.join()
        return done[0]

    # What must not work: each answers whether it was refused.

    def read(self, more: bytes) -> bool:
        return refused(lambda: Path(more.decode()).read_bytes())

    def write(self, more: bytes) -> bool:
        return refused(lambda: Path(more.decode()).write_bytes(b"x"))

    def connect(self, more: bytes) -> bool:
        return refused(lambda: socket.create_connection(("127.0.0.1", int(more)), 1))

    def knock(self, more: bytes) -> bool:
        return refused(lambda: socket.socket(socket.AF_UNIX).connect(more.decode()))

    def post(self, more: bytes) -> bool:
        return refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", int(more))))

    def smuggle(self, more: bytes) -> bool:
        return refused(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"x", more.decode()))

    def fork(self, _: bytes) -> bool:
        return refused(lambda: os.waitpid(os.fork() or os._exit(0), 0))

    def kill(self, more: bytes) -> bool:
        return refused(lambda: os.kill(int(more), 0))

    def start(self, more: bytes) -> bool:
        return refused(lambda: os.waitpid(os.posix_spawn(more.decode(), [more.decode()], {}), 0))


def refused(what: Any) -> bool:
    try:
        what()
    except PermissionError:
        return True
    return False


if __name__ == "__main__":
    tasks.READERS["image-classification"] = "tests.stack.crashing:Reader"
    nursery.live(socket.socket(fileno=int(sys.argv[1])))
