"""Who gets a tuner, when, and what becomes of jobs whose tuners die."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings, jobs_folder
from app.tuning import foreman as module
from app.tuning.foreman import Foreman
from app.tuning.job import new_id
from app.tuning.store import Store
from app.wire.messages import Adopt


class Process:
    """A tuner of paper."""

    def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
        self.environment = env
        self.job, self.phase = command[-2:]
        self.status: int | None = None
        self.terminated = False
        STARTED.append(self)

    def poll(self) -> int | None:
        return self.status

    def terminate(self) -> None:
        self.terminated = True

    kill = terminate

    def wait(self) -> int:
        return 0


STARTED: list[Process] = []


class Supervisor:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Foreman, Store, Supervisor]]:
    STARTED.clear()
    monkeypatch.setattr(module.subprocess, "Popen", Process)
    store, supervisor = Store(f"sqlite:///{tmp_path / 'jobs.db'}"), Supervisor()
    yield Foreman(Settings(home=tmp_path, tuners=1), store, supervisor), store, supervisor  # type: ignore[arg-type]
    store.close()


def add(store: Store, home: Path, name: str = "photos") -> str:
    id = new_id()
    (jobs_folder(home) / id).mkdir(parents=True)
    return store.add(id, {"name": name, "base": "x"}).id


def test_one_is_checked_while_another_is_trained(house, tmp_path):
    foreman, store, _ = house
    first, second, third = (add(store, tmp_path, name) for name in "abc")
    foreman.turn()
    assert [(one.job, one.phase) for one in STARTED] == [(first, "check")], "one check at a time, the oldest first"
    store.move(first, "queued")
    STARTED[0].status = 0
    foreman.turn()
    assert [(one.job, one.phase) for one in STARTED[1:]] == [(second, "check"), (first, "train")]
    store.move(second, "queued")
    STARTED[1].status = 0
    foreman.turn()
    foreman.turn()
    assert [(one.job, one.phase) for one in STARTED[3:]] == [(third, "check")], "the second waits until the first is done"


def test_what_succeeded_is_told_to_the_supervisor(house, tmp_path):
    foreman, store, supervisor = house
    id = add(store, tmp_path)
    store.move(id, "queued")
    foreman.turn()
    store.move(id, "running")
    store.move(id, "succeeded")
    made(tmp_path, id)
    store.delete(id)  # whoever forgets the job at once keeps the model
    foreman.turn()
    STARTED[0].status = -15 if STARTED[0].terminated else 0
    foreman.turn()
    foreman.turn()
    assert supervisor.sent == [Adopt("photos@1", 1.0)]


def test_what_was_cancelled_in_its_last_moment_does_not_go_live(house, tmp_path):
    foreman, store, supervisor = house
    id = add(store, tmp_path)
    store.move(id, "queued")
    foreman.turn()
    store.move(id, "running")
    made(tmp_path, id)
    store.move(id, "cancelled")
    STARTED[0].status = -15
    foreman.turn()
    assert supervisor.sent == [] and not list((tmp_path / "models").iterdir())


def test_each_device_has_its_own_tuners(house, tmp_path):
    _, store, supervisor = house
    foreman = Foreman(Settings(home=tmp_path, tuners=1, devices=("cuda:0", "cuda:1")), store, supervisor)
    ids = [add(store, tmp_path, name) for name in "abc"]
    for id in ids:
        store.move(id, "queued")
    foreman.turn()
    assert [(one.job, one.environment["HEARTH_DEVICES"]) for one in STARTED] == [(ids[0], "cuda:0"), (ids[1], "cuda:1")]
    store.move(ids[0], "failed")
    STARTED[0].status = 1
    foreman.turn()
    assert [(one.job, one.environment["HEARTH_DEVICES"]) for one in STARTED[2:]] == [(ids[2], "cuda:0")]


def made(home, id, name="photos"):
    (home / "models" / f"{name}@1").mkdir(parents=True)
    (home / "models" / f"{name}@1" / "tuned.json").write_text(json.dumps({"job": id}))


def test_the_next_foreman_says_what_the_last_one_could_not(house, tmp_path):
    _, store, supervisor = house
    ids = [add(store, tmp_path, name) for name in ("one", "two")]
    for id in ids:
        store.move(id, "succeeded")
    made(tmp_path, ids[0], "one")
    made(tmp_path, "another", "two")
    Foreman(Settings(home=tmp_path), store, supervisor)
    assert supervisor.sent == [Adopt("one@1", 1.0)]


def test_a_job_whose_folder_is_gone_fails_alone(house, tmp_path):
    foreman, store, _ = house
    lost = store.add(new_id(), {"name": "lost", "base": "x"}).id
    good = add(store, tmp_path)
    foreman.turn()
    foreman.turn()
    assert store.get(lost).state == "failed" and "could not be started" in store.get(lost).reason
    assert [one.job for one in STARTED] == [good]


def test_a_tuner_from_before_a_resume_is_ended(house, tmp_path):
    foreman, store, _ = house
    id = add(store, tmp_path)
    store.move(id, "queued")
    foreman.turn()
    store.move(id, "cancelled")
    store.move(id, "validating", only_from=("cancelled",))
    foreman.turn()
    assert STARTED[0].terminated and len(STARTED) == 1


def test_what_was_cancelled_is_ended(house, tmp_path):
    foreman, store, _ = house
    id = add(store, tmp_path)
    foreman.turn()
    store.move(id, "cancelled")
    foreman.turn()
    assert STARTED[0].terminated


def test_a_tuner_that_dies_is_started_again_unless_it_gets_nowhere(house, tmp_path):
    foreman, store, _ = house
    id = add(store, tmp_path)
    store.move(id, "queued")
    for death in range(6):
        foreman.turn()
        assert len(STARTED) == death + 1
        store.note(id, only_in="queued", progress={"step": death})
        STARTED[-1].status = -9
    for _ in range(2):
        foreman.turn()
        STARTED[-1].status = -9
    foreman.turn()
    assert store.get(id).state == "failed"
    assert "died 3 times at the same place (SIGKILL)" in store.get(id).reason
    assert "lower batch_size" in store.get(id).reason
    started = len(STARTED)
    foreman.turn()
    assert len(STARTED) == started


def test_what_was_never_written_down_is_swept_away(house, tmp_path):
    _, store, supervisor = house
    known, lost, young = add(store, tmp_path), jobs_folder(tmp_path) / "lost", jobs_folder(tmp_path) / "young"
    lost.mkdir()
    young.mkdir()
    for folder in (lost, jobs_folder(tmp_path) / known):
        os.utime(folder, (0, 0))
    Foreman(Settings(home=tmp_path), store, supervisor)
    assert sorted(path.name for path in jobs_folder(tmp_path).iterdir() if path.is_dir()) == sorted([known, "young"])
