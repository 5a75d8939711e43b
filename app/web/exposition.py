"""What all processes have counted, in Prometheus's text format (prometheus_client, multiprocess mode)."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from prometheus_client.metrics_core import Metric

from app.metrics import MOVING, tally

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LOOKS, _LOOK_S = 50, 0.002  # how often the end of a burial is waited for, which takes a millisecond


class _Begun(multiprocess.MultiProcessCollector):
    """Of all processes, but for files that are just being made: the library takes an empty one for damage. Each counts once, or
    FileNotFoundError: a count that falls looks like a restart. So the dead come first, and nobody is among them by half.
    """

    patient = True

    def collect(self) -> Iterable[Metric]:
        listed = list(Path(self._path).glob("*"))
        if self.patient and any(file.suffix == MOVING for file in listed):
            raise FileNotFoundError(errno.ENOENT, "what a dead process counted is being moved")
        files = [file for file in listed if file.suffix == ".db" and file.stat().st_size > 0]
        files.sort(key=lambda file: not file.stem.endswith("_dead"))
        return self.merge([str(file) for file in files])  # type: ignore[no-untyped-call, no-any-return]


def render(memory: Iterable[tuple[str, str, int]]) -> bytes:
    """Everything of all processes in Prometheus's text format. `memory`: (model, worker, bytes), read at this moment."""
    tally().flush()
    registry = CollectorRegistry()
    begun = _Begun(registry)  # type: ignore[no-untyped-call]
    counted = b""
    for left in reversed(range(_LOOKS)):
        begun.patient = left > 0  # the supervisor may stand still
        try:
            counted = generate_latest(registry)
        except FileNotFoundError:  # a process died between the listing and the reading, or was just then added to the dead
            time.sleep(_LOOK_S)
        else:
            break
    text = [counted, b"# HELP hearth_worker_memory_bytes Memory of a worker\n"]
    text.append(b"# TYPE hearth_worker_memory_bytes gauge\n")
    text += [
        f'hearth_worker_memory_bytes{{model="{model}",worker="{worker}"}} {size}\n'.encode() for model, worker, size in memory
    ]
    return b"".join(text)
