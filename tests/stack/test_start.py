"""Signals before the server stands: the start ends at once, quietly, and leaves nothing but what was downloaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.mirror import running
from tests.stack.conftest import Server, wait_for
from tests.stack.test_profiles import OFFLINE, write_card

# As some libraries in C do: what is raised while they are imported becomes an error of theirs.
INTERRUPTED = """
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
    for _ in range(1000): pass
except BaseException:
    raise ImportError("the library could not be imported")
"""


@contextmanager
def downloading(home: Path, temporary: Path) -> Iterator[tuple[Server, list[psutil.Process], Path]]:
    """A first start, its processes, and what it has of a file whose rest does not come."""
    temporary.mkdir()
    with running() as mirror:
        file = mirror.put_torchvision("resnet18", bytes(3_000_000))
        mirror.stops[f"/{file}"] = 1_000_000
        write_card(home, file)
        server = Server(
            home,
            HEARTH_PROFILE="auto",
            HEARTH_HUB_URL=OFFLINE["HEARTH_HUB_URL"],
            HEARTH_TORCHVISION_URL=mirror.url,
            TMPDIR=str(temporary),
        )
        try:
            part = home / "weights" / f".{file}.part"
            wait_for(lambda: part.exists() and part.stat().st_size > 900_000)
            yield server, list(server.children().values()), part
        finally:
            server.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_first_download_ends_the_start_and_keeps_what_came(tmp_path: Path, number: signal.Signals):
    temporary = tmp_path / "temporary"
    with downloading(tmp_path / "home", temporary) as (server, children, part):
        os.killpg(server.process.pid, number)  # as a terminal does
        assert server.process.wait(20) == 0
    assert part.stat().st_size > 900_000
    assert "stopped while starting" in server.log
    assert "Traceback" not in server.log
    assert not list(temporary.glob("hearth-*"))
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_a_download_ends_with_the_start_that_wanted_it(tmp_path: Path):
    """It went on, and the next start waited for it."""
    with downloading(tmp_path / "home", tmp_path / "temporary") as (server, children, _):
        assert children
        server.process.kill()
        assert not psutil.wait_procs(children, timeout=10)[1]


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_libraries_are_imported_is_quiet(tmp_path: Path, name: str, status: int):
    (tmp_path / "typer.py").write_text(INTERRUPTED.format(name=name))
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-P", "-m", "app", "serve"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell lets what runs behind `&` ignore it
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, preexec_fn=heard)
    assert (result.returncode, result.stderr) == (status, "")
