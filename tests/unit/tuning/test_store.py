"""Jobs in a database: states only go forward, events keep their order, and two processes do not get into each other's way."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import Conflict, UnknownJob
from app.tuning.job import new_id
from app.tuning.store import Store
from tests.conftest import ROOT

SPEC = {"name": "photos", "base": "resnet18", "seed": 3}


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres")
    opened = Store(url)
    yield opened
    opened.close()


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
    threads = [threading.Thread(target=lambda: won.append(store.move(id, "queued", only_from=("validating",)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]


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


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of Debian's PostgreSQL, on a socket of its own."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found or shutil.which("su") is None:
        pytest.skip("PostgreSQL is not installed here")
    pytest.importorskip("psycopg")
    bin, folder = found[-1].parent, tmp_path_factory.mktemp("pg")
    folder.chmod(0o777)
    for parent in folder.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o711)

    def as_postgres(command: str) -> None:
        subprocess.run(["su", "postgres", "-s", "/bin/sh", "-c", command], check=True, stdout=subprocess.DEVNULL, cwd="/")

    as_postgres(f"{bin}/initdb -D {folder}/data -A trust -U postgres")
    as_postgres(f"{bin}/pg_ctl -D {folder}/data -w -l {folder}/log -o '-k {folder} -c listen_addresses=' start")
    yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    as_postgres(f"{bin}/pg_ctl -D {folder}/data -m immediate stop")
