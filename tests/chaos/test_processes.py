"""Processes that are killed, or stand still: callers who never ask twice see right answers alone."""

from __future__ import annotations

import time

import faults
import httpx
import pytest
from callers import Callers

from tests.chaos.conftest import Chaos
from tests.chaos.toys import STALL_S
from tests.stack.conftest import Server, wait_for

FRONTEND_STALL_S = 5.0  # app/pool/supervisor.py, _FRONTEND_LOST_S


def pids(server: Server, name: str) -> set[int]:
    return {process.pid for process in faults.processes(server.process.pid, name)}


@pytest.mark.parametrize("name", ["toy", "nursery"])
def test_kill(server: Server, callers: Callers, chaos: Chaos, name: str):
    felt = []
    for _ in range(chaos.times(3, 60)):
        wait_for(lambda: pids(server, name))
        felt.append(callers.felt(lambda: faults.kill(server.process.pid, name)))
        callers.more()
    chaos.note(f"kill -9 of {'a worker' if name == 'toy' else 'the nursery'}", callers.counts, felt)


def test_kill_of_the_nursery_and_then_of_a_worker(server: Server, callers: Callers, chaos: Chaos):
    """The next worker is forked by a nursery that has only just become one."""

    def both() -> None:
        faults.kill(server.process.pid, "nursery")
        faults.kill(server.process.pid, "toy")

    felt = []
    for _ in range(chaos.times(2, 30)):
        wait_for(lambda: pids(server, "toy") and pids(server, "nursery") and pids(server, "spare"))
        felt.append(callers.felt(both))
        callers.more()
    chaos.note("kill -9 of the nursery, then of a worker", callers.counts, felt)


def test_kill_of_a_frontend(server: Server, callers: Callers, chaos: Chaos):
    felt = []
    for _ in range(chaos.times(2, 30)):
        felt.append(callers.felt(lambda: faults.kill(server.process.pid, "http")))
        wait_for(lambda: len(pids(server, "http")) == 2)
        callers.more()
    chaos.note("kill -9 of a frontend", callers.counts, felt)


def test_a_worker_that_stands_still_is_replaced(server: Server, callers: Callers, chaos: Chaos):
    felt = []
    for _ in range(chaos.times(1, 20)):
        felt.append(callers.felt(lambda: faults.stop(server.process.pid, "toy")))
        callers.more()
    chaos.note("SIGSTOP of a worker", callers.counts, felt, stall_s=STALL_S)


def test_a_frontend_that_stands_still_costs_nobody_an_answer(server: Server, callers: Callers, chaos: Chaos):
    felt = []
    for _ in range(chaos.times(1, 10)):
        old = pids(server, "http")
        felt.append(callers.felt(lambda: faults.stop(server.process.pid, "http")))
        wait_for(lambda old=old: len(now := pids(server, "http")) == 2 and now != old)
        callers.more()
    chaos.note("SIGSTOP of a frontend", callers.counts, felt, stall_s=FRONTEND_STALL_S)


def readiness_turns(server: Server, to: int) -> float:
    """Seconds until /health/ready says so."""
    began = time.monotonic()
    with httpx.Client(base_url=server.url, timeout=10) as http:
        wait_for(lambda: http.get("/health/ready").status_code == to, 40)
    return time.monotonic() - began


def test_readiness_turns_false_soon_after_a_fault_and_true_only_after_a_real_forward(server: Server, chaos: Chaos):
    """Nobody else asks: every forward is one that readiness asked for."""
    readiness_turns(server, 200)
    stopped = faults.stop(server.process.pid, "toy")
    false_s = readiness_turns(server, 503)
    before = forwards(server)
    readiness_turns(server, 200)
    assert stopped.pid not in pids(server, "toy")
    wait_for(lambda: forwards(server) > before, 1)  # counted behind its answer
    chaos.figure("readiness after SIGSTOP of a worker", false_after_s=false_s)
    assert false_s <= (2 if chaos.long else 10)


def forwards(server: Server) -> float:
    return server.metric('hearth_batch_size_count{model="toy"}')
