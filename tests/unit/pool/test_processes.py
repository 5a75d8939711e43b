"""What the supervisor tells a nursery, and hears of workers whose nursery is gone."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

from app.pool.processes import Nursery


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
