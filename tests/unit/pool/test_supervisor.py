"""The supervisor's end: asked for, or because something in it failed."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path

import pytest

from app.card import Card
from app.errors import HearthError
from app.pool.frontends import Frontends
from app.pool.processes import Nursery
from app.pool.roster import Roster, Served
from app.pool.supervisor import Supervisor
from app.pool.traffic import Traffic
from app.settings import Settings
from app.tasks.base import Files


async def for_ever(*_: object) -> None:
    await asyncio.Event().wait()


async def fail(*_: object) -> Files:
    raise RuntimeError("a mistake")


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """With one model, whose files cannot be found because of a mistake, and without children."""
    monkeypatch.setattr(Nursery, "run", for_ever)
    monkeypatch.setattr(Frontends, "run_one", for_ever)
    card = Card(name="m", folder=tmp_path, task="text-embedding", source={"kind": "file"}, about={"licence": "x"})
    roster = Roster({"m": Served(card, default=True, preload=True)}, ["cpu"])
    settings = Settings(home=tmp_path, frontends=1)
    return Supervisor(settings, {}, roster, Traffic(tmp_path / "traffic.json"), socket.socket(), tmp_path, fail)


async def test_asked_to_stop_it_returns(supervisor: Supervisor):
    running = asyncio.create_task(supervisor.run(lambda _: None))
    await asyncio.sleep(0)
    supervisor.stop()
    await asyncio.wait_for(running, 30)


async def test_a_task_that_fails_ends_the_server_with_an_error(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Nursery, "run", fail)
    with pytest.raises(HearthError, match="a task of its supervisor failed"):
        await asyncio.wait_for(supervisor.run(lambda _: None), 30)


async def test_a_mistake_while_a_model_starts_is_that_models_failure_alone(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    settled = asyncio.Event()
    monkeypatch.setattr(supervisor, "settled", lambda _: settled.set())
    with caplog.at_level(logging.ERROR, "hearth"):
        running = asyncio.create_task(supervisor.run(lambda _: None))
        await asyncio.wait_for(settled.wait(), 30)
        served = supervisor._roster.models["m"]
        assert served.state == "failed"
        assert "RuntimeError: a mistake" in served.why
        assert not running.done()
        supervisor.stop()
        await running
    assert any(record.exc_info for record in caplog.records), "with its traceback"
