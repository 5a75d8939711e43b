"""What the benchmarks share: a server of their own, a table for people, the machine in one line."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any


@contextmanager
def started(**settings: str) -> Iterator[tuple[str, subprocess.Popen[str], float]]:
    """`hearth serve` on a free port: its address, its process, and the seconds it took to be ready."""
    with tempfile.TemporaryDirectory() as home:
        ours = {"HEARTH_HOME": home, "HEARTH_PORT": "0", "HEARTH_PROFILE": "starter", "COLUMNS": "200"}
        ours |= {f"HEARTH_{name.upper()}": value for name, value in settings.items()}
        begin = time.monotonic()
        command = [sys.executable, "-m", "app", "serve"]
        process = subprocess.Popen(command, env=os.environ | ours, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(r"Hearth is at (http://\S+)", line):
                    yield found[1], process, time.monotonic() - begin
                    break
            else:
                sys.exit("the server did not start")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextmanager
def serving(**settings: str) -> Iterator[str]:
    """Only the address."""
    with started(**settings) as (url, _, _):
        yield url


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """For people."""
    widths = [max(len(str(row[n])) for row in (heads, *rows)) for n in range(len(heads))]
    for row in (heads, ["-" * width for width in widths], *rows):
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)))


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    versions = {name: version(name) for name in ("torch", "transformers", "fastapi", "uvicorn", "pyzmq")}
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), **versions}
