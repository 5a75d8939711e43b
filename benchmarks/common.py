"""What the benchmarks share: a server of their own, when it has settled, a table for people, the machine in one line."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil

STARTERS = "cifar-resnet,all-minilm-l6-v2,spoken-digits"
_LIBRARIES = ("torch", "transformers", "openvino", "fastapi", "uvicorn")
_NUMPY_THREADS = "OPENBLAS_NUM_THREADS"
_NO_SEARCH_S = 60  # a worker on a GPU that says no reason by then looks for nothing


def options(about: str | None, **defaults: Any) -> argparse.Namespace:
    """The options of a benchmark: name=default; the default's type is the option's, False makes a flag."""
    _with_one_thread_of_numpy()
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        flag = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(default), default=default, help=f"default: {default}")
    return parser.parse_args()


def _with_one_thread_of_numpy() -> None:
    """Begin a program anew where NumPy may have more: workers have one (app/pool/processes.py), and NumPy reads it at its import.

    The second thread of its own pool, woken for the pooling of nine short texts or more, spins for longer than that takes: a bare
    loop of MiniLM had 140 texts/s at batches of 12, and has 255.
    """
    ours = Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parent
    if ours and os.environ.get(_NUMPY_THREADS) != "1":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {_NUMPY_THREADS: "1"})  # noqa: S606


@contextmanager
def home() -> Iterator[Path]:
    """`HEARTH_HOME` where it is set, with its cards and what was compiled there; else a folder that is thrown away."""
    if given := os.environ.get("HEARTH_HOME"):
        yield Path(given).resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="hearth-bench-") as folder:
            yield Path(folder)


@contextmanager
def running(command: Sequence[str], announces: str, environment: dict[str, str], said: str = "") -> Iterator[tuple[str, Any]]:
    """A process that is told `said`, from the moment it prints what `announces` describes: the match, and the process."""
    with tempfile.TemporaryFile("w+") as log:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
        others = {name: value for name, value in os.environ.items() if name != _NUMPY_THREADS}  # the server sets it where it must
        process = subprocess.Popen(command, env=others | environment, **pipes)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(said)
            process.stdin.close()
            for line in process.stdout:
                if found := re.search(announces, line):
                    yield found[1], process
                    break
            else:
                log.seek(0)
                sys.exit(f"{' '.join(command)} did not start:\n{log.read()[-3000:]}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            process.stdout.close()


@contextmanager
def started(**settings: str) -> Iterator[tuple[str, subprocess.Popen[str], float]]:
    """`hearth serve` on a free port: its address, its process, and the seconds it took to be ready."""
    with home() as folder:
        ours = {"HEARTH_HOME": str(folder), "HEARTH_PORT": "0", "HEARTH_PROFILE": "starter", "COLUMNS": "200"}
        ours |= {f"HEARTH_{name.upper()}": value for name, value in settings.items() if value}
        for name in settings.get("models", "").split(","):
            if name.startswith("bench-"):
                from cards import ensure  # here, because it imports torch, which few need

                ensure(Path(ours["HEARTH_HOME"]), name)
        begin = time.monotonic()
        with running([sys.executable, "-m", "app", "serve"], r"Hearth is at (http://\S+)", ours) as (url, process):
            yield url, process, time.monotonic() - begin


@contextmanager
def serving(**settings: str) -> Iterator[str]:
    """Only the address."""
    with started(**settings) as (url, _, _):
        yield url


def told(url: str, name: str) -> dict[str, Any]:
    """`GET /models/{name}`."""
    answer: dict[str, Any] = httpx.get(f"{url}/models/{name}", timeout=60).raise_for_status().json()
    return answer


def settled(url: str, name: str, patience_s: float) -> dict[str, Any]:
    """`GET /models/{name}` once its worker has exchanged, or kept, what computes; what it says then if patience ends first."""
    begin = time.monotonic()
    while True:
        model = told(url, name)
        waited_s = time.monotonic() - begin
        if "why" in model["meta"]["compute"]:
            return model
        if waited_s > patience_s or (waited_s > _NO_SEARCH_S and not model["workers"][0]["device"].startswith("cpu")):
            print(f"{name}: no word of what computes after {waited_s:.0f} s; measured as it is", file=sys.stderr)
            return model
        time.sleep(0.5)


def computed_by(model: dict[str, Any]) -> str:
    """What computes a model, in two words."""
    return "{engine} {precision}".format(**model["meta"]["compute"])


def memory(process: psutil.Process) -> dict[str, dict[str, float]]:
    """MiB of each process of a server: `pss` its own pages and its share of shared ones, `rss` all that it touches."""
    found: dict[str, dict[str, float]] = {}
    for one in (process, *process.children(recursive=True)):
        try:
            name, info = one.name(), one.memory_full_info()
        except psutil.Error:  # it has just ended
            continue
        size = found.setdefault(name, {"pss": 0.0, "rss": 0.0})
        size["pss"] += getattr(info, "pss", info.uss) / 2**20
        size["rss"] += info.rss / 2**20
    return found


def total(sizes: dict[str, dict[str, float]], kind: str) -> float:
    """MiB of all processes together."""
    return sum(size[kind] for size in sizes.values())


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """For people."""
    widths = [max(len(str(row[n])) for row in (heads, *rows)) for n in range(len(heads))]
    for row in (heads, ["-" * width for width in widths], *rows):
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(flush=True)


def report(benchmark: str, **figures: Any) -> None:
    """For machines: one line of JSON. What was not measured (NaN) becomes null."""
    line = orjson.dumps({"benchmark": benchmark, **machine(), **figures}, option=orjson.OPT_NON_STR_KEYS)
    print(line.decode(), flush=True)


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    versions = {name: found for name in _LIBRARIES if (found := _version(name))}
    place = {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()[1]}
    return {**place, **_gpu(), "python": platform.python_version(), **versions, "commit": _commit()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _asked(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip() if done.returncode == 0 else ""


def _gpu() -> dict[str, str]:
    found = _asked("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return {"gpu": found.splitlines()[0]} if found else {}


def _commit() -> str:
    return _asked("git", "describe", "--always", "--dirty")
