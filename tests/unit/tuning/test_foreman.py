"""Who gets a tuner, when, and what becomes of jobs whose tuners die."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from app.process import child_command
from app.settings import Settings, jobs_folder
from app.tuning import foreman as module
from app.tuning.foreman import Foreman
from app.tuning.job import new_id
from app.tuning.store import Store
from app.wire.messages import Adopt
from app.wire.sockets import Endpoint, address
from tests.conftest import ROOT
from tests.stack.conftest import wait_for


class Process:
    """A tuner of paper."""

    def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
        self.environment = env
        self.job, self.phase = command[-2:]
        self.status: int | None = None
        self.returncode: int | None = None
        self.pid = 4_000_000 + len(STARTED)
        self.terminated = False
        STARTED.append(self)

    def poll(self) -> int | None:
        self.returncode = self.status
        return self.status

    def terminate(self) -> None:
        self.terminated = True

    kill = terminate

    def wait(self) -> int:
        return 0


STARTED: list[Process] = []
NOW = 100.0


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
    foreman.turn(NOW)
    assert [(one.job, one.phase) for one in STARTED] == [(first, "check")], "one check at a time, the oldest first"
    store.move(first, "queued")
    STARTED[0].status = 0
    foreman.turn(NOW)
    assert [(one.job, one.phase) for one in STARTED[1:]] == [(second, "check"), (first, "train")]
    store.move(second, "queued")
    STARTED[1].status = 0
    foreman.turn(NOW)
    foreman.turn(NOW)
    assert [(one.job, one.phase) for one in STARTED[3:]] == [(third, "check")], "the second waits until the first is done"


def test_what_succeeded_is_told_to_the_supervisor(house, tmp_path):
    foreman, store, supervisor = house
    id = add(store, tmp_path)
    store.move(id, "queued")
    foreman.turn(NOW)
    store.move(id, "running")
    store.move(id, "succeeded")
    made(tmp_path, id)
    store.delete(id)  # whoever forgets the job at once keeps the model
    foreman.turn(NOW)
    STARTED[0].status = -15 if STARTED[0].terminated else 0
    foreman.turn(NOW)
    foreman.turn(NOW)
    assert supervisor.sent == [Adopt("photos@1", 1.0)]


def test_a_job_that_succeeded_keeps_its_log_alone(house, tmp_path):
    foreman, store, _ = house
    id = training(store, tmp_path)
    folder = jobs_folder(tmp_path) / id
    (folder / "prepared").mkdir()
    for name in ("dataset", "checkpoint.pt", "prepared/pixels"):
        (folder / name).touch()
    foreman.turn(NOW)
    store.move(id, "succeeded")
    die(foreman, NOW, 0)
    assert [path.name for path in folder.iterdir()] == ["log.txt"]
    (folder / "dataset").touch()  # as if the foreman had died before
    Foreman(Settings(home=tmp_path), store, Supervisor())
    assert [path.name for path in folder.iterdir()] == ["log.txt"]


def test_the_number_of_a_tuner_that_is_gone_is_nobodys(house, tmp_path, monkeypatch):
    foreman, store, _ = house
    training(store, tmp_path)
    foreman.turn(NOW)
    assert foreman.pids() == [STARTED[0].pid]

    def away(*_: Any) -> None:
        raise OperationalError("", {}, Exception())

    monkeypatch.setattr(store, "get", away)
    STARTED[0].status = -9
    with pytest.raises(OperationalError):
        foreman.turn(NOW)
    assert foreman.pids() == []


def test_what_was_cancelled_in_its_last_moment_does_not_go_live(house, tmp_path):
    foreman, store, supervisor = house
    id = add(store, tmp_path)
    store.move(id, "queued")
    foreman.turn(NOW)
    store.move(id, "running")
    made(tmp_path, id)
    store.move(id, "cancelled")
    STARTED[0].status = -15
    foreman.turn(NOW)
    assert supervisor.sent == [] and not list((tmp_path / "models").iterdir())


def test_each_device_has_its_own_tuners(house, tmp_path):
    _, store, supervisor = house
    foreman = Foreman(Settings(home=tmp_path, tuners=1, devices=("cuda:0", "cuda:1")), store, supervisor)
    ids = [add(store, tmp_path, name) for name in "abc"]
    for id in ids:
        store.move(id, "queued")
    foreman.turn(NOW)
    assert [(one.job, one.environment["HEARTH_DEVICES"]) for one in STARTED] == [(ids[0], "cuda:0"), (ids[1], "cuda:1")]
    store.move(ids[0], "failed")
    STARTED[0].status = 1
    foreman.turn(NOW)
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
    foreman.turn(NOW)
    foreman.turn(NOW)
    assert store.get(lost).state == "failed" and "could not be started" in store.get(lost).reason
    assert [one.job for one in STARTED] == [good]


def test_a_job_waits_for_a_descriptor(house, tmp_path, monkeypatch):
    foreman, store, _ = house
    id = add(store, tmp_path)

    def none(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(module.subprocess, "Popen", none)
        with pytest.raises(OSError, match="Too many open files"):
            foreman.turn(NOW)
    assert store.get(id).state == "validating"
    foreman.turn(NOW)
    assert [one.job for one in STARTED] == [id]


def test_a_tuner_from_before_a_resume_is_ended(house, tmp_path):
    foreman, store, _ = house
    id = add(store, tmp_path)
    store.move(id, "queued")
    foreman.turn(NOW)
    store.move(id, "cancelled")
    store.move(id, "validating", only_from=("cancelled",))
    foreman.turn(NOW)
    assert STARTED[0].terminated and len(STARTED) == 1


def test_what_was_cancelled_is_ended(house, tmp_path):
    foreman, store, _ = house
    id = add(store, tmp_path)
    foreman.turn(NOW)
    store.move(id, "cancelled")
    foreman.turn(NOW)
    assert STARTED[0].terminated


def die(foreman: Foreman, now: float, status: int = -9) -> None:
    STARTED[-1].status = status
    foreman.turn(now)


def training(store: Store, home: Path) -> str:
    id = add(store, home)
    store.move(id, "queued")
    return id


def test_a_tuner_that_dies_is_started_again_at_once_and_for_ever_while_it_gets_on(house, tmp_path):
    foreman, store, _ = house
    id = training(store, tmp_path)
    foreman.turn(NOW)
    for death in range(8):
        (jobs_folder(tmp_path) / id / "checkpoint.pt").touch()
        os.utime(jobs_folder(tmp_path) / id / "checkpoint.pt", (death, death))
        die(foreman, NOW)
        assert len(STARTED) == death + 2
    assert store.get(id).state == "queued"


def test_one_that_dies_over_and_over_and_gets_nowhere_fails_after_longer_and_longer_rests(house, tmp_path):
    """Steps that are done again since the same checkpoint are no progress, and a rest keeps the job's place."""
    foreman, store, _ = house
    id, later = training(store, tmp_path), training(store, tmp_path)
    foreman.turn(NOW)
    now = NOW
    for death, rest_s in enumerate((0, 2, 4, 6)):
        store.note(id, only_in="queued", progress={"step": 100 - death})
        die(foreman, now)
        foreman.turn(now + rest_s - 0.1)
        assert len(STARTED) == death + 1 + (rest_s == 0)
        now += rest_s
        foreman.turn(now)
        assert len(STARTED) == death + 2
    die(foreman, now)
    failed = store.get(id)
    assert failed.state == "failed" and "died 5 times in a row at the same place (SIGKILL)" in failed.reason
    assert "lower batch_size" in failed.reason
    foreman.turn(now)
    assert [one.job for one in STARTED] == [id] * 5 + [later]


