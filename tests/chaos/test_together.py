"""Everything at once, for half a minute or for ten: all answers are right, and memory is what it was."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import faults
import psutil
from callers import Callers
from common import memory, total

from tests.chaos.conftest import Chaos, questions
from tests.chaos.test_processes import FRONTEND_STALL_S
from tests.chaos.toys import STALL_S, wrong
from tests.stack.conftest import Server, wait_for


def megabytes(server: Server) -> float:
    """PSS of all processes, at rest."""
    wait_for(lambda: len(faults.processes(server.process.pid, "toy")) == 1)
    return total(memory(psutil.Process(server.process.pid)), "pss")


OTHER, WEDGE, FRONTEND_WEDGE = "kill -9 of another model's worker", "SIGSTOP of a worker", "SIGSTOP of a frontend"
NAMES = {"the nursery": "nursery", "a frontend": "http"}
AWAY = (OTHER, "kill -9 of the nursery")  # may be: the model is unloaded, the nursery not yet back
STALLS_S = {WEDGE: STALL_S, FRONTEND_WEDGE: FRONTEND_STALL_S}  # after which a fault is noticed at all


def deck(server: Server, chaos: Chaos) -> list[tuple[str, Callable[[], object]]]:
    """All faults; workers are killed most often. A frontend that stands still holds its callers for seconds: in the long form."""
    pid = server.process.pid
    cards: list[tuple[str, Callable[[], object]]] = [("kill -9 of a worker", lambda: faults.kill(pid, "toy"))] * chaos.times(2, 6)
    cards += [(f"kill -9 of {what}", lambda name=name: faults.kill(pid, name)) for what, name in NAMES.items()]  # type: ignore[misc]
    cards += [(OTHER, lambda: faults.kill(pid, "other")), (WEDGE, lambda: faults.stop(pid, "toy"))]
    cards += [(verb, lambda verb=verb: server.http.post(f"/models/other/{verb}")) for verb in ("load", "unload")]  # type: ignore[misc]
    cards += [("SIGHUP", lambda: server.process.send_signal(signal.SIGHUP))]
    cards += [("traffic", lambda: server.http.put("/models/toy/traffic", json={"shares": {"1": 1}}).raise_for_status())]
    cards += [(FRONTEND_WEDGE, lambda: faults.stop(pid, "http"))] if chaos.long else []
    return cards


def felt_once(callers: Callers, fault: str, do: Callable[[], object]) -> list[float]:
    """Nothing, where there is nobody to be hit. A worker comes back: the inputs that fail have killed it just now."""
    for _ in range(1 if fault in AWAY else 20):
        with suppress(LookupError):
            return [callers.felt(do)]
        callers.more(1)
    assert fault in AWAY, fault
    return []


def test_all_together(server: Server, chaos: Chaos):
    chance, known, cards = random.Random(0), questions(server), deck(server, chaos)
    before = megabytes(server)
    felt: dict[str, list[float]] = {}
    with (
        Callers(server.url, known) as callers,
        Callers(server.url, [wrong("raises"), wrong("segfaults"), wrong("gives NaN"), known[0]], count=1) as bad,
    ):
        until = time.monotonic() + chaos.times(1, 600)
        while not felt or time.monotonic() < until:
            for fault, do in chance.sample(cards, len(cards)):
                felt.setdefault(fault, []).extend(felt_once(callers, fault, do))
                callers.more(3)
    after = megabytes(server)
    growth = after / before - 1
    chaos.figure("all together: MiB", before=before, after=after, growth=growth)
    chaos.note("all together: inputs that fail", bad.counts)
    chaos.note("all together", callers.counts)
    for fault, felt_s in felt.items():
        chaos.felt(f"all together: {fault}", felt_s, stall_s=STALLS_S.get(fault, 0.0))
    # In a few seconds only what is grossly lost can be seen: allocators have not yet taken what they will take.
    assert growth <= (0.10 if chaos.long else 0.50)
