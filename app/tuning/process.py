"""The tuner: one job from its archive to a model. `python -m app.tuning.process JOB check|train`, started by the foreman.

Everything can end at any moment, by `kill -9` too. What was done lies in the job's folder, each file written beside and renamed;
who comes next goes on from there, and ends with the same weights.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from app.catalogue import Catalogue
from app.errors import HearthError, Invalid, UnknownJob
from app.logs import configure, log
from app.process import die_with_parent, set_name, stand_back
from app.settings import Settings, cores, jobs_folder
from app.tasks import TASKS, Check, resolve
from app.tuning.archive import remove, strip, unpack
from app.tuning.job import Job
from app.tuning.spec import Spec
from app.tuning.store import Store
from app.weights import fetch

if TYPE_CHECKING:
    from app.tuning.run import Run
    from app.tuning.trainer import Progress

_NOTE_S = 0.25  # between two notes of how far it has come, which are also when a cancel is heard
_TELL_S = 1.0  # between two events of progress


class Cancelled(Exception):
    """The job is no longer open: somebody cancelled it."""


class Tuner:
    """One job."""

    def __init__(self, settings: Settings, store: Store, job: Job) -> None:
        self._settings = settings
        self._store = store
        self._job = job
        self._spec = Spec(**job.spec)
        self._folder = jobs_folder(settings.home) / job.id
        self._prepared = self._folder / "prepared"
        self._card = Catalogue.read(settings.home).named(self._spec.base)

    def check(self) -> None:
        """`validating` → `queued`. Raises HearthError, OSError, MemoryError."""
        report = self._checked()
        self._store.move(self._job.id, "queued", only_from=("validating",), report=report)

    def train(self) -> None:
        """`queued` → `running` → `succeeded`, from wherever it stands. Raises the same."""
        import torch

        from app.tuning.publish import move_in, write
        from app.tuning.run import begin

        report = self._checked()
        if not self._store.move(self._job.id, "running"):
            return
        started = time.monotonic()
        threads = self._settings.thread_count() or cores()
        torch.set_num_threads(threads)
        torch.manual_seed(self._spec.seed)
        files = fetch(self._card, self._settings, lambda *_: None)
        checkpoint = self._folder / "checkpoint.pt"
        run = begin(self._card, files, self._spec, self._prepared, report, goes_on=checkpoint.exists())
        if checkpoint.exists():
            run.training.restore(torch.load(checkpoint, weights_only=True))
            log.info("going on from step %d", run.training.step)
        self._train(run, checkpoint)
        result = {
            "metrics": run.training.metrics,
            "seconds": round(time.monotonic() - started, 1),
            "device": "cpu",
            "threads": threads,
            "spec": self._spec.model_dump(),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "transformers", "numpy")}
            | {"python": platform.python_version()},
        }
        made = write(run, self._spec, self._prepared, result | {"job": self._job.id}, self._settings)
        if self._store.get(self._job.id).state != "running":
            raise Cancelled
        move_in(made, self._settings.home / "models" / self._spec.name, self._job.id)
        self._store.move(self._job.id, "succeeded", only_from=("running",), result=result)

    def _checked(self) -> dict[str, Any]:
        """The data set, unpacked, checked and decoded, and what is to be said about it. Done once."""
        told = self._prepared / "report.json"
        if told.exists():
            report: dict[str, Any] = msgspec.json.decode(told.read_bytes())
            return report
        beside, data = self._folder / ".prepared.part", self._folder / "data"
        for folder in (beside, data):
            remove(folder)
            folder.mkdir(parents=True)
        unpack(self._folder / "dataset", data)
        files = fetch(self._card, self._settings, lambda *_: None)
        check: Check = resolve(TASKS[self._card.task].check or "")
        report = check(strip(data), self._card, files, beside, validation=self._spec.validation, seed=self._spec.seed)
        if report["problems"]:
            self._store.note(self._job.id, only_in="validating", report=report)
            first = report["problems"][0]
            more = len(report["problems"]) + report["more_problems"] - 1
            raise Invalid("{where}: {what}; {remedy}".format(**first) + (f" (and {more} more, see report)" if more else ""))
        (beside / "report.json").write_bytes(msgspec.json.encode(report))
        remove(self._prepared)
        beside.rename(self._prepared)
        remove(data)
        return report

    def _train(self, run: Run, checkpoint: Path) -> None:
        noted = told = saved = time.monotonic()
        for progress in run.training:
            now = time.monotonic()
            if progress.metrics or progress.step == 1 or now - told > _TELL_S:
                self._tell(progress, "progress")
                noted = told = now
            elif now - noted > _NOTE_S:
                self._tell(progress, "")
                noted = now
            pause_s = self._settings.checkpoint_s
            if now - saved > (pause_s / 5 if progress.metrics else pause_s):  # the end of an epoch is a better place
                save(run.training.state(), checkpoint)
                saved = time.monotonic()

    def _tell(self, progress: Progress, kind: str) -> None:
        values: dict[str, Any] = {name: getattr(progress, name) for name in progress.__slots__} | {
            "memory_bytes": psutil.Process().memory_info().rss,
            "device": "cpu",
        }
        if not self._store.note(self._job.id, kind, values, progress=values):
            raise Cancelled


def save(state: dict[str, Any], path: Path) -> None:
    """Beside and renamed: a checkpoint is whole or the one before it."""
    import torch

    beside = path.with_name(f".{path.name}.part")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def why(error: Exception) -> str:
    """What the job's owner is told."""
    if isinstance(error, HearthError):
        return error.detail
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full; make room in HEARTH_HOME, then resume the job"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "not enough memory; lower batch_size and start again"
    return f"training raised {type(error).__name__}; the job's log has the details"


def attempt(work: Callable[[], None], store: Store, job: str) -> int:
    """Run it; the status to exit with."""
    try:
        work()
    except Cancelled:
        log.info("cancelled")
    except UnknownJob:
        log.info("deleted")
    except Exception as error:  # noqa: BLE001  whatever it is, the job's owner must hear
        log.exception("failed")
        store.move(job, "failed", reason=why(error))
        return 1
    return 0


def main() -> None:
    """Entry of the process."""
    die_with_parent()
    set_name(f"hearth tune {sys.argv[1]}")
    stand_back()
    settings = Settings.from_environment()
    configure(settings)
    store = Store.of(settings.home, settings.database)
    job = store.get(sys.argv[1])

    def work() -> None:
        lock = (jobs_folder(settings.home) / job.id / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)  # a tuner before us, whose foreman died, may not have ended yet
        tuner = Tuner(settings, store, job)
        tuner.check() if sys.argv[2] == "check" else tuner.train()

    sys.exit(attempt(work, store, job.id))


if __name__ == "__main__":
    main()