def test_a_check_that_kills_its_process_over_and_over_fails(house, tmp_path):
    foreman, store, _ = house
    id = add(store, tmp_path)
    foreman.turn(NOW)
    for death in range(5):
        die(foreman, NOW + 100 * death)
        foreman.turn(NOW + 100 * death + 50)
    failed = store.get(id)
    assert failed.state == "failed" and "send less data" in failed.reason and len(STARTED) == 5
    store.move(id, "validating", only_from=("failed",))
    for _ in range(2):
        foreman.turn(NOW + 1000)
    assert len(STARTED) == 6, "whoever resumes it begins to count anew"


def test_what_a_tuner_left_half_made_is_removed_before_its_job_fails(house, tmp_path, monkeypatch):
    """On a full disk nothing can be written before."""
    foreman, store, _ = house
    id = add(store, tmp_path)
    half = jobs_folder(tmp_path) / id / "data"
    half.mkdir()
    move = store.move

    def on_a_full_disk(id: str, to: Any, **more: Any) -> bool:
        if half.exists():
            raise OperationalError("UPDATE", {}, Exception("database or disk is full"))
        return move(id, to, **more)

    monkeypatch.setattr(store, "move", on_a_full_disk)
    foreman.turn(NOW)
    for death in range(5):
        die(foreman, NOW + 100 * death, 1)
        foreman.turn(NOW + 100 * death + 50)
    assert store.get(id).state == "failed"


