"""The process that forks a frontend's decoders, in milliseconds. Without threads; made before the frontend has any.

It reads fixed-size orders from one socket: fork a decoder, whose end of a socket pair comes with the order, or kill one. It ends
with that socket, and its decoders end with it. `python -m app.decoding.nursery PARENT FD` is the same from nothing, for a
frontend whose nursery died: with threads and a loop, it may not fork.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import subprocess
import sys
from struct import Struct

from app.decoding import decoder
from app.decoding.confine import confine
from app.logs import log
from app.process import child_command, die_with_parent, hear_no_more, hear_of_children, set_name, whole_life
from app.tasks import prepare

ORDER = Struct("<qqq")  # what to do, which decoder, bytes that it may allocate
FORK, KILL = 1, 2
END = Struct("<qq")  # which decoder ended, exit status
_LISTENS = 3  # 0, 1 and 2 are for messages
_MOST = 1 << 20  # descriptors: our limit may have been higher when they were opened


def begin() -> socket.socket:
    """Begin the nursery as a copy of this process, which must have no other thread. The frontend's end of its socket."""
    if sys.platform == "darwin":  # its libraries bear no copies
        return spawn()
    ours, theirs = socket.socketpair()
    frontend = os.getpid()
    if not os.fork():
        whole_life(lambda: _be_nursery(frontend, theirs))
    theirs.close()
    return ours


def _be_nursery(frontend: int, control: socket.socket) -> None:
    """In the copy: of all that it has, it needs one socket."""
    die_with_parent(frontend)
    descriptor = control.detach()
    os.closerange(_LISTENS, descriptor)
    os.closerange(descriptor + 1, _MOST)
    live(socket.socket(fileno=descriptor))


def spawn() -> socket.socket:
    """Begin it from nothing: in half a second, and with all imports of its own."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            subprocess.Popen(child_command("app.decoding.nursery", str(theirs.fileno())), pass_fds=[theirs.fileno()])
        except OSError:
            ours.close()
            raise
    return ours


def live(control: socket.socket) -> None:
    """The nursery's whole life."""
    set_name("hearth decoders")
    for polite in (signal.SIGINT, signal.SIGTERM):  # said to a whole group of processes: what was accepted is still read
        signal.signal(polite, signal.SIG_IGN)
    prepare()  # afterwards files are out of reach
    gc.collect()
    gc.freeze()  # a child's collections then leave the shared pages alone
    Nursery(control).serve()


class Nursery:
    """Forks and kills on request, reaps, and tells of every end."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pids: dict[int, int] = {}
        self._told = False  # what the system does not grant

    def serve(self) -> None:
        """Run until the frontend closes its end."""
        wake, _kept = hear_of_children()
        while True:
            ready, _, _ = select.select([self._control, wake], [], [])
            if wake in ready:
                wake.recv(4096)
            if self._control in ready and not self._obey():
                return
            self._reap()

    def _obey(self) -> bool:
        try:
            order, descriptors, _, _ = socket.recv_fds(self._control, ORDER.size, 1, socket.MSG_WAITALL)
        except ConnectionError:  # the frontend died before it had read all that was told
            return False
        if len(order) < ORDER.size:
            return False
        what, number, room = ORDER.unpack(order)
        if what == FORK:
            self._fork(number, room, descriptors)
        elif number in self._pids:  # not reaped, so the number is still that process's
            os.kill(self._pids[number], signal.SIGKILL)
        return True

    def _fork(self, number: int, room: int, descriptors: list[int]) -> None:
        """Of its end of the socket pair there is nothing where this process had no descriptor left for it."""
        nursery, tells, self._told = os.getpid(), not self._told, True
        try:
            pid = os.fork() if descriptors else -1
        except OSError:
            pid = -1
        if pid == 0:
            self._control.close()
            whole_life(lambda: _be_decoder(nursery, number, room, descriptors[0], tells=tells))
        for descriptor in descriptors:
            os.close(descriptor)
        if pid < 0:
            self._told = not tells
            self._tell(number, decoder.UNREAD)
        else:
            self._pids[number] = pid

    def _reap(self) -> None:
        numbers = {pid: number for number, pid in self._pids.items()}
        while numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            number = numbers.pop(pid)
            del self._pids[number]
            ended = os.waitstatus_to_exitcode(status)
            if ended == decoder.UNREAD:  # it may not have come so far as to tell
                self._told = False
            self._tell(number, ended)

    def _tell(self, number: int, status: int) -> None:
        with contextlib.suppress(OSError):
            self._control.sendall(END.pack(number, status))


def _be_decoder(nursery: int, number: int, room: int, descriptor: int, *, tells: bool) -> None:
    """The child's whole life."""
    die_with_parent(nursery)
    set_name(f"hearth decode {number}")
    hear_no_more()
    try:
        missing, stream = confine(room), socket.socket(fileno=descriptor)
    except OSError as error:
        log.warning("decoder %d cannot begin: %s", number, error)
        os._exit(decoder.UNREAD)
    if missing and tells:
        log.warning("files are read without %s, which this system does not grant", " and ".join(missing))
    decoder.live(stream)


def main() -> None:
    """Entry of one that is begun from nothing."""
    die_with_parent(int(sys.argv[1]))
    live(socket.socket(fileno=int(sys.argv[2])))


if __name__ == "__main__":
    main()
