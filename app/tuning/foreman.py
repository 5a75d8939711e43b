"""The foreman: a process that gives every open job a tuner, one after the other. No torch.

`python -m app.tuning.foreman PARENT FOLDER`, started by the supervisor.

What is to be done stands in the database and the jobs' folders alone, so it can be killed at any moment: its tuners die with it,
and the next foreman starts them again where they were.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from app.engine.placement import place
from app.errors import UnknownJob
from app.logs import configure, log
from app.patience import is_scarce
from app.process import child_command, die_with_parent, ending, set_name
from app.settings import Settings, inherited_environment, jobs_folder
from app.tuning import room
from app.tuning.archive import remove
from app.tuning.gate import Gate
from app.tuning.job import DONE, OPEN, Job, version_of
from app.tuning.store import Store
from app.wire.messages import Adopt
from app.wire.sockets import Endpoint, address, wait

_LOOK_S = 0.25
_AGAIN_S = 2.0
_TRIES = 5  # deaths of a job's tuners in a row: a person's kill -9 cannot be told from the kernel's, who has no more memory


@dataclass(slots=True)
class _Tuner:
    job: Job
    phase: str
    reached: tuple[int, ...]
    process: subprocess.Popen[bytes]
    device: str


@dataclass(frozen=True, slots=True)
class _Deaths:
    """Of a job's tuners, in a row: since it last reached what outlives them."""

    count: int
    why: str
    rest_until: float


class Foreman:
    """Looks at the database a few times a second, and does what is to be done."""

    def __init__(self, settings: Settings, store: Store, supervisor: Endpoint) -> None:
        self._settings = settings
        self._store = store
        self._supervisor = supervisor
        self._tuners: dict[str, _Tuner] = {}
        self._deaths: dict[str, _Deaths] = {}
        sweep(settings.home, store)
        room.sweep(settings.home)
        for job in reversed(store.all(("succeeded",))):  # the foreman before may have died before it could say so
            self._adopt(job)
            room.clear(self._folder(job.id))

    def turn(self, now: float) -> None:
        """One look."""
        self._reap(now)
        jobs = {job.id: job for job in reversed(self._store.all(OPEN))}  # the oldest first
        for id in self._deaths.keys() - jobs.keys():
            del self._deaths[id]  # whoever resumes a job has mended something
        for id, tuner in self._tuners.items():
            if id not in jobs or (tuner.phase == "train" and jobs[id].state == "validating"):  # cancelled, or resumed since
                tuner.process.terminate()
        trained = self._settings.tuners * len(self._settings.devices)
        for phase, states, most in (("check", ("validating",), 1), ("train", ("queued", "running"), trained)):
            busy = sum(1 for id in self._tuners if id in jobs and jobs[id].state in states)
            for job in [job for job in jobs.values() if job.state in states and job.id not in self._tuners][
                : max(0, most - busy)
            ]:
                deaths = self._deaths.get(job.id)
                if deaths and deaths.count >= _TRIES:
                    self._give_up(job, deaths)
                elif not deaths or now >= deaths.rest_until:
                    self._start(job, phase)

    def _start(self, job: Job, phase: str) -> None:
        taken = [tuner.device for tuner in self._tuners.values() if tuner.phase == "train"]
        (device,) = place(1, self._settings.devices, taken)
        settings = self._settings.model_copy(update={"devices": (device,)})
        try:
            with (self._folder(job.id) / "log.txt").open("ab") as sink:
                process = subprocess.Popen(
                    child_command("app.tuning.process", job.id, phase),
                    env=inherited_environment() | settings.to_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                )
        except OSError as error:
            if is_scarce(error):  # no fault of the job's
                raise
            log.error("job %s cannot be started: %s", job.id, error)
            self._store.move(job.id, "failed", reason=f"it could not be started ({error.strerror}); mend that, then resume it")
            return
        self._tuners[job.id] = _Tuner(job, phase, self._reached(job.id), process, device)

    def _reap(self, now: float) -> None:
        for id, tuner in list(self._tuners.items()):
            status = tuner.process.poll()
            if status is None:
                continue
            try:
                job = self._store.get(id)
            except UnknownJob:  # whoever forgets it at once keeps the model
                del self._tuners[id]
                self._adopt(tuner.job)
                remove(self._folder(id))  # what it wrote after that
                continue
            if job.state == "succeeded":
                self._adopt(job)
                room.clear(self._folder(id))
            del self._tuners[id]  # not before: the database may be away, or no descriptor left
            if job.state == "cancelled" and (made := version_of(self._settings.home, job.model, id)):
                remove(made)  # it was ended between the two
            if job.state in DONE:
                room.give_back(self._folder(id))
            elif status not in (0, -signal.SIGTERM):
                self._count(tuner, status, now)

    def _adopt(self, job: Job) -> None:
        """Tell the supervisor of a job's model, if it is all there. It may hear so twice."""
        if made := version_of(self._settings.home, job.model, job.id):
            log.info("job %s became %s", job.id, made.name)
            self._supervisor.send(Adopt(made.name, job.spec.get("traffic", 1.0)))

    def _count(self, tuner: _Tuner, status: int, now: float) -> None:
        """It will be started again, after a longer rest each time, unless it dies over and over and reaches nothing."""
        id = tuner.job.id
        why = f"({ending(status)})"
        log.warning("the tuner of job %s died %s", id, why)
        if status == -signal.SIGKILL:
            remedy = "lower batch_size" if tuner.phase == "train" else "send less data"
            why += f"; it may have had too little memory: {remedy}"
        before = self._deaths.get(id) if self._reached(id) == tuner.reached else None
        count = before.count + 1 if before else 1
        self._deaths[id] = _Deaths(count, why, now + _AGAIN_S * (count - 1))

    def _give_up(self, job: Job, deaths: _Deaths) -> None:
        room.give_back(self._folder(job.id))  # first: the disk may be full
        reason = f"its process died {deaths.count} times in a row at the same place {deaths.why}"
        self._store.move(job.id, "failed", reason=reason)
        del self._deaths[job.id]

    def _reached(self, id: str) -> tuple[int, ...]:
        """What of a job outlives its tuner, which goes on from there: when the checked data and the checkpoint were written."""
        return tuple(_written(self._folder(id) / name) for name in ("prepared/report.json", "checkpoint.pt"))

    def _folder(self, id: str) -> Path:
        return jobs_folder(self._settings.home) / id

    def pids(self) -> list[int]:
        """Of the tuners that live: the number of one that was buried may be another's by now."""
        return [tuner.process.pid for tuner in list(self._tuners.values()) if tuner.process.returncode is None]

    def stop(self) -> None:
        """End the tuners; they will be started again."""
        for tuner in self._tuners.values():
            tuner.process.kill()
            tuner.process.wait()


