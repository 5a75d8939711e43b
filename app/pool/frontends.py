"""The HTTP processes. Each has a keeper (`web/keeper.py`), which forks it, and forks the next one when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.logs import log
from app.pool.processes import Exited, kill, os_environment
from app.private import discard
from app.process import child_command
from app.wire.blackbox import BlackBox

_NOT_BORN = -1
_LOOK_S = 0.1
_PAUSES_S = (0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)  # after none, one, … failures in a row; the last one again and again
_NO_MORE = 0  # web/keeper.py


@dataclass(frozen=True, slots=True)
class _Keeper:
    pid: int
    gone: asyncio.Future[int]
    control: socket.socket

    async def fork(self, number: int) -> int:
        """The pid of frontend `number`; 0: this keeper is gone, or cannot."""
        kill(self.pid, signal.SIGCONT)  # it may have been stopped, and nobody would have noticed before now
        self.say(number)
        answer = asyncio.create_task(self._answer())
        # Not by the socket alone: frontends hold its other end too, and may outlive their keeper.
        await asyncio.wait({answer, self.gone}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else answer.cancel() and 0

    def say(self, number: int) -> None:
        """What it does with it is told in `web/keeper.py`."""
        with contextlib.suppress(ConnectionError):
            self.control.send(b"%d\n" % number)

    async def _answer(self) -> int:
        with contextlib.suppress(ConnectionError):
            return int(await asyncio.get_running_loop().sock_recv(self.control, 32) or 0)
        return 0


@dataclass(frozen=True, slots=True)
class _Frontend:
    pid: int
    end: asyncio.Future[int]
    box: BlackBox


class Frontends:
    """All inherit the listening socket. What ends is replaced until `close`; then, what did not finish."""

    def __init__(self, environment: Mapping[str, str], listening: socket.socket, folder: str) -> None:
        self._environment = environment
        self._listening = listening
        self._folder = folder
        self._born = 0
        self._closing = False
        self._keepers: set[_Keeper] = set()
        self._living: dict[str, _Frontend] = {}
        self._runs: set[asyncio.Task[Any] | None] = set()

    async def run_one(self, exited: Exited) -> None:
        """Keep one frontend alive; `exited` hears of each end."""
        failures = status = 0
        self._runs.add(asyncio.current_task())
        while not self._closing:
            try:
                keeper = await self._start_keeper()
            except (OSError, RuntimeError) as error:  # Python 3.11 waits for a child in a thread, which there may be none for
                log.error("no frontend can be started for now: %s", error)
                await asyncio.sleep(_PAUSES_S[1])
                continue
            self._keepers.add(keeper)
            while not keeper.gone.done() and (status or not self._closing):
                status = await self._run_under(keeper, exited)
                failures = failures + 1 if status > 0 else 0
                await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])  # a broken install must not spin
            self._keepers.discard(keeper)
            keeper.control.close()
        self._runs.discard(asyncio.current_task())

    async def _start_keeper(self) -> _Keeper:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        descriptors = [self._listening.fileno(), theirs.fileno()]
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *child_command("app.web.process", *map(str, descriptors), self._folder),
                    pass_fds=descriptors,
                    env=os_environment(self._environment)
                    | {"OPENBLAS_NUM_THREADS": "1"},  # numpy's pool: who forks has no threads
                    start_new_session=True,
                )
            except (OSError, RuntimeError):
                ours.close()
                raise
        return _Keeper(process.pid, asyncio.ensure_future(process.wait()), ours)

    async def _run_under(self, keeper: _Keeper, exited: Exited) -> int:
        """From a frontend's birth to its end, or its keeper's. Its exit status; 1, if its keeper could not fork it; `_NOT_BORN`,
        if the machine had no room for it, which is no failure of its own.
        """
        accepts = not self._closing
        self._born += 1
        name = f"frontend.{self._born}"
        try:
            box = BlackBox(self._box(name), create=True)
        except OSError as error:
            log.error("%s cannot be started for now: %s", name, error)
            discard(self._box(name))
            await asyncio.sleep(_PAUSES_S[1])
            return _NOT_BORN
        pid = await keeper.fork(self._born)
        if not pid:
            discard(self._box(name))
            if not self._closing:
                log.error("%s could not be started; its keeper is asked again, or replaced", name)
            return 1
        box.beat(time.monotonic(), 0)
        end = keeper.gone if pid == keeper.pid else _end_of(pid)
        frontend = self._living[name] = _Frontend(pid, end, box)
        end.add_done_callback(lambda _: self._bury(name, exited))
        if accepts and self._closing:
            kill(pid, signal.SIGTERM)
        await asyncio.wait({end, keeper.gone}, return_when=asyncio.FIRST_COMPLETED)
        if end.done():
            return end.result()
        log.warning("the keeper of %s died; it finishes what it has accepted, and another one takes its place", name)
        kill(frontend.pid, signal.SIGTERM)
        return 0

    def _bury(self, name: str, exited: Exited) -> None:
        frontend = self._living.pop(name)
        frontend.box.close()
        discard(self._box(name))
        exited(name, frontend.pid, frontend.end.result())

    def _box(self, name: str) -> Path:
        return Path(self._folder) / f"{name}.blackbox"

    def kill_silent(self, now: float, lost_s: float, resumed: float = 0.0) -> None:
        """End those whose loop has not turned for `lost_s`, at least since `resumed`: their connections have heirs."""
        for name, frontend in self._living.items():
            if (silent_s := now - max(resumed, frontend.box.read().beat)) > lost_s:
                log.error("%s has not moved for %.0f s; killing it", name, silent_s)
                kill(frontend.pid)

    async def close(self, timeout_s: float) -> None:
        """Stop accepting, let them finish, end what is left after `timeout_s`."""
        self._closing = True
        for keeper in self._keepers:
            keeper.say(_NO_MORE)
        for frontend in self._living.values():
            kill(frontend.pid, signal.SIGTERM)
        if drained := [*filter(None, self._runs), *self._ends()]:
            await asyncio.wait(drained, timeout=timeout_s)
        everything = [*self._ends(), *(keeper.gone for keeper in self._keepers)]
        for pid in (*(keeper.pid for keeper in self._keepers), *(frontend.pid for frontend in self._living.values())):
            kill(pid)  # keepers first: there shall be no heirs
        if everything:
            await asyncio.wait(everything)

    def _ends(self) -> list[asyncio.Future[int]]:
        return [frontend.end for frontend in self._living.values()]


def _end_of(pid: int) -> asyncio.Future[int]:
    """The exit status of a child of ours that our keeper forked. In a thread, as asyncio does it for its own."""
    loop = asyncio.get_running_loop()
    end: asyncio.Future[int] = loop.create_future()

    def wait() -> None:
        status = -signal.SIGKILL
        with contextlib.suppress(ChildProcessError):  # it was let go with the orphans: its keeper told of it too late
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end.set_result, status)

    def look() -> None:
        try:
            gone, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            gone, status = pid, signal.SIGKILL
        if gone:
            end.set_result(os.waitstatus_to_exitcode(status))
        else:
            loop.call_later(_LOOK_S, look)

    try:
        threading.Thread(target=wait, name=f"wait for {pid}", daemon=True).start()
    except RuntimeError:  # there is none for it
        look()
    return end
