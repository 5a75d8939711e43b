"""The tuner of a job, from its data to a version of a model: what stops it, and what it is killed in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.settings import Settings, jobs_folder
from app.tuning import process
from app.tuning.job import Job, new_id
from app.tuning.process import Cancelled, Tuner, attempt
from app.tuning.progress import Progress
from app.tuning.store import Store
from app.weights import sha256
from tests.conftest import ROOT
from tests.unit.tuning.test_several_processes import MODEL

QUICK = ("epochs=6", "batch_size=4", "learning_rate=0.1")
KILLED = """
import os, signal
import {module} as module
from app.tuning import process

work = module.{name}

def killed(*arguments, **more):
    work(*arguments, **more)
    os.kill(os.getpid(), signal.SIGKILL)

module.{name} = killed
process.main()
"""


def a_job(home: Path, store: Store, data: Path, base: str, **spec: Any) -> Tuner:
    id = new_id()
    folder = jobs_folder(home) / id
    folder.mkdir(parents=True)
    shutil.make_archive(str(folder / "packed"), "zip", data)
    (folder / "packed.zip").rename(folder / "dataset")
    values = dict(item.split("=") for item in QUICK) | spec
    return Tuner(Settings(home=home, threads=1), store, store.add(id, {"name": "tones", "base": base, **values}))


def test_a_job_keeps_its_base_when_the_catalogue_does_not(home: Path, store: Store, data: Path):
    shutil.copytree(home / "models" / "shades", home / "models" / "shades@1")
    tuner = a_job(home, store, data, "shades@1")
    tuner._folder.joinpath("base").mkdir()
    (home / "models" / "shades@1").rename(tuner._folder / "base" / "shades@1")
    again = Tuner(tuner._settings, store, tuner._job)
    again.check()
    again.train()
    job = store.get(tuner._job.id)
    assert job.state == "succeeded" and job.result["version"] == 1
    assert len(job.result["data_sha256"]) == 64 and job.result["recipe"]["precision"] == "fp32"


def test_a_job_that_is_cancelled_while_it_is_written_makes_no_version(home: Path, store: Store, data: Path):
    tuner = a_job(home, store, data, "shades")
    tuner.check()
    move = store.move
    store.move = lambda id, to, **more: move(id, "cancelled") and False if to == "succeeded" else move(id, to, **more)  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        tuner.train()
    assert [path.name for path in (home / "models").iterdir()] == ["shades"]


def test_what_was_last_measured_is_told_until_the_next_time(home: Path, store: Store, data: Path):
    tuner = a_job(home, store, data, "shades")
    store.move(tuner._job.id, "running")

    def told(tuner: Tuner, metrics: dict[str, float]) -> dict[str, float]:
        step = Progress(
            step=1, steps=2, epoch=1, loss=1.0, learning_rate=0.1, samples_per_s=1.0, seconds_left=1.0, metrics=metrics
        )
        tuner._tell(step, torch.device("cpu"))
        found: dict[str, float] = store.get(tuner._job.id).progress["metrics"]
        return found

    assert told(tuner, {"accuracy": 0.5}) == told(tuner, {}) == {"accuracy": 0.5}
    assert told(Tuner(tuner._settings, store, store.get(tuner._job.id)), {}) == {"accuracy": 0.5}, "by the next tuner too"


@pytest.mark.parametrize("measured", [{}, {"accuracy": 1.0}], ids=["within epochs", "at their ends"])
def test_checkpoints_that_take_seconds_are_rare(
    home: Path, store: Store, data: Path, monkeypatch: pytest.MonkeyPatch, measured: dict[str, float]
):
    """A step takes a second, and so does a checkpoint: at most a twentieth of the time is theirs, after the first few."""
    tuner, now, saved = a_job(home, store, data, "shades"), [0.0], []

    def save(state: dict[str, Any], path: Path) -> None:
        now[0] += 1.0
        saved.append(state["seconds"])

    def steps() -> Iterator[SimpleNamespace]:
        for step in range(2, 400):
            now[0] += 1.0
            yield SimpleNamespace(step=step, metrics=measured)

    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(process, "save", save)
    monkeypatch.setattr(tuner, "_tell", lambda *_: None)

    class Slow:
        device = torch.device("cpu")
        __iter__ = staticmethod(steps)

        def state(self) -> dict[str, Any]:
            return {}

    tuner._train(SimpleNamespace(training=Slow()), home / "checkpoint.pt", 0.0)
    assert saved[0] <= 2.0, "the first one comes soon"
    assert all(after - before >= 20.0 for before, after in pairwise(saved)) and len(saved) > 15


def ended(home: Path, store: Store, data: Path, forward: str) -> Job:
    """A job on a network that does so while it learns."""
    (home / "models" / "shades" / "model.py").write_text(
        f"import torch\n{MODEL}\n    def forward(self, x):\n        return {forward} if self.training else super().forward(x)\n"
    )
    tuner = a_job(home, store, data, "shades")
    tuner.check()
    assert attempt(tuner.train, store, tuner._job.id, tuner._folder) == 1
    return store.get(tuner._job.id)


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        ("super().forward(x) * float('nan')", "the loss became nan at step 1; lower learning_rate"),
        ("torch.empty(1 << 60)", "not enough memory; ask again with half the batch_size and twice the accumulate"),
    ],
    ids=["no number", "no memory"],
)
def test_a_training_that_cannot_go_on_says_what_to_do_and_what_repeats_it(
    home: Path, store: Store, data: Path, forward: str, words: str
):
    job = ended(home, store, data, forward)
    assert job.state == "failed" and words in job.reason
    assert {"torch", "hearth", "python"} < set(job.result["versions"]) and job.result["device"] == "cpu"
    assert job.result["recipe"]["seed"] == job.result["spec"]["seed"] == 0 and len(job.result["data_sha256"]) == 64
    assert "metrics" not in job.result


def kill(tuner: Tuner, phase: str, module: str, name: str) -> None:
    """kill -9 when the tuner's process has just done that."""
    program = KILLED.format(module=module, name=name)
    environment = os.environ | tuner._settings.to_environment() | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(os.getpid()), tuner._job.id, phase]
    assert subprocess.run(command, env=environment, cwd=ROOT, timeout=100).returncode == -signal.SIGKILL


def test_killed_while_it_checks_prepares_and_writes_it_ends_with_the_same_weights(home: Path, data: Path):
    made = []
    store = Store.of(home)
    for disturbed in (False, True):
        tuner = a_job(home, store, data, "shades")
        for name in ("opened", "examine", "sha256") if disturbed else ():
            kill(tuner, "check", "app.tuning.process", name)
        assert store.get(tuner._job.id).state == "validating"
        tuner.check()
        for module, name in (("image", "features"), ("run", "begin"), ("publish", "write")) if disturbed else ():
            kill(tuner, "train", f"app.tuning.{module}", name)
            assert store.get(tuner._job.id).state == "running"
        assert attempt(tuner.train, store, tuner._job.id, tuner._folder) == 0
        job = store.get(tuner._job.id)
        assert job.state == "succeeded"
        made.append(sha256(home / "models" / f"tones@{job.result['version']}" / "weights.safetensors"))
        assert not (tuner._folder / "model").exists() and not (tuner._folder / "data").exists()
    assert made[0] == made[1]
