"""The tuner: one job from its archive to a model. `python -m app.tuning.process PARENT JOB check|train`, started by the foreman.

Everything can end at any moment, by `kill -9` too. What was done lies in the job's folder, each file written beside and renamed;
who comes next goes on from there, and ends with the same weights.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy.exc import OperationalError

from app.catalogue import Catalogue, number_of, read_card
from app.engine.device import bound_memory
from app.errors import HearthError, Invalid, UnknownJob
from app.logs import configure, log
from app.process import die_with_parent, go_first, set_name, stand_back
from app.settings import Settings, cores, jobs_folder
from app.tasks.findings import PROBLEM
from app.tuning.archive import remove
from app.tuning.data import base_files, examine, opened
from app.tuning.job import Job
from app.tuning.room import give_back, held, is_full, is_read_only, with_causes
from app.tuning.spec import Spec, filled
from app.tuning.store import Store
from app.weights import sha256

if TYPE_CHECKING:
    import torch

    from app.tuning.progress import Progress
    from app.tuning.run import Run

_FIRST = 800  # when memory ends, before a worker that answers: a job goes on from its checkpoint
_SAVING = 0.05  # share of the time that checkpoints may take: those of large models on slow disks take seconds
_RAREST_S = 600.0  # between two checkpoints, whatever one takes
_NOTE_S = 0.25  # between two notes of how far it has come, which are also when a cancel is heard
_TELL_S = 1.0  # between two events of progress
# As torch, CUDA and C++ put it, each in an exception of its own.
_NO_MEMORY_WORDS = ("can't allocate memory", "out of memory", "Cannot allocate memory", "std::bad_alloc")


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
        self._measured: dict[str, float] = job.progress.get("metrics", {})
        self._catalogue = Catalogue.read(settings.home)
        kept = self._folder / "base" / self._spec.base  # of a base that may be removed from the catalogue meanwhile
        self._card = read_card(kept) if kept.is_dir() else self._catalogue.named(self._spec.base)

    def check(self) -> None:
        """`validating` → `queued`. Raises HearthError, OSError, MemoryError."""
        report = self._checked()
        spec = filled(self._spec, report["task"])
        self._store.move(self._job.id, "queued", only_from=("validating",), report=report, spec=spec.model_dump())

    def train(self) -> None:
        """`queued` → `running` → `succeeded`, from wherever it stands. Raises the same."""
        import torch

        from app.tuning.device import choose
        from app.tuning.publish import publish
        from app.tuning.run import begin, measured, origin, place

        report = self._checked()
        spec = filled(self._spec, report["task"])
        if not self._store.move(self._job.id, "running"):
            return
        started = time.monotonic()
        choose(self._settings.devices)
        torch.set_num_threads(self._settings.thread_count() or cores())
        torch.manual_seed(spec.seed)
        files = base_files(self._spec, self._card, self._settings)
        checkpoint = self._folder / "checkpoint.pt"
        known = origin(spec, files) | {"data_sha256": report.get("sha256", "")}
        # Of large data it takes minutes: a new head learns first.
        self._store.note(self._job.id, "stage", {"stage": "preparing"}, result=known)
        run = begin(self._card, files, spec, self._prepared, report, goes_on=checkpoint.exists())
        if checkpoint.exists():
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
            started -= state["seconds"]
            run.training.restore(state)
            log.info("going on from step %d", run.training.step)
        known |= place(run.training) | run.shown
        self._store.note(self._job.id, "stage", {"stage": "training"}, result=known)
        self._train(run, checkpoint, started)
        result = measured(run.training, time.monotonic() - started) | known
        version = publish(run, spec, self._prepared, result, self._job.id, self._settings)
        result["version"] = number_of(version)
        if not self._store.move(self._job.id, "succeeded", only_from=("running",), result=result):
            remove(self._settings.home / "models" / version)
            raise Cancelled

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
        root = opened(self._folder / "dataset", data, self._card)
        files = base_files(self._spec, self._card, self._settings)
        report = examine(root, self._spec, self._card, files, self._catalogue.cards.values(), beside)
        if report["problems"]:
            self._store.note(self._job.id, only_in="validating", report=report)
            first = report["problems"][0]
            more = len(report["problems"]) + report["more_problems"] - 1
            raise Invalid(PROBLEM.format(**first) + (f" (and {more} more, see report)" if more else ""))
        report["sha256"] = sha256(self._folder / "dataset")
        (beside / "report.json").write_bytes(msgspec.json.encode(report))
        remove(self._prepared)
        beside.rename(self._prepared)
        remove(data)
        return report

    def _train(self, run: Run, checkpoint: Path, started: float) -> None:
        noted = told = saved = time.monotonic()
        # The first checkpoints come soon: so a job gets on that is killed more often than it is saved.
        pause_s, least_s = self._settings.checkpoint_s / 16, 0.0
        for progress in run.training:
            now = time.monotonic()
            if progress.metrics or progress.step == 1 or now - told > _TELL_S:
                self._tell(progress, run.training.device, "progress")
                noted = told = now
            elif now - noted > _NOTE_S:
                self._tell(progress, run.training.device)
                noted = now
            if now - saved > max(least_s, pause_s / 5 if progress.metrics else pause_s):  # the end of an epoch is a better place
                save(run.training.state() | {"seconds": now - started}, checkpoint)
                saved = time.monotonic()
                pause_s, least_s = min(2 * pause_s, self._settings.checkpoint_s), min((saved - now) / _SAVING, _RAREST_S)

    def _tell(self, progress: Progress, device: torch.device, kind: str = "") -> None:
        from app.tuning.device import described, memory

        values: dict[str, Any] = {name: getattr(progress, name) for name in progress.__slots__}
        values |= described(device) | memory(device)
        self._measured = progress.metrics or self._measured
        if not self._store.note(self._job.id, kind, values, progress=values | {"metrics": self._measured}):
            raise Cancelled


def save(state: dict[str, Any], path: Path) -> None:
    """Beside and renamed: a checkpoint is whole or the one before it."""
    import torch

    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def why(error: Exception) -> str:
    """What the job's owner is told."""
    if isinstance(error, HearthError):
        return error.detail
    if is_full(error):
        return "the disk is full; make room in HEARTH_HOME, then resume the job"
    if is_read_only(error):
        return "the disk is read-only; make HEARTH_HOME writable, then resume the job"
    errors = list(with_causes(error))
    said = " ".join(map(str, errors))
    numbers = {one.errno for one in errors if isinstance(one, OSError)}
    if errno.ENOMEM in numbers or isinstance(error, MemoryError) or any(words in said for words in _NO_MEMORY_WORDS):
        where = "GPU memory" if "CUDA" in said else "memory"
        return (
            f"not enough {where}; ask again with half the batch_size and twice the accumulate: steps of as many samples, "
            "which learn the same but for batch norms, pairs and triplets: those compare the samples of one batch"
        )
    return f"training raised {type(error).__name__}; the job's log has the details"


