"""What the supervisor tells a nursery, and hears of workers whose nursery is gone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app.pool import processes
from app.pool.processes import Exited, Foreman, Nursery, kill_named, kill_stopped
from app.process import is_stopped
from tests.stack.conftest import wait_for


async def test_a_worker_outlives_its_nursery_and_its_end_is_told_once():
    told: asyncio.Queue[tuple[str, int, int]] = asyncio.Queue(9)
    nursery = Nursery({}, "", lambda *_: None, lambda *end: told.put_nowait(end))
    nursery.fork({"name": "m.1"})
    nursery.fork({"name": "m.2"})
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        nursery._hear({"forked": "m.1", "pid": worker.pid})
        await nursery._bury()
        assert told.get_nowait() == ("m.2", 0, -signal.SIGKILL), "it was never forked, or never told of"
        await nursery._bury()  # the next nursery is killed, too
        assert nursery.workers == {"m.1": worker.pid}
        worker.kill()
        assert await asyncio.wait_for(told.get(), 30) == ("m.1", worker.pid, -signal.SIGKILL)
    await asyncio.sleep(0)
    assert told.empty() and not nursery.workers


async def test_a_worker_that_says_hello_before_its_nursery_told_of_it_is_known_once():
    told: asyncio.Queue[tuple[str, int, int]] = asyncio.Queue(9)
    forked: list[tuple[str, int]] = []
    nursery = Nursery({}, "", lambda *word: forked.append(word), lambda *end: told.put_nowait(end))
    nursery.fork({"name": "m.1"})
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        nursery.met("m.1", worker.pid)
        nursery._hear({"forked": "m.1", "pid": worker.pid})
        nursery.met("m.1", worker.pid)
        assert forked == [("m.1", worker.pid)]
        await nursery._bury()
        assert told.empty() and nursery.workers == {"m.1": worker.pid}
        worker.kill()
        assert await asyncio.wait_for(told.get(), 30) == ("m.1", worker.pid, -signal.SIGKILL)


async def test_a_foreman_that_cannot_be_started_for_now_is_started_later(monkeypatch: pytest.MonkeyPatch):
    """There may be no descriptor left when one is killed; that ended the server."""
    tried: list[str] = []

    async def none_left(*command: str, **_: object) -> object:
        tried.append(command[-1])
        if len(tried) == 3:
            foreman._closing = True
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(processes, "_FOREMAN_AGAIN_S", 0.0)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", none_left)
    foreman = Foreman({}, "folder")
    await asyncio.wait_for(foreman.run(), 30)
    assert tried == ["folder"] * 3


def test_only_the_worker_of_that_name_is_killed():
    named = "import app.process; app.process.set_name('hearth a-model-of-a-long-name.1'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", named], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        one.stdout.readline()
        kill_named(one.pid, "another.1")
        assert one.poll() is None
        kill_named(one.pid, "a-model-of-a-long-name.1")
        assert one.wait(30) == -signal.SIGKILL
    kill_named(one.pid, "a-model-of-a-long-name.1")


async def test_a_worker_that_cannot_be_looked_at_for_want_of_descriptors_is_killed_later(monkeypatch: pytest.MonkeyPatch):
    named = "import app.process; app.process.set_name('hearth m.1'); print(flush=True); input()"
    monkeypatch.setattr(processes, "_AGAIN_S", 0.01)
    with subprocess.Popen([sys.executable, "-c", named], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        one.stdout.readline()
        looks = iter([OSError(errno.EMFILE, "too many open files"), None])
        look = psutil.Process

        def looked(pid: int) -> psutil.Process:
            if error := next(looks):
                raise error
            return look(pid)

        monkeypatch.setattr(psutil, "Process", looked)
        kill_named(one.pid, "m.1")
        assert await asyncio.to_thread(one.wait, 30) == -signal.SIGKILL


@contextlib.contextmanager
def forked(exited: Exited) -> Iterator[tuple[Nursery, subprocess.Popen[bytes]]]:
    """A worker, and the nursery that has it."""
    nursery = Nursery({}, "", lambda *_: None, exited)
    nursery.fork({"name": "m.1"})
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        nursery._hear({"forked": "m.1", "pid": worker.pid})
        yield nursery, worker


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_a_worker_without_a_nursery_lives_on_while_there_is_no_descriptor_to_watch_it_by(
    monkeypatch: pytest.MonkeyPatch, number: int
):
    told: asyncio.Queue[tuple[str, int, int]] = asyncio.Queue(9)
    looks, watch = iter([OSError(number, "too many open files")] * 2), os.pidfd_open
    looked = asyncio.Event()

    def open_one(pid: int) -> int:
        if error := next(looks, None):
            raise error
        looked.set()
        return watch(pid)

    monkeypatch.setattr(processes, "_AGAIN_S", 0.01)
    monkeypatch.setattr(os, "pidfd_open", open_one)
    with forked(lambda *end: told.put_nowait(end)) as (nursery, worker):
        await nursery._bury()
        await nursery._bury()  # the next nursery is killed, too; one watches
        await asyncio.wait_for(looked.wait(), 30)
        assert told.empty() and nursery.workers == {"m.1": worker.pid} and worker.poll() is None
        worker.kill()
        assert await asyncio.wait_for(told.get(), 30) == ("m.1", worker.pid, -signal.SIGKILL)
    assert told.empty() and not nursery.workers


@pytest.mark.parametrize(
    ("error", "status"),
    [(ProcessLookupError(), 0), (AttributeError(), -signal.SIGKILL), (OSError(errno.ENOSYS, "no such call"), -signal.SIGKILL)],
    ids=["it is gone", "no Linux", "an old Linux"],
)
async def test_a_worker_that_nobody_could_watch_is_ended(monkeypatch: pytest.MonkeyPatch, error: Exception, status: int):
    def refuse(_: int) -> int:
        raise error

    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with forked(lambda *end: told.append(end)) as (nursery, worker):
        await nursery._bury()
        assert told == [("m.1", worker.pid, -signal.SIGKILL)]
        assert worker.stdin is not None
        worker.stdin.write(b"\n")  # it ends by itself, where its number may be another's by now
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.close()
        assert worker.wait(30) == status


async def test_a_worker_that_could_not_be_forked_ends_once():
    told: list[tuple[str, int, int]] = []
    nursery = Nursery({}, "", lambda *_: None, lambda *end: told.append(end))
    nursery.fork({"name": "m.1"})
    nursery._hear({"exited": "m.1", "status": 1})
    await nursery._bury()
    assert told == [("m.1", 0, 1)]


async def test_a_spare_that_is_dead_is_not_promoted(tmp_path: Path):
    """Nor does the connection of one that ended stay open."""
    nursery = Nursery({}, str(tmp_path), lambda *_: None, lambda *_: None)
    async with await asyncio.start_unix_server(nursery._meet, tmp_path / "nursery"):
        _, first = await asyncio.open_unix_connection(tmp_path / "nursery")
        first.write(b'{"spare": 4711}\n')
        await asyncio.wait_for(nursery._met.wait(), 30)
        assert await nursery._promote() is not None
        nursery._met.clear()
        _, second = await asyncio.open_unix_connection(tmp_path / "nursery")
        second.write(b'{"spare": 4712}\n')
        await asyncio.wait_for(nursery._met.wait(), 30)
        dead, present = nursery._spare, nursery._writer
        assert dead is not None and present is not None
        second.close()
        await second.wait_closed()
        assert await nursery._promote() is None
        assert dead.writer.is_closing()
        for writer in (present, first, dead.writer):
            writer.close()
            await writer.wait_closed()


def test_what_is_stopped_is_killed_and_nothing_else():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as one:
        kill_stopped(one.pid, "it")
        assert not is_stopped(one.pid) and one.poll() is None
        one.send_signal(signal.SIGSTOP)
        wait_for(lambda: is_stopped(one.pid))
        kill_stopped(one.pid, "it")
        assert one.wait(30) == -signal.SIGKILL
    assert not is_stopped(one.pid)
    kill_stopped(0, "none")
