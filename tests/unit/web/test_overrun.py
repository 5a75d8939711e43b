"""Loops that come round late: by requests, and by others."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from app.web.overrun import LATE_S, LOOK_S, MANY, Overrun


def busy(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


async def looked(overrun: Overrun, requests: int, busy_s: float) -> bool:
    """So many requests come while the loop is held; what the next look finds."""
    for _ in range(requests):
        overrun.came()
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.call_at(loop.time() + LOOK_S, over.set)  # behind the look, which is due no later
    busy(LOOK_S + busy_s)
    await over.wait()
    return overrun.on


async def test_a_loop_that_requests_make_late_is_overrun_until_it_is_in_time(caplog: pytest.LogCaptureFixture):
    overrun = Overrun()
    assert not overrun.came()
    with caplog.at_level(logging.WARNING, "hearth"):
        assert not await looked(overrun, MANY + 1, 2 * LATE_S), "some callers began at once"
        assert await looked(overrun, MANY + 1, 2 * LATE_S)
        assert await looked(overrun, MANY + 1, 2 * LATE_S), "it goes on"
    assert overrun.came()
    assert "new ones are refused" in caplog.text and len(caplog.records) == 1
    assert not await looked(overrun, 0, 0.0)


async def test_what_was_late_long_ago_counts_no_more(monkeypatch: pytest.MonkeyPatch):
    overrun = Overrun()
    assert not await looked(overrun, MANY + 1, 2 * LATE_S)
    monkeypatch.setattr("app.web.overrun.AGAIN_S", 0.0)
    assert not await looked(overrun, 0, 0.0)
    assert not await looked(overrun, MANY + 1, 2 * LATE_S)


@pytest.mark.parametrize(("requests", "busy_s"), [(2, 2 * LATE_S), (10 * MANY, 0.0)], ids=["few requests", "in time"])
async def test_it_is_not_overrun_by(requests: int, busy_s: float):
    overrun = Overrun()
    overrun._late = asyncio.get_running_loop().time()
    assert not await looked(overrun, requests, busy_s)
