"""Frontends whose loop does not turn."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from app.pool import frontends
from app.pool.frontends import Frontends, _Frontend
from app.wire.blackbox import BlackBox


class Keeper:
    gone: asyncio.Future[int]


async def test_one_that_gets_no_black_box_leaves_no_file_and_is_tried_again_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def none_left(*_: object) -> mmap.mmap:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(mmap, "mmap", none_left)
    keeper: Any = Keeper()
    with socket.socket() as listening:
        house = Frontends({}, listening, str(tmp_path))
        status = await house._run_under(keeper, lambda *_: None)
    assert status and status <= 0, "no failure of its own, after which one waits for longer each time"
    assert not list(tmp_path.iterdir())


async def test_the_end_of_one_is_seen_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch):
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "raise SystemExit(3)"], os.environ)
    assert await asyncio.wait_for(frontends._end_of(pid), 30) == 3


@pytest.mark.parametrize(("resumed", "killed"), [(0.0, [77]), (9.0, [])], ids=["it alone", "the whole machine stood still"])
async def test_who_has_not_moved_is_killed_unless_nobody_could(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: float, killed: list[int]
):
    found: list[int] = []
    monkeypatch.setattr(frontends, "kill", found.append)
    with socket.socket() as listening:
        house = Frontends({}, listening, str(tmp_path))
        box = BlackBox(tmp_path / "frontend.1.blackbox", create=True)
        box.beat(1.0, 0)
        house._living["frontend.1"] = _Frontend(77, asyncio.get_running_loop().create_future(), box)
        house.kill_silent(10.0, 5.0, resumed)
        box.close()
    assert found == killed
