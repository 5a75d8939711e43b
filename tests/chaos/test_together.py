"""All faults at the same time, each from a thread of its own, for some seconds or for ten minutes: whoever asks hears what is right."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import faults
import httpx
import psutil
import pytest
from callers import Callers, Outcome, Question, asked
from common import memory, total

from tests.chaos import toys
from tests.chaos.conftest import GENEROUS, PROMISED, Chaos, jpeg, questions, refusable, set_ahead, strangers
from tests.chaos.test_processes import FRONTEND_STALL_S
from tests.chaos.toys import CODES, LEVERS, wrong
from tests.chaos.wreckers import Wreckers
from tests.stack.conftest import Server, wait_for

FRONTENDS, MODELS, DESCRIPTORS = 2, ("toy", "toy@2", "other"), 200  # a version is called after its model
TAKEN_S, NONE_S = 1.0, 0.5  # all connections that may be had; no descriptor at all
DAYS = (400, -400, 0)
HANGS = wrong("hangs")
VERSIONS = ("1", "2")
SHARES = tuple({"1": one, "2": 4 - one} for one in (1, 2, 3))  # of the traffic: two versions, whose answers are the same


def used(server: Server) -> bool:
    """The decoders of whichever frontend has the next connection."""
    return httpx.post(f"{server.url}/predict/image", content=jpeg(300), headers={"content-type": "image/jpeg"}).status_code == 200


def megabytes(server: Server) -> float:
    """PSS of all processes, with all models loaded and at rest. A nursery of decoders that was begun from nothing shares less than
    one that was forked: all are the former.
    """
    pid, names = server.process.pid, ("nursery", "spare", *MODELS)
    for nursery in faults.processes(pid, "decoders"):
        with contextlib.suppress(psutil.NoSuchProcess):  # with its frontend, which was killed a moment ago
            nursery.kill()
    wait_for(lambda: used(server) and len(faults.processes(pid, "decoders")) == FRONTENDS, 60)
    assert all(used(server) for _ in range(20)), "both have begun"
    wait_for(lambda: server.http.post("/models/other/load").json().get("state") == "ready", 60)
    wanted = dict.fromkeys(names, 1) | {"http": FRONTENDS, "toy": 2}
    found: dict[str, int] = {}

    def all_there() -> bool:
        found.update({name: len(faults.processes(pid, name)) for name in wanted})
        return found == wanted

    try:
        wait_for(all_there, 60)
    except AssertionError:
        known = [(one.pid, one.name(), one.status()) for one in faults.processes(pid)]
        pytest.fail(f"{found} instead of {wanted}: {known}\n{server.log[-3000:]}")
    return total(memory(psutil.Process(pid)), "pss")


@dataclass(frozen=True, slots=True)
class Failing(Question):
    """An input that fails by an error of its own; or, where its worker was killed twice meanwhile, as the reason for that."""

    told: list[str] = field(default_factory=list)
    """What it was, each time."""

    @classmethod
    def of(cls, lever: str) -> Failing:
        one = wrong(lever)
        return cls(one.path, one.body, one.media, [*one.known, {"code": "poisoned"}], one.status)

    def outcome(self, status: int, body: bytes) -> Outcome:
        found = Question.outcome(self, status, body)
        if found == "right":
            self.told.append(json.loads(body)["code"])
        return found


@dataclass(frozen=True, slots=True)
class OfEither(Question):
    """Whichever version answers it."""

    by: list[str] = field(default_factory=list)
    """Which version, each time."""

    @classmethod
    def of(cls, question: Question, by: list[str]) -> OfEither:
        known = [question.known[0] | {"version": version} for version in VERSIONS]
        return cls(question.path, question.body, question.media, known, by=by)

    def outcome(self, status: int, body: bytes) -> Outcome:
        found = Question.outcome(self, status, body)
        if found == "right":
            self.by.append(json.loads(body)["version"])
        return found


def with_two_versions(home: Path) -> Path:
    first = toys.write(home) / "models" / "toy"
    second = Path(shutil.copytree(first, first.with_name("toy@2"))) / "card.toml"
    second.write_text(second.read_text().replace("default = true", "version = '2'"))
    return home


class Disk:
    """The home volume: full, read-only, or as it was."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._filler = folder, folder / "filler"
        self._worse = self._turns()

    def worse(self) -> None:
        next(self._worse)

    def _turns(self) -> Iterator[None]:
        while True:
            with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
                while file.write(bytes(1 << 16)):
                    pass
            yield
            self._mounted("ro")  # unless a file is written just now
            yield
            self.mend()
            yield

    def mend(self) -> None:
        self._mounted("rw")
        self._filler.unlink(missing_ok=True)

    def _mounted(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", self.folder], stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def wreckers(server: Server, disk: Disk, ahead: Path) -> Iterator[Wreckers]:
    """All that a server outlives; its ends have tests of their own. What stands still, or hangs, is rare, because it costs its
    limit; nobody kills it before that.
    """
    pid, days, hanging = server.process.pid, random.Random(1), threading.Lock()
    card = disk.folder / "models" / "other" / "card.toml"
    fresh, usual = card.with_suffix(".new"), card.read_text()
    other, shares = usual.replace("max_queue = 256", "max_queue = 200"), cycle(SHARES)

    def worker() -> None:
        if hanging.locked():
            raise LookupError
        faults.kill(pid, "toy", running=True)

    def hangs() -> None:
        with hanging:
            assert http.post(HANGS.path, content=HANGS.body).status_code >= 500, "it hangs, and cannot be answered"

    def connections() -> None:
        with contextlib.ExitStack() as held:
            for stranger in strangers(server, 2 * DESCRIPTORS):
                held.callback(stranger.close)
            threading.Event().wait(TAKEN_S)

    def none() -> None:
        with faults.no_descriptors(pid):
            threading.Event().wait(NONE_S)

    def change(method: str, path: str, **more: Any) -> None:
        answer = http.request(method, path, **more)
        if answer.status_code != 200:
            told = f"{answer.status_code} {answer.text}"
            raise LookupError if answer.json()["code"] in ("loading", "conflict", "unavailable") else httpx.HTTPError(told)

    def reload() -> None:
        with contextlib.suppress(OSError):  # the disk is full, or read-only
            fresh.write_text(other if card.read_text() == usual else usual)
            fresh.replace(card)
        server.process.send_signal(signal.SIGHUP)

    with (
        httpx.Client(base_url=server.url, timeout=60) as http,
        Wreckers(
            worker=(1.0, worker),
            other=(1.0, lambda: faults.kill(pid, "other")),
            nursery=(3.0, lambda: faults.kill(pid, "nursery")),
            decoder=(1.0, lambda: faults.kill(pid, "decode ")),
            decoders=(5.0, lambda: faults.kill(pid, "decoders")),
            frontend=(4.0, lambda: faults.kill(pid, "http", running=True)),
            stopped_worker=(10.0, lambda: faults.stop(pid, "toy")),
            stopped_frontend=(30.0, lambda: faults.stop(pid, "http")),
            unload=(3.0, lambda: change("POST", "/models/other/unload")),
            load=(2.0, lambda: change("POST", "/models/other/load")),
            traffic=(1.0, lambda: change("PUT", "/models/toy/traffic", json={"shares": next(shares)})),
            hangup=(2.0, reload),
            clock=(3.0, lambda: set_ahead(ahead, days.choice(DAYS))),
            disk=(2.0, disk.worse),
            connections=(5.0, connections),
            descriptors=(10.0, none),
            hangs=(30.0, hangs),
        ) as every,
    ):
        yield every


def test_all_together(small_disk: Path, clock: tuple[Path, dict[str, str]], chaos: Chaos):
    """An input that fails has an error, mostly its own; what hangs again and again may be told that it was too late."""
    ahead, believe = clock
    disk, limit = Disk(small_disk), ["prlimit", f"--nofile={DESCRIPTORS}"]
    settings = {"HEARTH_MODELS": ",".join(MODELS), "HEARTH_FRONTENDS": str(FRONTENDS), "HEARTH_TIMEOUT_S": "120", **believe}
    with Server(with_two_versions(small_disk), under=limit, **settings) as server:
        server.http.put("/models/toy/traffic", json={"shares": SHARES[0]}).raise_for_status()
        known = questions(server)
        known += [asked(server.url, "/predict/image", jpeg(side), "image/jpeg") for side in (300, 1000)]  # others read those
        by: list[str] = []
        known = [OfEither.of(question, by) for question in known]
        wicked_ones = {lever: Failing.of(lever) for lever in LEVERS if lever != "hangs"}
        coming = refusable(questions(server, "other"), "loading: ", "worker_lost: other failed: ")
        for name in ("nursery", *MODELS):  # what takes the place of a dead one has less than the first, which would hide growth
            faults.kill(server.process.pid, name)
            megabytes(server)
        before = megabytes(server)
        felt: list[tuple[float, float]] = []
        with (
            Callers(server.url, known) as callers,
            Callers(server.url, list(wicked_ones.values()), count=1) as wicked,
            Callers(server.url, coming, count=1, rest_s=0.1) as others,  # it is quick: it would take the cores
        ):
            until = time.monotonic() + chaos.times(12, 600)
            with wreckers(server, disk, ahead) as done:
                while time.monotonic() < until:
                    felt.append((time.monotonic(), callers.felt(lambda: None)))
            disk.mend()
            set_ahead(ahead, 0)
            calm_s = callers.felt(lambda: None)
            callers.more(3)
        after = megabytes(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0
    growth = after / before - 1
    chaos.figure("all together: done", **done.done)
    chaos.figure("all together: right answers by version", **{version: by.count(version) for version in VERSIONS})
    chaos.figure("all together: MiB", before=before, after=after, growth=growth)
    chaos.figure("all together: inputs that fail", **wicked.counts.figures())
    own = [code == CODES[lever] for lever, one in wicked_ones.items() if CODES[lever] != "poisoned" for code in one.told]
    chaos.figure("all together: those of them that do not kill", told=len(own), with_their_own_error=sum(own))
    recovery = done.recovered(felt)
    times = {"p50_s": statistics.median(recovery), "max_s": max(recovery), "calm_s": calm_s}
    chaos.figure("all together: right answers to all callers after a kill", **times)
    slow = [(took - done.standing_still(asked, asked + took), took, asked) for took, asked in callers.counts.slow]
    worst = {"beyond_what_stood_still_s": max(slow, default=(0.0,))[0], "longest_s": max(callers.counts.slow, default=(0.0,))[0]}
    chaos.figure("all together: right answers", **worst)
    chaos.figure("all together: the model that comes and goes", **others.counts.figures())
    told = f"the model that comes and goes: {others.counts.told}\ninputs that fail: {wicked.counts.told}\n{server.log}"
    sys.stdout.write(told)  # pytest shows it where something failed
    chaos.note("all together", callers.counts)
    assert others.counts.right and not others.counts.wrong and not others.counts.lost, others.counts.told
    assert wicked.counts.right and not wicked.counts.wrong and not wicked.counts.lost, wicked.counts.told
    assert not done.strange, done.strange
    assert min(map(by.count, VERSIONS)) > len(by) / 10, "one version has hardly been asked"
    assert own, "none of those that do not kill was answered"
    assert sum(own) >= len(own) / 2, "mostly they are taken for the reason of a kill"
    if chaos.long:
        assert not wicked.counts.failed, wicked.counts.told
        assert min(done.done.values()) > 0, done.done
        assert times["p50_s"] <= PROMISED["median"], recovery
        late = {took: done.within(asked, asked + took) for beyond, took, asked in slow if beyond > PROMISED["longest"]}
        assert not late, str(late)  # all of it: a dict's own would be cut
    assert calm_s <= FRONTEND_STALL_S + (PROMISED if chaos.long else GENEROUS)["longest"]
    # In a few seconds only what is grossly lost can be seen: allocators have not yet taken what they will take.
    assert growth <= (0.10 if chaos.long else 0.50)
