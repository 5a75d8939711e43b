"""Everything at once, for half a minute or for ten: all answers are right, and memory is what it was."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import faults
import psutil
import pytest
from callers import Callers
from common import memory, total

from tests.chaos.conftest import Chaos, questions
from tests.chaos.test_processes import FRONTEND_STALL_S, WITHOUT_HEIRS
from tests.chaos.toys import STALL_S, wrong
from tests.stack.conftest import Server, wait_for


def megabytes(server: Server) -> float:
    """PSS of all processes, at rest."""
    wait_for(lambda: len(faults.processes(server.process.pid, "toy")) == 1)
    return total(memory(psutil.Process(server.process.pid)), "pss")


def deck(server: Server, chaos: Chaos, *, frontends: bool) -> list[Callable[[], object]]:
    """All faults; workers are killed most often. A frontend that stands still holds its callers for seconds: in the long form."""
    pid = server.process.pid
    cards: list[Callable[[], object]] = [lambda: faults.kill(pid, "toy")] * 6
    cards += [lambda: faults.kill(pid, "nursery"), lambda: faults.stop(pid, "toy"), lambda: faults.kill(pid, "other")]
    cards += [lambda verb=verb: server.http.post(f"/models/other/{verb}") for verb in ("load", "unload")]  # type: ignore[misc]
    cards += [lambda: faults.kill(pid, "http")] if frontends else []
    cards += [lambda: faults.stop(pid, "http")] if frontends and chaos.long else []
    return cards


@pytest.mark.parametrize("frontends", [False, pytest.param(True, marks=WITHOUT_HEIRS)], ids=["but frontends", "frontends too"])
def test_all_together(server: Server, chaos: Chaos, frontends: bool):
    name, chance = f"all together, {'frontends too' if frontends else 'but frontends'}", random.Random(0)
    known, cards = questions(server), deck(server, chaos, frontends=frontends)
    before = megabytes(server)
    with (
        Callers(server.url, known) as callers,
        Callers(server.url, [wrong("raises"), wrong("segfaults"), wrong("gives NaN"), known[0]], count=1) as bad,
    ):
        felt, until = [], time.monotonic() + chaos.times(1, 600)
        while not felt or time.monotonic() < until:
            for fault in chance.sample(cards, len(cards)):
                felt.append(callers.felt(fault))
                callers.more(3)
    after = megabytes(server)
    growth = after / before - 1
    chaos.figure(f"{name}: MiB", before=before, after=after, growth=growth)
    chaos.note(f"{name}: inputs that fail", bad.counts)
    chaos.note(name, callers.counts, felt, stall_s=FRONTEND_STALL_S if frontends else STALL_S)
    # In a few seconds only what is grossly lost can be seen: allocators have not yet taken what they will take.
    assert growth <= (0.10 if chaos.long else 0.50)
