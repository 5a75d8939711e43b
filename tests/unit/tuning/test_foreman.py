"""Who gets a tuner, when, and what becomes of jobs whose tuners die."""

from __future__ import annotations

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

    def __init__(self, command: list[str], **_: Any) -> None:
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
    STARTED[0].status = 0
    foreman.turn()
    foreman.turn()
    assert supervisor.sent == [Adopt("photos")]


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
        store.note(id, progress={"step": death})
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
