"""All metrics, in one place. Every process writes its own; any frontend reads them all (prometheus_client, multiprocess mode).

PROMETHEUS_MULTIPROC_DIR must be set before this module is imported; `app/main.py` does it. Labels are bounded: a model is
one of the catalogue's or "".

Writing one value to the shared files takes 2 µs and a request has nine; so a process adds up in memory and writes a few times a
second (frontends: `Tally`) or once a batch (workers).
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.mmap_dict import MmapedDict

from app.logs import log
from app.settings import inherited_environment

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LEAST = 1 << 16  # bytes of prometheus_client's files; they grow by doubling
_ROOM = {"counter": _LEAST, "histogram": 8 * _LEAST, "gauge_livesum": _LEAST}  # of a process's, for some two hundred histograms
_ENTRY = 28  # bytes of a value in them beside its key, padding included
MOVING = ".moving"  # instead of ".db", while what a dead process counted is added to the counts of all the dead
_COSTS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class Families:
    """The families, made once per process on first use."""

    def __init__(self) -> None:
        registry = CollectorRegistry()  # never the default one: reading goes over the files
        self.requests = Counter("hearth_requests", "Requests answered", ["endpoint", "model", "status"], registry=registry)
        self.errors = Counter("hearth_errors", "Errors answered, by code", ["endpoint", "code"], registry=registry)
        self.request = Histogram(
            "hearth_request_seconds", "From first byte to answer", ["endpoint"], buckets=_SECONDS, registry=registry
        )
        self.in_flight = Gauge("hearth_requests_in_flight", "Requests under way", registry=registry, multiprocess_mode="livesum")
        self.stage = Histogram(
            "hearth_stage_seconds", "Seconds per stage", ["stage", "model"], buckets=_SECONDS, registry=registry
        )
        self.queue_depth = Gauge(
            "hearth_queue_depth",
            "Samples that wait in the worker",
            ["model", "worker"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queue = Histogram("hearth_queue_seconds", "Wait in the worker", ["model"], buckets=_SECONDS, registry=registry)
        self.batch = Histogram("hearth_batch_size", "Samples per batch", ["model"], buckets=_COUNTS, registry=registry)
        self.cost = Histogram("hearth_batch_cost", "Padded cost per batch", ["model"], buckets=_COSTS, registry=registry)
        self.shadow = Counter("hearth_shadow", "Answers of versions that run along", ["model", "outcome"], registry=registry)
        self.restarts = Counter("hearth_worker_restarts", "Workers that died and were replaced", ["model"], registry=registry)
        self.http_restarts = Counter("hearth_frontend_restarts", "Frontends that died and were replaced", registry=registry)


@cache
def families() -> Families:
    """This process's families."""
    return Families()


