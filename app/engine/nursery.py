"""The nursery: imports what workers need once, then forks them in milliseconds. Never touches CUDA or threads.

`python -m app.engine.nursery FD` talks JSON lines over the socket FD: it reads `{"spec": …}`, and `{"expect": …}` of workers that
it will have to replace, and writes `{"forked": name, "pid": n}` and `{"exited": name, "status": n}`. It ends with its socket. Its
workers do not end with it, but with the supervisor: importing torch anew takes seconds, in which they go on answering.
Our own forty lines instead of `multiprocessing.forkserver`: that one re-imports the caller's `__main__` in every child, tells
no exit status of a child that was killed while it was starting, and leaves the children running when it dies itself.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from app.process import die_with, die_with_parent, go_first, set_name

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
_FIRST = 500  # of the workers when memory ends, before all that mends their loss; tuners go before them (tuning/process.py)


class Nursery:
    """Forks on request, reaps, and tells of both."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._names: dict[int, str] = {}
        self._unread = b""
        self._missing: tuple[str, ...] = _FOR_MODULES

    def serve(self) -> None:
        """Run until the supervisor closes its end."""
        wake, wake_write = socket.socketpair()
        wake_write.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is wake:
                        wake.recv(4096)
                    elif not self._read():
                        return
                self._reap()

    def _read(self) -> bool:
        data = self._control.recv(1 << 16)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            words = json.loads(line)
            self._prepare(words.get("expect") or words["spec"])
            if "spec" in words:
                self._fork(words["spec"])
        return bool(data)

    def _prepare(self, spec: dict[str, Any]) -> None:
        if self._missing and not _has_compiled(spec):
            missing, self._missing = self._missing, ()
            try:
                _preload(missing)
            except Exception:  # noqa: BLE001  whoever needs it fails alone and says why; the other workers live on
                traceback.print_exc()

    def _fork(self, spec: dict[str, Any]) -> None:
        pid = os.fork()
        if pid == 0:
            _live(spec, self._control)
        self._names[pid] = spec["name"]
        self._tell(forked=spec["name"], pid=pid)

    def _reap(self) -> None:
        while self._names:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._tell(exited=self._names.pop(pid), status=os.waitstatus_to_exitcode(status))

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


def _live(spec: dict[str, Any], control: socket.socket) -> None:
    """The child's whole life."""
    status = 1
    try:
        die_with(spec["control"])
        go_first(_FIRST)
        set_name(f"hearth {spec['name']}")
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        from app.engine.worker import main

        main(spec)
        status = 0
    except BaseException:  # noqa: BLE001  the child must never return into the nursery's loop
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Entry of the nursery process."""
    die_with_parent()
    set_name("hearth nursery")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError):  # an extra
        import_module("openvino")
    _preload(_FOR_ALL)
    Nursery(socket.socket(fileno=int(sys.argv[1]))).serve()


if __name__ == "__main__":
    main()
