"""The nursery forks whoever asks, whatever the libraries do."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from app.engine import nursery
from tests.stack.conftest import wait_for


def test_a_library_that_cannot_be_loaded_costs_no_other_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tried: list[str] = []

    def broken(name: str) -> None:
        tried.append(name)
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(nursery, "import_module", broken)
    monkeypatch.setattr(nursery, "os", SimpleNamespace(fork=lambda: 42, getpid=os.getpid))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        forks = nursery.Nursery(theirs, "")
        for name in ("toy.1", "toy.2"):
            ours.sendall(json.dumps({"spec": {"name": name, "home": str(tmp_path)}}).encode() + b"\n")
            assert forks._read()
            if forks._importing:
                forks._import()
            assert json.loads(ours.recv(4096)) == {"forked": name, "pid": 42}
    assert len(tried) == 1, "it is not tried again for every worker"
    assert "libcudart" in capsys.readouterr().err


def test_while_it_imports_what_one_worker_needs_others_are_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Torch alone takes a second and a half: whoever dies meanwhile shall not wait for all of it."""
    imported: list[str] = []
    monkeypatch.setattr(nursery, "import_module", imported.append)
    monkeypatch.setattr(nursery, "_has_compiled", lambda spec: spec["name"].startswith("compiled"))
    monkeypatch.setattr(nursery, "os", SimpleNamespace(fork=lambda: 42, getpid=os.getpid))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        forks = nursery.Nursery(theirs, "")

        def asked(name: str) -> None:
            ours.sendall(json.dumps({"spec": {"name": name, "home": str(tmp_path)}}).encode() + b"\n")
            assert forks._read()

        asked("toy.1")
        forks._import()
        assert len(imported) == 1 and forks._importing
        asked("compiled.2")
        asked("toy.3")
        assert json.loads(ours.recv(4096)) == {"forked": "compiled.2", "pid": 42}
        while forks._importing:
            forks._import()
        assert imported == list(nursery._FOR_MODULES)
        told = [json.loads(line)["forked"] for line in ours.recv(4096).splitlines()]
        assert told == ["toy.1", "toy.3"]
        asked("toy.4")
        assert json.loads(ours.recv(4096))["forked"] == "toy.4"


def test_a_worker_that_cannot_be_forked_is_told_as_ended_and_the_nursery_lives_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(nursery, "_has_compiled", lambda spec: True)
    monkeypatch.setattr(nursery, "os", SimpleNamespace(fork=fork, getpid=os.getpid))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        forks = nursery.Nursery(theirs, "")
        ours.sendall(json.dumps({"spec": {"name": "toy.1", "home": str(tmp_path)}}).encode() + b"\n")
        assert forks._read()
        assert json.loads(ours.recv(4096)) == {"exited": "toy.1", "status": 1}
        forks._fork_spare()
        assert forks._spare == 0


_HANGS = """
import signal, socket
from app.engine import nursery

nursery.die_with = lambda _: signal.pause()
nursery._has_compiled = lambda _: True
ours, theirs = socket.socketpair()
nursery.Nursery(theirs, "")._fork({"name": "toy.1", "control": ""})
print(ours.recv(4096).decode(), flush=True)
signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells only Linux's processes of their parent's end")
@pytest.mark.parametrize("stopped", [False, True])
def test_a_worker_that_has_not_yet_said_hello_ends_with_its_nursery(stopped: bool):
    """The supervisor may never have heard of it."""
    with subprocess.Popen([sys.executable, "-c", _HANGS], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(json.loads(parent.stdout.readline())["pid"])
        wait_for(lambda: worker.status() == psutil.STATUS_SLEEPING)
        if stopped:
            worker.suspend()
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