def attempt(work: Callable[[], None], store: Store, job: str, folder: Path) -> int:
    """Run it; the status to exit with. `folder`: the job's, where nothing stays half made."""
    try:
        with held(folder):  # a tuner before us, whose foreman died, may not have ended yet
            try:
                work()
            finally:
                give_back(folder)  # on a full disk this is the room that it takes to write down why the job failed
    except Cancelled:
        log.info("cancelled")
    except UnknownJob:
        log.info("deleted")
    except Exception as error:  # noqa: BLE001  whatever it is, the job's owner must hear
        log.exception("failed")
        if isinstance(error, OperationalError) and not is_full(error):  # the database is away: the foreman tries again
            return 1
        store.move(job, "failed", reason=why(error))
        return 1
    return 0


def main() -> None:
    """Entry of the process."""
    die_with_parent(int(sys.argv[1]))
    set_name(f"hearth tune {sys.argv[2]}")
    stand_back()
    go_first(_FIRST)
    settings = Settings.from_environment()
    configure(settings)
    store = Store.of(settings.home, settings.database)
    job = store.get(sys.argv[2])

    def work() -> None:
        if sys.argv[3] == "check" or settings.devices == ("cpu",):  # CUDA reserves far more than it uses
            bound_memory(None)
        tuner = Tuner(settings, store, job)
        tuner.check() if sys.argv[3] == "check" else tuner.train()

    sys.exit(attempt(work, store, job.id, jobs_folder(settings.home) / job.id))


if __name__ == "__main__":
    main()
