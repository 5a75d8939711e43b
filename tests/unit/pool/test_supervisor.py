"""The supervisor's end: asked for, or because something in it failed."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.card import Card, Limits
from app.errors import HearthError
from app.pool import loading
from app.pool.frontends import Frontends
from app.pool.processes import Nursery
from app.pool.roster import Roster, Served
from app.pool.supervisor import Supervisor
from app.pool.traffic import Traffic
from app.settings import Settings
from app.tasks.base import Files
from app.wire.messages import Died, Hello, LoadFailed, Message


async def for_ever(*_: object) -> None:
    await asyncio.Event().wait()


async def fail(*_: object) -> Files:
    raise RuntimeError("a mistake")


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """With one model, whose files cannot be found because of a mistake, and without children."""
    monkeypatch.setattr(Nursery, "run", for_ever)
    monkeypatch.setattr(Frontends, "run_one", for_ever)
    card = Card(name="m", folder=tmp_path, task="text-embedding", source={"kind": "file"}, about={"licence": "x"})
    roster = Roster({"m": Served(card, default=True, preload=True)}, ["cpu"])
    settings = Settings(home=tmp_path, frontends=1)
    (tmp_path / "metrics").mkdir()
    with socket.socket() as listening:
        yield Supervisor(settings, {}, roster, Traffic(tmp_path / "traffic.json"), listening, tmp_path, fail)


async def test_asked_to_stop_it_returns(supervisor: Supervisor):
    running = asyncio.create_task(supervisor.run(lambda _: None))
    await asyncio.sleep(0)
    supervisor.stop()
    await asyncio.wait_for(running, 30)


async def test_an_errand_that_fails_ends_nothing(supervisor: Supervisor, caplog: pytest.LogCaptureFixture):
    running = asyncio.create_task(supervisor.run(lambda _: None))
    await asyncio.sleep(0)
    supervisor.spawn(fail(), "reading something again")  # type: ignore[arg-type]
    async with asyncio.timeout(30):
        while "reading something again failed" not in caplog.text:  # noqa: ASYNC110  nobody sets an event
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


async def test_a_worker_that_nobody_knows_any_more_is_killed_when_it_says_hello(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
):
    """Its nursery was killed between forking it and telling of it."""
    killed, met = list[tuple[int, str]](), list[tuple[str, int]]()
    monkeypatch.setattr("app.pool.supervisor.kill_named", lambda pid, name: killed.append((pid, name)))
    monkeypatch.setattr(supervisor._nursery, "met", lambda name, pid: met.append((name, pid)))
    monkeypatch.setattr(supervisor._nursery, "fork", lambda _: None)
    (birth,) = supervisor._roster.want("m", {})
    supervisor._loading.fork(birth)
    supervisor._on_exited(birth.name, 0, -9)
    supervisor._on_message(birth.name, Hello(role="worker", pid=7), {})
    present = supervisor._roster.models["m"].slots[0].worker
    supervisor._on_message(present, Hello(role="worker", pid=8), {})
    assert (killed, met) == ([(7, birth.name)], [(present, 8)])


async def test_a_frontend_that_was_buried_before_it_was_heard_is_not_waited_for(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
):
    """Whoever unloaded a model after that waited for as long as a drain may take."""
    monkeypatch.setattr(supervisor, "tell", lambda message, to: None)
    gone = await asyncio.create_subprocess_exec("true")
    await gone.wait()
    supervisor._on_frontend_exit("frontend.1", gone.pid, -9)
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))  # and there may be no descriptor to look with
    try:
        supervisor._on_message("frontend.1", Hello(role="frontend", pid=gone.pid), {})
        supervisor._on_message("frontend.2", Hello(role="frontend", pid=os.getpid()), {})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))
    assert supervisor.frontends == {"frontend.2"}


async def test_a_model_that_ends_its_process_with_0_in_a_batch_is_blamed_for_it(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
):
    told: list[Message] = []
    monkeypatch.setattr(supervisor, "tell", lambda message, to: told.append(message))
    supervisor.frontends.add("frontend.1")
    (birth,) = supervisor._roster.want("m", {})
    supervisor._loading.fork(birth)
    supervisor._loading.boxes[birth.name].start(1.0, 0, [7])
    supervisor._on_exited(birth.name, 1, 0)
    assert Died(birth.name, (7,)) in told


@pytest.mark.parametrize("stopped", [False, True], ids=["by itself", "by somebody"])
async def test_a_batch_that_does_not_end_is_blamed_unless_somebody_stopped_its_worker(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, stopped: bool
):
    """Whatever it does between our look and its end, and however long that takes."""
    told, killed, states = list[Message](), asyncio.Event(), iter([stopped])
    monkeypatch.setattr(supervisor, "tell", lambda message, to: told.append(message))
    monkeypatch.setattr(supervisor._nursery, "kill", lambda _: killed.set())
    monkeypatch.setattr(supervisor._nursery, "stopped", lambda _: next(states, False))  # a dead one is not
    supervisor.frontends.add("frontend.1")
    (birth,) = supervisor._roster.want("m", {})
    supervisor._loading.fork(birth)
    supervisor._roster.ready(birth.name, {})
    box = supervisor._loading.boxes[birth.name]
    box.start(1.0, 0, [6, 7])
    watch = asyncio.create_task(supervisor._watch())
    for _ in range(2):
        await asyncio.wait_for(killed.wait(), 10)
        killed.clear()
    watch.cancel()
    box.start(time.monotonic(), 0, [7, 8])
    supervisor._on_exited(birth.name, 1, -9)
    assert (Died(birth.name, ()) if stopped else Died(birth.name, (7,), stalled=True)) in told


@pytest.mark.parametrize("busy", [False, True])
async def test_when_all_stood_still_nobody_is_blamed_for_it(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, busy: bool):
    """A machine that was paused: whoever comes round first, all get as much time as if it had been for nothing."""
    times = [0.0, 100.0, 100.5, *(101.0 + second for second in range(30))]
    looks, looked, frontends, killed = iter(times), list[float](), list[float](), list[float]()
    monkeypatch.setattr("app.pool.supervisor.time", SimpleNamespace(monotonic=lambda: next(looks)))
    monkeypatch.setattr("app.pool.supervisor._WATCH_S", 0.001)
    monkeypatch.setattr(supervisor._http, "kill_silent", lambda now, _, resumed: looked.append(now) or frontends.append(resumed))
    monkeypatch.setattr(supervisor._nursery, "kill", lambda _: killed.append(looked[-1]))
    (birth,) = supervisor._roster.want("m", {})
    supervisor._loading.fork(birth)
    supervisor._roster.ready(birth.name, {})
    box = supervisor._loading.boxes[birth.name]
    box.start(0.1, 0, [7]) if busy else box.beat(0.1, 0)
    with pytest.raises(RuntimeError, match="StopIteration"):  # there is no other time
        await supervisor._watch()
    assert looked[0] == 100.5 and set(frontends) == {100.0}
    assert killed[0] == (121.0 if busy else 111.0)


async def test_a_model_that_was_ready_is_not_given_up_because_one_of_its_workers_cannot_load(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor._nursery, "fork", lambda _: None)
    looks, seconds = list[str](), count(100.0, 0.5)
    monkeypatch.setattr("app.pool.supervisor.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr(supervisor._switching, "look", lambda: looks.append(served.why))
    served = supervisor._roster.models["m"]
    supervisor._loading.load("m")
    (birth,) = supervisor._roster.want("m", {})
    supervisor._loading.fork(birth)
    supervisor._roster.ready(birth.name, {"dimensions": 3})
    supervisor._on_exited(birth.name, 1, -9)
    for turn in range(8):
        worker = served.slots[0].worker
        supervisor._roster.forked(worker, 1)
        supervisor._on_message(worker, LoadFailed("the device has no memory left"), {})
        supervisor._on_exited(worker, 1, 0)
        assert (served.state, served.why) == ("loading", "the device has no memory left; it is tried again" if turn >= 3 else "")
        assert looks[-1] == served.why, "a change of traffic that waits for it hears of that"
    supervisor._roster.ready(served.slots[0].worker, {"dimensions": 3})
    assert (served.state, served.why) == ("ready", "")


async def test_a_model_that_no_process_can_be_started_for_keeps_nobody_from_announcing(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor._nursery, "fork", lambda _: None)
    monkeypatch.setattr(supervisor, "tell", lambda _, to: None)
    supervisor.frontends.add("frontend.1")
    served = supervisor._roster.models["m"]
    (birth,) = supervisor._roster.want("m", {})
    supervisor._loading.fork(birth)
    for turn in range(3):
        assert not supervisor._settled.is_set()
        supervisor._on_exited(served.slots[0].worker, 0, 1)
        assert served.in_doubt == (turn == 2) and served.slots[0].restarts == 0
    assert supervisor._settled.is_set()


async def test_a_worker_that_stands_still_between_two_batches_is_killed_after_its_stall_limit(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
):
    killed = asyncio.Event()
    monkeypatch.setattr(supervisor._nursery, "kill", lambda _: killed.set())
    served = supervisor._roster.models["m"]
    served.card = served.card.model_copy(update={"limits": Limits(stall_s=1)})
    (birth,) = supervisor._roster.want("m", {})
    supervisor._loading.fork(birth)
    supervisor._roster.ready(birth.name, {})
    supervisor._loading.boxes[birth.name].beat(time.monotonic() - 2, 0)
    watching = asyncio.create_task(supervisor._watch())
    await asyncio.wait_for(killed.wait(), 30)
    watching.cancel()


async def test_a_worker_that_is_to_come_later_comes_if_it_is_still_wanted(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
):
    forked, came = list[str](), asyncio.Event()
    monkeypatch.setattr(supervisor._nursery, "fork", lambda spec: (forked.append(spec["name"]), came.set()))
    (birth,) = supervisor._roster.want("m", {})
    supervisor._loading.fork(replace(birth, name="m.0", after_s=0.001))
    supervisor._loading.fork(replace(birth, after_s=0.01))
    assert not forked
    await asyncio.wait_for(came.wait(), 30)
    assert forked == [birth.name]


async def test_a_worker_that_cannot_be_given_its_black_box_is_started_when_there_is_room(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
):
    forked = asyncio.Event()
    monkeypatch.setattr(supervisor._nursery, "fork", lambda _: forked.set())
    monkeypatch.setattr("app.pool.loading._AGAIN_S", 0.01)
    box, full = loading.BlackBox, iter([True, False])

    def scarce(path: Path, *, create: bool) -> loading.BlackBox:
        if next(full):
            raise OSError(errno.ENOSPC, "No space left on device")
        return box(path, create=create)

    monkeypatch.setattr(loading, "BlackBox", scarce)
    (birth,) = supervisor._roster.want("m", {})
    supervisor._loading.fork(birth)
    assert not forked.is_set()
    await asyncio.wait_for(forked.wait(), 30)