def test_while_the_database_is_away_no_death_is_forgotten(house, tmp_path, monkeypatch):
    foreman, store, supervisor = house
    id = training(store, tmp_path)
    foreman.turn(NOW)
    store.move(id, "succeeded")
    made(tmp_path, id)
    STARTED[0].status = 0
    with monkeypatch.context() as away:
        away.setattr(store, "get", lambda _: (_ for _ in ()).throw(OperationalError("SELECT", {}, Exception("gone"))))
        with pytest.raises(OperationalError):
            foreman.turn(NOW)
    foreman.turn(NOW)
    assert supervisor.sent == [Adopt("photos@1", 1.0)]


def test_what_a_tuner_wrote_for_a_job_that_was_deleted_meanwhile_is_removed(house, tmp_path):
    foreman, store, _ = house
    id = add(store, tmp_path)
    foreman.turn(NOW)
    store.move(id, "cancelled")
    store.delete(id)
    (jobs_folder(tmp_path) / id / "data").mkdir()  # as unpacking does, whose folder was removed beneath it
    foreman.turn(NOW)
    die(foreman, NOW, -15)
    assert not (jobs_folder(tmp_path) / id).exists()


def test_a_cancelled_job_gives_back_what_was_half_made_and_keeps_its_checkpoint(house, tmp_path):
    foreman, store, _ = house
    id = training(store, tmp_path)
    folder = jobs_folder(tmp_path) / id
    (folder / "model").mkdir()
    (folder / "checkpoint.pt").touch()
    foreman.turn(NOW)
    store.move(id, "cancelled")
    die(foreman, NOW, -15)
    assert [path.name for path in folder.iterdir() if path.name != "log.txt"] == ["checkpoint.pt"]


def test_what_was_never_written_down_is_swept_away(house, tmp_path):
    _, store, supervisor = house
    known, lost, young = add(store, tmp_path), jobs_folder(tmp_path) / "lost", jobs_folder(tmp_path) / "young"
    lost.mkdir()
    young.mkdir()
    for folder in (lost, jobs_folder(tmp_path) / known):
        os.utime(folder, (0, 0))
    Foreman(Settings(home=tmp_path), store, supervisor)
    assert sorted(path.name for path in jobs_folder(tmp_path).iterdir() if path.is_dir()) == sorted([known, "young"])


@pytest.mark.parametrize("away", ["the database", "the jobs' folder"])
def test_a_foreman_that_cannot_begin_tries_again_and_hears_meanwhile(tmp_path: Path, away: str):
    """On a home that was read-only it ended, and another one took its place, every second."""
    home, place = tmp_path / "home", tmp_path / "database"
    home.mkdir()
    if away == "the jobs' folder":
        place.mkdir()
        jobs_folder(home).touch()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HEARTH_HOME": str(home),
        "HEARTH_DATABASE": f"sqlite:///{place / 'jobs.db'}",
    }
    command = child_command("app.tuning.foreman", str(tmp_path))
    supervisor = Endpoint.listen(address(str(tmp_path), "supervisor"))

    def begun(log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as sink:
            process = subprocess.Popen(command, env=environment, stderr=sink)
        wait_for(lambda: log.read_text().count("jobs cannot be looked after for now") == 2 or process.poll(), 60)
        assert process.poll() is None, log.read_text()
        return process

    with begun(tmp_path / "told.log") as told:
        told.terminate()
        assert told.wait(30) == 0
    with begun(tmp_path / "left.log") as left:
        jobs_folder(home).unlink() if jobs_folder(home).is_file() else place.mkdir()
        wait_for((place / "jobs.db").exists)
        supervisor.close()
        assert left.wait(30) == 0
