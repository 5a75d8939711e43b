"""`hearth`, also as `python -m app`."""

import errno
import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Entry of the command: quiet from the first moment on, while libraries are still being imported."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _leave)
    try:
        from app.cli import main

        main()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        _drop_what_nobody_reads()


def _drop_what_nobody_reads() -> None:
    """The terminal was closed, or the pipe's reader has left: no failure of ours, for which Python would end with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # it may have been closed from the start
                stream.flush()
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _leave(number: int, _: FrameType | None) -> None:
    """Without an exception: half an import, in C code above all, makes another error of it and prints that. And as process 1,
    whose signals the kernel ignores unless they are handled.
    """
    os._exit(128 + number)


if __name__ == "__main__":
    main()
