"""The nursery: imports what workers need once, then forks them in milliseconds. Never touches CUDA or threads.

`python -m app.engine.nursery PARENT FD FOLDER` talks JSON lines over the socket FD: it reads `{"spec": …}`, and `{"expect": …}`
of workers that it will have to replace, and writes `{"forked": name, "pid": n}` and `{"exited": name, "status": n}`. It ends with
its socket. Its workers end with the supervisor, not with it, once they have said Hello, and so does its spare: a copy of itself
that it forks as soon as it has imported something, which says `{"spare": pid}` at FOLDER/nursery and becomes the next nursery at
the first word it hears.
To import torch anew takes seconds, in which nothing that died could be replaced.
Our own instead of `multiprocessing.forkserver`: that one re-imports the caller's `__main__` in every child, tells
no exit status of a child that was killed while it was starting, and leaves the children running when it dies itself.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from app.logs import log
from app.process import die_with, die_with_parent, go_first, hear_no_more, hear_of_children, set_name, whole_life
from app.wire.sockets import address

_FOR_ALL = (
    "app.engine.worker",
    *(f"app.tasks.{task}.{part}" for task in ("image", "text", "speech") for part in ("program", "codec")),
)
# 650 MB and three seconds: only once a worker is asked for that has nothing compiled to begin with (`engine/kept.py`).
_FOR_MODULES = (
    "app.engine.eagerly",
    "app.engine.search",
    "safetensors.torch",
    "torchvision.models",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.wav2vec2.modeling_wav2vec2",
)
_SPARE_S = 1.0  # between two spares, if one cannot live
_FIRST = 500  # of the workers when memory ends, before all that mends their loss; tuners go before them (tuning/process.py)


class Nursery:
    """Forks on request, reaps, and tells of both."""

    def __init__(self, control: socket.socket, folder: str) -> None:
        self._control = control
        self._folder = folder
        self._leash = -1
        self._names: dict[int, str] = {}
        self._unread = b""
        self._missing: tuple[str, ...] = _FOR_MODULES
        self._held: list[dict[str, Any]] = []  # workers that wait until there are none
        self._importing = False
        self._spare = 0  # its pid
        self._spare_after = 0.0

    def serve(self) -> None:
        """Run until the supervisor closes its end."""
        self._wake = hear_of_children()
        while True:
            if not self._spare and time.monotonic() >= self._spare_after:
                self._fork_spare()
            pause_s = 0.0 if self._importing else None if self._spare else _SPARE_S
            ready, _, _ = select.select([self._control, self._wake[0]], [], [], pause_s)
            if self._wake[0] in ready:
                self._wake[0].recv(4096)
            if self._control in ready and not self._read():
                return
            self._reap()
            if self._importing:
                self._import()

    def _fork_spare(self) -> None:
        """In the copy, this returns when the nursery is dead: then it is the nursery."""
        self._spare_after = time.monotonic() + _SPARE_S  # one that cannot live must not be forked over and over
        try:
            self._spare = os.fork()
        except OSError:  # no room for a process now
            return
        if self._spare == 0:
            self._stand_by()

    def _stand_by(self) -> None:
        set_name("hearth spare")
        self._let_go()
        self._names, self._unread, self._spare_after = {}, b"", 0.0
        self._held, self._importing = [], False  # the supervisor asks again
        self._wake = hear_of_children()
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._leash = die_with(address(self._folder, "supervisor"))
            self._control.connect(address(self._folder, "nursery"))
        except OSError:  # the supervisor is just closing
            sys.exit()
        self._tell(spare=os.getpid())
        if not self._control.recv(1, socket.MSG_PEEK):
            sys.exit()
        set_name("hearth nursery")

    def _let_go(self) -> None:
        """In a copy: what only the nursery itself needs."""
        self._control.close()
        if self._leash >= 0:
            os.close(self._leash)

    def _read(self) -> bool:
        data = self._control.recv(1 << 16)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            words = json.loads(line)
            needs = bool(self._missing) and not _has_compiled(words.get("expect") or words["spec"])
            self._importing |= needs
            if "spec" in words and needs:
                self._held.append(words["spec"])
            elif "spec" in words:
                self._fork(words["spec"])
        return bool(data)

    def _import(self) -> None:
        """One of what is missing: between two, others are forked and reaped. After the last, those that waited for it."""
        first, *rest = self._missing
        self._missing = tuple(rest)
        try:
            _preload([first])
        except Exception:  # noqa: BLE001  whoever needs it fails alone and says why; the other workers live on
            traceback.print_exc()
            self._missing = ()
        if not self._missing:
            self._importing = False
            self._renew_spare()
            held, self._held = self._held, []
            for spec in held:
                self._fork(spec)

    def _renew_spare(self) -> None:
        """The next one has what was imported since."""
        if self._spare:
            os.kill(self._spare, signal.SIGKILL)
            self._spare, self._spare_after = 0, 0.0

    def _fork(self, spec: dict[str, Any]) -> None:
        nursery = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # no room for a process now
            log.error("%s could not be forked: %s", spec["name"], error.strerror)
            self._tell(exited=spec["name"], status=1)
            return
        if pid == 0:
            self._let_go()
            whole_life(lambda: _be_worker(spec, nursery))
        self._names[pid] = spec["name"]
        self._tell(forked=spec["name"], pid=pid)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):  # there is none
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                if pid in self._names:
                    self._tell(exited=self._names.pop(pid), status=os.waitstatus_to_exitcode(status))
                elif pid == self._spare:
                    self._spare = 0

    def _tell(self, **words: Any) -> None:
        self._control.sendall(json.dumps(words).encode() + b"\n")


def _preload(names: Iterable[str]) -> None:
    for name in names:
        import_module(name)
    gc.collect()
    gc.freeze()  # a child's collections then leave the shared pages alone (gc.freeze, Python docs)


def _has_compiled(spec: dict[str, Any]) -> bool:
    """It very likely begins with compiled networks. If not, it imports by itself what it needs: slower, not wrong."""
    model = spec["name"].rpartition(".")[0]
    return any(Path(spec["home"], "compute").glob(f"{model}-*/module.json"))


def _be_worker(spec: dict[str, Any], nursery: int) -> None:
    die_with_parent(nursery)  # until the supervisor knows it (engine/worker.py): nobody else would end one that hangs till then
    die_with(spec["control"])
    go_first(_FIRST)
    set_name(f"hearth {spec['name']}")
    hear_no_more()
    from app.engine.worker import main

    main(spec)


def main() -> None:
    """Entry of the nursery process."""
    die_with_parent(int(sys.argv[1]))
    set_name("hearth nursery")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError):  # an extra
        import_module("openvino")
    _preload(_FOR_ALL)
    Nursery(socket.socket(fileno=int(sys.argv[2])), sys.argv[3]).serve()


if __name__ == "__main__":
    main()
