"""A parent is killed while its children still import what they need, before they could ask the kernel to end with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import psutil

from tests.chaos.conftest import Chaos
from tests.stack.conftest import Server, wait_for, write_toy

CHILDREN = ("app.web.process", "app.engine.nursery", "app.tuning.foreman")
LIMIT_S = 30.0  # its imports take two seconds, on a busy machine more


def beginning(parent: int, *modules: str) -> list[psutil.Process]:
    """The children that run these modules, if there is one of each."""
    found = []
    for child in psutil.Process(parent).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [(module, child) for module in modules if module in child.cmdline()]
    return [child for _, child in found] if {module for module, _ in found} == set(modules) else []


def fate(child: psutil.Process) -> str:
    """Empty while it begins; then its name, or that it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return name if (name := child.name()).startswith("hearth") else ""
    return "gone"


def killed_too_early(parent: int, children: list[psutil.Process]) -> bool:
    """And what the children are for none of them begins. False: one of them had begun by then."""
    os.kill(parent, signal.SIGKILL)
    if any(fate(child).startswith("hearth") for child in children):
        return False
    assert {wait_for(lambda child=child: fate(child), LIMIT_S) for child in children} == {"gone"}
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def test_the_supervisor_is_killed_while_its_children_begin(frail: Path, tmp_path: Path, chaos: Chaos):
    jobs = f"sqlite:///{tmp_path / 'jobs.db'}"  # so that there is a foreman from the beginning
    early = tries = 0
    while early < chaos.times(1, 10):
        assert (tries := tries + 1) <= 30, "they are too quick for us"
        port = free_port()
        server = Server(frail, HEARTH_MODELS="toy", HEARTH_FRONTENDS="2", HEARTH_PORT=str(port), HEARTH_DATABASE=jobs)
        try:
            begun = wait_for(lambda pid=server.process.pid: beginning(pid, *CHILDREN), 60)
            if killed_too_early(server.process.pid, begun):
                early += 1
                with socket.create_server(("127.0.0.1", port)):
                    pass  # nobody holds it
        finally:
            server.kill()


def test_a_worker_is_killed_while_what_computes_is_chosen(tmp_path: Path, chaos: Chaos):
    """When the choosing process begins, and when it computes: nobody waits for its choice any more."""
    write_toy(tmp_path / "models" / "toy", "true")
    model = tmp_path / "models" / "toy" / "model.py"
    model.write_text(
        model.read_text().replace(
            "        flat =", "        time.sleep(0.2)  # else it is chosen before it is killed\n        flat ="
        )
    )
    with Server(tmp_path, HEARTH_MODELS="toy", HEARTH_COMPUTE="auto", HEARTH_PRECISION="auto") as server:
        killed = {0}  # nobody's pid
        early = tries = 0
        while early < chaos.times(1, 5):
            assert (tries := tries + 1) <= 30, "they are too quick for us"
            worker = wait_for(lambda: (pid := server.worker()) not in killed and pid)
            begun = wait_for(lambda worker=worker: beginning(worker, "app.engine.choosing"))
            killed.add(worker)
            if not killed_too_early(worker, begun):
                all_end(begun)
                continue
            early += 1
            choosing = wait_for(lambda: server.children().get("hearth choosing"), 60)
            worker = choosing.ppid()
            assert worker != server.process.pid
            left = [choosing, *choosing.children(recursive=True)]
            killed.add(worker)
            os.kill(worker, signal.SIGKILL)
            all_end(left)


def all_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=LIMIT_S)
    assert not alive
