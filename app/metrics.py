"""All metrics, in one place. Every process writes its own; any frontend reads them all (prometheus_client, multiprocess mode).

PROMETHEUS_MULTIPROC_DIR must be set before this module is imported; `app/main.py` does it. Labels are bounded: a model is
one of the catalogue's or "".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.mmap_dict import MmapedDict

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
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
        self.restarts = Counter("hearth_worker_restarts", "Workers that died and were replaced", ["model"], registry=registry)
        self.http_restarts = Counter("hearth_frontend_restarts", "Frontends that died and were replaced", registry=registry)


@cache
def families() -> Families:
    """This process's families."""
    return Families()


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
        for wait_s in waits_s:
            families().queue.labels(self.model).observe(wait_s)


@dataclass(frozen=True, slots=True)
class ForSupervisor:
    """What the supervisor tells. `folder` is PROMETHEUS_MULTIPROC_DIR."""

    folder: Path

    def worker_restarted(self, model: str) -> None:
        """A worker died."""
        families().restarts.labels(model).inc()

    def frontend_restarted(self) -> None:
        """A frontend died."""
        families().http_restarts.inc()

    def process_gone(self, pid: int) -> None:
        """Forget a dead process's gauges; add its counts to those of all the dead, so that deaths leave no files behind."""
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
        for kind in ("counter", "histogram"):
            file = self.folder / f"{kind}_{pid}.db"
            if file.exists():
                values = list(MmapedDict.read_all_values_from_file(str(file)))  # type: ignore[no-untyped-call]
                file.unlink()
                dead = MmapedDict(str(self.folder / f"{kind}_dead.db"))  # type: ignore[no-untyped-call]
                for key, value, stamp, _ in values:
                    dead.write_value(key, dead.read_value(key)[0] + value, stamp)  # type: ignore[no-untyped-call]
                dead.close()  # type: ignore[no-untyped-call]


def for_worker(model: str, worker: str) -> ForWorker:
    """A worker's view."""
    return ForWorker(model, worker)


def for_supervisor(folder: Path) -> ForSupervisor:
    """The supervisor's view."""
    return ForSupervisor(folder)


def render(memory: Iterable[tuple[str, str, int]]) -> bytes:
    """Everything of all processes in Prometheus's text format. `memory`: (model, worker, bytes), read at this moment."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    try:
        counted = generate_latest(registry)
    except FileNotFoundError:  # a process died between the listing and the reading; by now its counts are with the dead
        counted = generate_latest(registry)
    text = [counted, b"# HELP hearth_worker_memory_bytes Memory of a worker\n"]
    text.append(b"# TYPE hearth_worker_memory_bytes gauge\n")
    text += [
        f'hearth_worker_memory_bytes{{model="{model}",worker="{worker}"}} {size}\n'.encode() for model, worker, size in memory
    ]
    return b"".join(text)