class Spread:
    """Observations of one histogram child, added up here until `flush`."""

    def __init__(self, child: Any) -> None:
        self._child = child
        self._counts: Counts[int] = Counts()
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """A value, as `Histogram.observe`."""
        self._counts[bisect_left(self._child._upper_bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        """Write them."""
        if self._counts:
            self._child._sum.inc(self._sum)
            for bucket, count in self._counts.items():
                self._child._buckets[bucket].inc(count)
            self._counts.clear()
            self._sum = 0.0


class Tally:
    """What a frontend counts. Nothing is written before `flush`."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._written = 0
        self._requests: Counts[tuple[str, str, str]] = Counts()
        self._errors: Counts[tuple[str, str]] = Counts()
        self._shadows: Counts[tuple[str, str]] = Counts()
        self._spreads: dict[tuple[str, ...], Spread] = {}

    def request(self, endpoint: str, model: str, status: int, seconds: float, code: str = "") -> None:
        """A request was answered."""
        self._requests[endpoint, model, str(status)] += 1
        if code:
            self._errors[endpoint, code] += 1
        (self._spreads.get((endpoint,)) or self._spread((endpoint,), families().request)).observe(seconds)

    def shadow(self, model: str, outcome: str) -> None:
        """What came of a copy: it agreed, differed, failed, or was skipped."""
        self._shadows[model, outcome] += 1

    def stage(self, stage: str, model: str, seconds: float) -> None:
        """A stage of one input took so long."""
        (self._spreads.get((stage, model)) or self._spread((stage, model), families().stage)).observe(seconds)

    def flush(self) -> None:
        """Write what was added up."""
        if self.in_flight != self._written:
            families().in_flight.set(self.in_flight)
            self._written = self.in_flight
        for labels, count in self._requests.items():
            families().requests.labels(*labels).inc(count)
        for labels_, count in self._errors.items():
            families().errors.labels(*labels_).inc(count)
        for labels_, count in self._shadows.items():
            families().shadow.labels(*labels_).inc(count)
        self._shadows.clear()
        self._requests.clear()
        self._errors.clear()
        for spread in self._spreads.values():
            spread.flush()

    def _spread(self, key: tuple[str, ...], family: Histogram) -> Spread:
        return self._spreads.setdefault(key, Spread(family.labels(*key)))


@cache
def tally() -> Tally:
    """This process's tally."""
    return Tally()


@dataclass(frozen=True, slots=True)
class ForWorker:
    """What a worker tells."""

    model: str
    worker: str

    def stage(self, stage: str, seconds: float) -> None:
        """A stage of a batch took so long."""
        families().stage.labels(stage, self.model).observe(seconds)

    def waiting(self, samples: int) -> None:
        """So many wait now."""
        families().queue_depth.labels(self.model, self.worker).set(samples)

    def batch(self, size: int, cost: float, waits_s: Iterable[float]) -> None:
        """A batch ran."""
        families().batch.labels(self.model).observe(size)
        families().cost.labels(self.model).observe(cost)
        waits = Spread(families().queue.labels(self.model))
        for wait_s in waits_s:
            waits.observe(wait_s)
        waits.flush()


@dataclass(frozen=True, slots=True)
class ForSupervisor:
    """What the supervisor tells. `folder` is PROMETHEUS_MULTIPROC_DIR."""

    folder: Path
    unsettled: set[int] = field(default_factory=set)
    """Dead processes whose counts could not be added up yet."""

    def worker_restarted(self, model: str) -> None:
        """A worker died."""
        families().restarts.labels(model).inc()

    def frontend_restarted(self) -> None:
        """A frontend died."""
        families().http_restarts.inc()

    def process_gone(self, pid: int) -> None:
        """Forget a dead process's gauges; add its counts to those of all the dead, so that deaths leave no files behind. Counts
        that cannot be read or written stay in its own file, until somebody else dies: no reason to end.
        """
        self.unsettled.add(pid)
        for each in sorted(self.unsettled):
            try:
                if each != pid and psutil.pid_exists(each):  # another one has its number since, and its files
                    continue
                (self.folder / f"gauge_livesum_{each}.db").unlink(missing_ok=True)
                self._add_up(each)
            except OSError as error:
                log.error("the counts of process %d stay by themselves for now: %s", each, error)
            else:
                self.unsettled.discard(each)

    def _add_up(self, pid: int) -> None:
        for kind in ("counter", "histogram"):
            file = self.folder / f"{kind}_{pid}.db"
            if file.exists():
                values = _values(file, pid)
                dead = self._dead(kind, [key for key, *_ in values])
                file = file.rename(file.with_suffix(MOVING))
                for key, value, stamp, _ in values:
                    dead.write_value(key, dead.read_value(key)[0] + value, stamp)  # type: ignore[no-untyped-call]
                dead.close()  # type: ignore[no-untyped-call]
                file.unlink()

    def _dead(self, kind: str, keys: list[str]) -> MmapedDict:
        """Of all the dead, with room on the disk for these, too: a mapped page that has none is a SIGBUS."""
        path = self.folder / f"{kind}_dead.db"
        path.touch()
        with path.open("r+b") as file:
            needed = int.from_bytes(file.read(4), sys.byteorder) + sum(len(key.encode()) + _ENTRY for key in keys)
            size = max(_LEAST, file.seek(0, os.SEEK_END))
            while size < needed:
                size *= 2
            _allocate(file, size)
        return MmapedDict(str(path))  # type: ignore[no-untyped-call]


def for_worker(model: str, worker: str) -> ForWorker:
    """A worker's view. Its files are opened now: when it has a batch there may be no descriptor left to do so."""
    _make_room(Path(inherited_environment()["PROMETHEUS_MULTIPROC_DIR"]))
    families().queue_depth.labels(model, worker)
    families().queue.labels(model)
    return ForWorker(model, worker)


def for_supervisor(folder: Path) -> ForSupervisor:
    """The supervisor's view. Its files are opened now: when a process has died there may be no descriptor left to do so."""
    _make_room(folder)
    families()
    return ForSupervisor(folder)


def for_frontend(folder: Path) -> Tally:
    """A frontend's view. Its files are opened now: where a request finds no descriptor for them, it fails."""
    _make_room(folder)
    families().request.labels("/predict/image")
    return tally()


def _make_room(folder: Path) -> None:
    """For this process's files, before the library makes them, sparse: to write to a mapped page that the disk has no room for is
    a SIGBUS. Raises OSError where there is none.
    """
    for kind, size in _ROOM.items():
        with (folder / f"{kind}_{os.getpid()}.db").open("ab") as file:
            _allocate(file, size)


def _values(file: Path, pid: int) -> list[tuple[str, float, float, int]]:
    """What a dead process counted: (key, value, stamp, position). If something wrote over it, nothing: no reason to end."""
    if file.stat().st_size == 0:  # it was killed as it made the file
        return []
    try:
        values, before = [], 0
        for key, value, stamp, position in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
            name, sample, labels, text = json.loads(key)
            words = (name, sample, text, *labels.values())
            if position <= before or not (name and sample) or not 0 <= value < math.inf:
                raise ValueError(f"{key!r} is {value}")
            "".join(words).encode()  # half a surrogate is no text, and whatever else is none is not joined
            float(labels.get("le", 0))
            values.append((key, value, stamp, position))
            before = position
    except (RuntimeError, AttributeError, TypeError, ValueError, struct.error) as error:
        log.error("the counts of process %d are damaged, and left out: %s", pid, error)
        return []
    return values


def _allocate(file: BinaryIO, size: int) -> None:
    """Raises OSError where the disk has no room for it."""
    if sys.platform == "linux":
        os.posix_fallocate(file.fileno(), 0, size)
