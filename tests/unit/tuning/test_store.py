"""Jobs in a database: states only go forward, events keep their order, and two processes do not get into each other's way."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.errors import Conflict, TooBusy, UnknownJob
from app.tuning.job import Job, new_id
from app.tuning.store import Store
from tests.conftest import ROOT

SPEC = {"name": "photos", "base": "resnet18", "seed": 3}


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").fresh()
    opened = Store(url)
    yield opened
    opened.close()


def together(work: Callable[[], object], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def add(store: Store) -> str:
    return store.add(new_id(), SPEC).id


def test_a_job_is_as_it_was_given(store: Store):
    job = store.get(add(store))
    assert (job.model, job.state, job.spec, job.progress, job.reason) == ("photos", "validating", SPEC, {}, "")
    assert store.all(("validating",))[0] == job
    assert store.all(("running",)) == []


def test_states_go_forward_and_are_told(store: Store):
    id = add(store)
    assert store.move(id, "queued", only_from=("validating",), report={"classes": ["a"]})
    assert store.move(id, "running")
    assert store.note(id, "progress", {"step": 1}, progress={"step": 1})
    assert store.move(id, "cancelled", reason="enough")
    assert not store.move(id, "succeeded", only_from=("running",)), "what was cancelled cannot succeed"
    assert not store.note(id, "progress", {"step": 2}, progress={"step": 2})
    job = store.get(id)
    assert (job.state, job.reason, job.progress, job.report) == ("cancelled", "enough", {"step": 1}, {"classes": ["a"]})
    told = store.events(id)
    assert [(event.kind, event.data) for event in told] == [
        ("state", {"state": "validating"}),
        ("state", {"state": "queued"}),
        ("state", {"state": "running"}),
        ("progress", {"step": 1}),
        ("state", {"state": "cancelled", "reason": "enough"}),
    ]
    assert store.events(id, after=told[2].number) == told[3:]
    assert store.move(id, "validating", only_from=("failed", "cancelled"))


def test_open_jobs_are_not_deleted_and_unknown_ones_are_told(store: Store):
    id = add(store)
    with pytest.raises(Conflict, match="cancel it first"):
        store.delete(id)
    store.move(id, "cancelled")
    store.delete(id)
    with pytest.raises(UnknownJob, match="GET /finetune lists them"):
        store.get(id)
    assert store.events(id) == []


def test_of_many_who_move_a_job_one_succeeds(store: Store):
    id = add(store)
    won: list[bool] = []
    together(lambda: won.append(store.move(id, "queued", only_from=("validating",))), 8)
    assert sorted(won) == [False] * 7 + [True]


def test_of_many_who_come_at_once_no_more_are_taken_than_may_be_open(store: Store):
    taken: list[str] = []

    def come() -> None:
        with contextlib.suppress(TooBusy):
            taken.append(store.add(new_id(), SPEC, most=3).id)

    together(come, 8)
    assert len(taken) == len(store.all(("validating",))) == 3
    for id in taken[:2]:
        store.move(id, "cancelled")
    add(store)

    def resume(id: str) -> None:
        with contextlib.suppress(TooBusy):
            store.move(id, "validating", only_from=("cancelled",), most=3)

    ids = iter(taken[:2])
    together(lambda: resume(next(ids)), 2)
    assert sorted(store.get(id).state for id in taken[:2]) == ["cancelled", "validating"]
    with pytest.raises(TooBusy, match=r"3 jobs are open, the limit is 3 \(HEARTH_MAX_JOBS\)") as refused:
        store.check_room(3)
    assert refused.value.retry_after_s


def test_a_job_that_is_resumed_while_it_is_deleted_stays(store: Store, monkeypatch: pytest.MonkeyPatch):
    id = add(store)
    store.move(id, "cancelled")
    get, resumed = store.get, []

    def get_and_resume(id: str) -> Job:
        found = get(id)
        resumed.append(store.move(id, "validating", only_from=("cancelled",)))
        return found

    monkeypatch.setattr(store, "get", get_and_resume)
    with contextlib.suppress(Conflict):
        store.delete(id)
    assert (id in [job.id for job in store.all()]) == any(resumed)


def test_a_reason_may_hold_any_character(store: Store):
    id = add(store)
    store.move(id, "failed", reason="a\0b")
    assert store.get(id).reason == "ab"


def test_two_processes_write_at_once(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    store = Store(url)
    id = add(store)
    store.move(id, "running")
    program = f"""
from app.tuning.store import Store
store = Store({url!r})
for step in range(100):
    assert store.note({id!r}, "progress", {{"step": step}}, progress={{"step": step}})
"""
    writers = [subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) for _ in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert len(store.events(id)) == 202
    store.close()
