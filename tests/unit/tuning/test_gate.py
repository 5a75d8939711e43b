"""Tuners stop while workers run batches, get their share all the same, and go on when it is quiet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import psutil
import pytest

from app.tuning.gate import Gate
from app.wire.blackbox import BlackBox


class Tuner:
    """A process that remembers how it was left."""

    pid = 4711
    stopped = False


@pytest.fixture
def tuner(monkeypatch: pytest.MonkeyPatch) -> Tuner:
    tuner = Tuner()

    def kill(pid: int, number: int) -> None:
        assert pid == tuner.pid
        tuner.stopped = number == signal.SIGSTOP

    monkeypatch.setattr(os, "kill", kill)
    return tuner


def stopped(tuner: Tuner) -> bool:
    return tuner.stopped


def test_a_tuner_stops_for_a_batch_and_goes_on_when_it_is_quiet(tmp_path: Path, tuner: Tuner):
    box = BlackBox(tmp_path / "m.1.blackbox", create=True)
    gate = Gate(tmp_path, 0.1, lambda: [tuner.pid])
    gate.turn(10.05)
    assert not stopped(tuner)
    box.start(10.05, 0, [1])
    gate.turn(10.06)
    assert stopped(tuner)
    box.beat(10.07, 0)
    gate.turn(10.08)
    assert stopped(tuner), "the next batch may come at once"
    gate.turn(10.15)
    assert not stopped(tuner)


def test_it_looks_often_only_while_requests_come(tmp_path: Path, tuner: Tuner):
    box = BlackBox(tmp_path / "m.1.blackbox", create=True)
    gate = Gate(tmp_path, 0.1, lambda: [tuner.pid])
    gate.turn(10.0)
    assert gate._pause_s(10.0) > 0.005
    box.start(10.1, 0, [1])
    gate.turn(10.1)
    box.beat(10.2, 0)
    gate.turn(10.2)
    assert gate._pause_s(10.9) < 0.005 < gate._pause_s(11.2)


def test_while_requests_come_it_gets_its_share(tmp_path: Path, tuner: Tuner):
    box = BlackBox(tmp_path / "m.1.blackbox", create=True)
    box.start(20.0, 0, [1])
    gate = Gate(tmp_path, 0.3, lambda: [tuner.pid])
    ran = []
    for tick in range(100):
        gate.turn(20.0005 + tick / 100)
        ran.append(not stopped(tuner))
    assert 25 <= sum(ran) <= 35


def test_what_late_looks_give_too_much_is_taken_back(tmp_path: Path, tuner: Tuner):
    box = BlackBox(tmp_path / "m.1.blackbox", create=True)
    box.start(20.0, 0, [1])
    gate, now, ran, chance = Gate(tmp_path, 0.2, lambda: [tuner.pid]), 20.0, 0.0, Random(0)
    gate.turn(now)
    for _ in range(10_000):
        passed = chance.choice((0.002, 0.004, 0.03))
        ran += 0.0 if stopped(tuner) else passed
        now += passed
        gate.turn(now)
    assert ran / (now - 20.0) == pytest.approx(0.2, rel=0.1)


def test_seldom_requests_have_no_tuner_beside_them(tmp_path: Path, tuner: Tuner):
    """Nothing was put by while they ran freely."""
    box = BlackBox(tmp_path / "m.1.blackbox", create=True)
    gate, at = Gate(tmp_path, 0.1, lambda: [tuner.pid]), 20.0
    for _ in range(50):
        box.start(at, 0, [1])
        gate.turn(at)
        assert stopped(tuner)
        box.beat(at + 0.004, 0)
        for tick in range(2, 100, 2):
            gate.turn(at + tick / 1000)
        assert not stopped(tuner)
        at += 0.1


def test_workers_come_and_go(tmp_path: Path, tuner: Tuner):
    gate = Gate(tmp_path, 0.1, lambda: [tuner.pid])
    gate.turn(30.05)
    box = BlackBox(tmp_path / "m.1.blackbox", create=True)
    box.start(30.05, 0, [1])
    gate.turn(31.05)
    assert stopped(tuner)
    (tmp_path / "m.1.blackbox").unlink()
    gate.turn(32.05)
    gate.turn(32.15)
    assert not stopped(tuner)


def test_whoever_closes_the_gate_leaves_nobody_stopped(tmp_path: Path, tuner: Tuner):
    BlackBox(tmp_path / "m.1.blackbox", create=True).start(40.0, 0, [1])
    gate = Gate(tmp_path, 0.1, lambda: [tuner.pid])
    gate.turn(40.05)
    assert stopped(tuner)
    gate.close()
    assert not stopped(tuner)


@pytest.fixture
def process() -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def becomes(process: psutil.Process, status: str) -> bool:
    end = time.monotonic() + 10
    while process.status() != status and time.monotonic() < end:
        pass
    return process.status() == status


def test_a_real_process_really_stops(tmp_path: Path, process: psutil.Process):
    BlackBox(tmp_path / "m.1.blackbox", create=True).start(time.monotonic(), 0, [1])
    gate = Gate(tmp_path, 0.01, lambda: [process.pid])
    gate.start()
    assert becomes(process, psutil.STATUS_STOPPED)
    gate.close()
    assert becomes(process, psutil.STATUS_SLEEPING)
