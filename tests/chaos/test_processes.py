"""Processes that are killed, or stand still: callers who never ask twice see right answers alone."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import faults
import httpx
import pytest
from callers import Callers, Line, asked

from tests.chaos.conftest import Chaos
from tests.chaos.toys import STALL_S, slow, wrong
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


def test_kills_from_outside_convict_no_input(server: Server, chaos: Chaos):
    """Each meets the same two in their forward, which takes a second: more kills than would convict what ends its worker by itself."""

    def begun() -> int:
        return server.log.count("pull a lever")

    known = [asked(server.url, "/predict/image", slow(number), "image/png") for number in range(2)]
    with Callers(server.url, known, count=2) as callers:
        for _ in range(chaos.times(1, 10)):
            callers.more(1)
            for _ in range(6):
                before = begun()
                wait_for(lambda before=before: begun() > before)
                faults.kill(server.process.pid, "toy")
            callers.more(1)
    chaos.note("kill -9 of a worker, six times in one forward", callers.counts)


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


def forwards(server: Server) -> float:
    return server.metric('hearth_batch_size_count{model="toy"}')


@pytest.mark.parametrize("fault", ["kill", "stop", "hangs"])
def test_readiness_turns_false_soon_after_a_fault_and_true_only_after_a_real_forward(server: Server, chaos: Chaos, fault: str):
    """Nobody else asks: every forward is one that readiness asked for. Who is killed is replaced within moments, and may be heard to
    be ready again without having been heard not to be.
    """
    false_s = list[float]()
    line = Line(server.url)
    with httpx.Client(base_url=server.url, timeout=40) as http, ThreadPoolExecutor(1) as asking, closing(line):

        def ready() -> bool:
            return http.get("/health/ready").status_code == 200

        for _ in range(chaos.times(1, 10)):
            wait_for(ready)
            (old,) = wait_for(lambda: pids(server, "toy"))
            began, poison = time.monotonic(), None
            if fault == "hangs":
                poison = asking.submit(line.ask, wrong("hangs"))
            else:
                getattr(faults, fault)(server.process.pid, "toy")
            before, replaced = forwards(server), False
            while (still := ready()) and not replaced:
                now = pids(server, "toy")
                replaced = bool(now) and old not in now
            if still:
                continue
            false_s.append(time.monotonic() - began)
            wait_for(lambda poison=poison: (poison is None or poison.done()) and ready(), 40)
            assert old not in pids(server, "toy")
            wait_for(lambda before=before: forwards(server) > before, 1)  # counted behind its answer
    chaos.figure(f"readiness after {fault}", heard=len(false_s), false_after_s=max(false_s, default=math.inf))
    assert (false_s or not chaos.long) if fault == "kill" else len(false_s) == chaos.times(1, 10)
    assert max(false_s, default=0) <= (2 if chaos.long else 10)
