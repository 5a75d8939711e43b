"""Threads, wait policy and allocator of a worker beside a frontend on few cores: the tables behind `app/engine/device.py`.

    python benchmarks/settling.py [--models bench-minilm,bench-bert-base,bench-resnet50] [--seconds 3] [--rounds 5]

Each way is a process of its own, because what OpenMP and glibc are told they read when they begin. It runs batches of eight by
eager PyTorch in a loop, in turns with the other ways: alone, and beside a stand-in for a frontend, which works for one
millisecond of every three and tells how much later than that it was done (p99).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from common import home, options, report, table

WAYS: dict[str, dict[str, str]] = {
    "as served": {},
    "one thread": {"HEARTH_THREADS": "1"},
    "threads wait asleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "threads wait awake": {"OMP_WAIT_POLICY": "ACTIVE"},
    "glibc gives memory back": {"SETTLING_GIVES_BACK": "1"},
}
_BATCH = 8
_TICK_S, _WORK_S = 0.003, 0.001


def compute(model: str) -> None:
    """A child: says that it is ready, then for every line, which tells seconds, how many items it ran in a second."""
    from bare import Bare

    from app.engine import device
    from app.tasks import card_samples

    if os.environ.get("SETTLING_GIVES_BACK"):
        device.keep_memory = lambda: None
    told = {"workers": [{"device": "cpu"}], "meta": {"compute": {"engine": "eager", "precision": "fp32"}}}
    bare = Bare(model, Path(os.environ["HEARTH_HOME"]), told)
    batch = [sample.arrays for sample in card_samples(bare.card, bare.codec)][:1] * _BATCH
    bare.run(batch)
    print("ready", flush=True)
    for line in sys.stdin:
        began, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < float(line):
            bare.run(batch)
            done += _BATCH
        print(done / spent, flush=True)


class Way:
    """A child that computes when it is told to."""

    def __init__(self, model: str, folder: Path, more: dict[str, str]) -> None:
        command = [sys.executable, __file__, "--computes", model]
        environment = os.environ | {"HEARTH_HOME": str(folder)} | more
        self._child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()
        self._child.send_signal(signal.SIGSTOP)  # threads that wait awake would take a core from the others

    def _line(self) -> str:
        assert self._child.stdout is not None
        if not (line := self._child.stdout.readline()):
            raise SystemExit(f"a way ended with status {self._child.wait()}")
        return line

    def rate(self, seconds: float, late: list[float] | None = None) -> float:
        """Items a second; `late` gets what a frontend was late by meanwhile."""
        assert self._child.stdin is not None
        self._child.send_signal(signal.SIGCONT)
        self._child.stdin.write(f"{seconds}\n")
        self._child.stdin.flush()
        until = time.perf_counter() + seconds
        while late is not None and (due := time.perf_counter() + _TICK_S) < until:
            time.sleep(max(0.0, due - _WORK_S - time.perf_counter()))
            end = time.perf_counter() + _WORK_S
            while time.perf_counter() < end:
                pass
            late.append(time.perf_counter() - due)
        rate = float(self._line())
        self._child.send_signal(signal.SIGSTOP)
        return rate

    def close(self) -> None:
        """No more."""
        self._child.kill()
        self._child.wait()


def measured(model: str, folder: Path, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Way → items a second alone and beside a frontend, and by what the frontend was late."""
    with ExitStack() as ending:
        ways = {}
        for name, more in WAYS.items():
            ways[name] = Way(model, folder, more)
            ending.callback(ways[name].close)
        alone: dict[str, list[float]] = {name: [] for name in WAYS}
        beside, late = {name: list[float]() for name in WAYS}, {name: list[float]() for name in WAYS}
        for _ in range(rounds):
            for name, way in ways.items():
                alone[name].append(way.rate(seconds))
                beside[name].append(way.rate(seconds, late[name]))
    return {
        name: {
            "alone": median(alone[name]),
            "beside": median(beside[name]),
            "late_p99_ms": 1000 * sorted(late[name])[int(0.99 * len(late[name]))],
        }
        for name in WAYS
    }


def main() -> None:
    wanted = options(__doc__, models="bench-minilm,bench-bert-base,bench-resnet50", seconds=3.0, rounds=5, computes="")
    if wanted.computes:
        compute(wanted.computes)
        return
    found: dict[str, Any] = {}
    with home() as folder:
        from cards import ensure

        for model in wanted.models.split(","):
            ensure(folder, model)
            found[model] = measured(model, folder, wanted.seconds, wanted.rounds)
            rows = [
                [way, f"{one['alone']:.1f}", f"{one['beside']:.1f}", f"{one['late_p99_ms']:.1f}"]
                for way, one in found[model].items()
            ]
            print(f"\n{model}, eager fp32, batches of {_BATCH}")
            table(["way", "items/s alone", "beside a frontend", "frontend late by, p99 ms"], rows)
    report("settling", models=found)


if __name__ == "__main__":
    main()