def _written(path: Path) -> int:
    """When, in nanoseconds; 0 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def sweep(home: Path, store: Store) -> None:
    """Remove folders of jobs that were never written down, because a frontend died between the upload and that."""
    for folder in jobs_folder(home).iterdir() if jobs_folder(home).is_dir() else ():
        if not folder.is_dir() or room.is_young(folder):
            continue
        try:
            store.get(folder.name)
        except UnknownJob:
            remove(folder)


def main() -> None:
    """Entry of the process."""
    die_with_parent(int(sys.argv[1]))
    set_name("hearth foreman")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's business
    stopping: list[Any] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    settings = Settings.from_environment()
    configure(settings)
    supervisor = Endpoint.connect(address(sys.argv[2], "supervisor"), f"foreman.{os.getpid()}")
    foreman: Foreman | None = None
    gate = Gate(Path(sys.argv[2]), settings.tuner_share, lambda: foreman.pids() if foreman else [])
    if settings.tuner_share < 1:
        gate.start()
    while not stopping:
        rest_s = _LOOK_S
        try:
            foreman = foreman or Foreman(settings, Store.of(settings.home, settings.database), supervisor)
            foreman.turn(time.monotonic())
        except (SQLAlchemyError, OSError) as error:  # the database is away, the disk full or read-only: that may pass
            log.error("jobs cannot be looked after for now: %s", error)
            rest_s = _AGAIN_S
        wait([supervisor], rest_s)
        if supervisor.gone:
            break
        for _ in supervisor.receive():
            pass
    gate.close()
    if foreman:
        foreman.stop()
    supervisor.close()


if __name__ == "__main__":
    main()
