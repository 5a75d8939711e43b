"""The supervisor's hands: start the nursery and the foreman, ask for workers, hear of every end. Decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from app.logs import log
from app.patience import is_scarce
from app.process import child_command, is_stopped, search_path
from app.settings import inherited_environment
from app.wire.sockets import address

Exited = Callable[[str, int, int], None]
"""Told a process's name, pid (0: it was never forked) and exit status (negative: the signal that killed it)."""

_LINE_BYTES = 1 << 20  # a worker's spec holds its card and file names

_SPARE_S = 0.5  # until a spare that was just forked has said so; to begin anew takes seconds
_AGAIN_S = 1.0
_FOREMAN_AGAIN_S = 1.0
_FOREMAN_S = 5.0  # its own tasks take no time; its tuners are started again, whenever they end


@dataclass(frozen=True, slots=True)
class _Spare:
    """A nursery in waiting, which has imported all that the present one has."""

    pid: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Nursery:
    """The forking process, and the workers by name while they live."""

    def __init__(self, environment: Mapping[str, str], folder: str, forked: Callable[[str, int], None], exited: Exited) -> None:
        """`folder`: where its spares say that they are there."""
        self._environment = environment
        self._folder = folder
        self._forked = forked
        self._exited = exited
        self.workers: dict[str, int] = {}
        self._specs: dict[str, dict[str, Any]] = {}  # of all workers
        self._orphans: set[str] = set()  # workers whose nursery is gone
        self._asked: dict[str, dict[str, Any]] = {}  # specs of workers that are not yet forked
        self._pid = 0
        self._process: asyncio.subprocess.Process | None = None  # where it is a child of ours, and no spare that was promoted
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Server | None = None
        self._spare: _Spare | None = None
        self._met = asyncio.Event()

    async def run(self) -> None:
        """Keep a nursery alive. When one dies its workers live on, and the end of each is reported like any other."""
        self._listening = await asyncio.start_unix_server(self._meet, address(self._folder, "nursery"), limit=_LINE_BYTES)
        while True:
            try:
                reader = await self._promote() or await self._start()
            except (OSError, RuntimeError) as error:  # Python 3.11 waits for a child in a thread, which there may be none for
                log.error("no nursery can be started for now: %s", error)
                await asyncio.sleep(_AGAIN_S)
                continue
            for name in self.workers:  # it will have to replace them
                self._send(expect=self._specs[name])
            for spec in self._asked.values():
                self._send(spec=spec)
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while line := await reader.readline():
                    self._hear(json.loads(line))
            await self._bury()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A spare says that it is there."""
        line = b""
        with contextlib.suppress(ConnectionError):
            line = await reader.readline()
        if not line:
            writer.close()
            return
        if self._spare:
            self._spare.writer.close()
        self._spare = _Spare(json.loads(line)["spare"], reader, writer)
        self._met.set()

    def fork(self, spec: dict[str, Any]) -> None:
        """Ask for a worker. It is reported as forked, and later as exited, whatever happens."""
        self._specs[spec["name"]] = self._asked[spec["name"]] = spec
        self._send(spec=spec)

    def met(self, worker: str, pid: int) -> None:
        """A worker says that it is there, perhaps before its nursery does, which may die meanwhile."""
        if worker in self._asked:
            self._hear({"forked": worker, "pid": pid})

    def kill(self, worker: str) -> None:
        """End a worker now (SIGKILL)."""
        if pid := self.workers.get(worker):
            kill(pid)

    def stopped(self, worker: str) -> bool:
        """Whether somebody stopped it (SIGSTOP)."""
        return worker in self.workers and is_stopped(self.workers[worker])

    def kill_stopped(self, worker: str = "") -> None:
        """End the nursery, or a worker, if somebody stopped it: its spare hears what it does not, and the next one begins."""
        pid = self.workers.get(worker, 0) if worker else self._pid if self._writer else 0
        kill_stopped(pid, f"worker {worker}" if worker else "the nursery")

    async def close(self) -> None:
        """End the nursery and with it every worker that is left."""
        if self._listening is not None:
            self._listening.close()
        for pid in (self._pid, self._spare.pid if self._spare else 0, *self.workers.values()):
            if pid:
                kill(pid)
        if self._process is not None:
            await self._process.wait()

    async def _promote(self) -> asyncio.StreamReader | None:
        """What the spare says, if there is one that lives."""
        if self._pid and (self._spare is None or self._spare.reader.at_eof()):
            self._met.clear()
            with contextlib.suppress(TimeoutError):  # it may just have been forked
                await asyncio.wait_for(self._met.wait(), _SPARE_S)
        await asyncio.sleep(0)  # of a spare that was killed with it, we hear in this turn of the loop
        spare, self._spare = self._spare, None
        if spare is None:
            return None
        if spare.reader.at_eof():
            spare.writer.close()
            return None
        self._pid, self._writer = spare.pid, spare.writer
        return spare.reader

    async def _start(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        environment = os_environment(self._environment) | {
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # is there CUDA? asked without opening a context: forks stay safe
            "OPENBLAS_NUM_THREADS": "1",  # numpy's pool: a thread before a fork is a risk, and torch has its own
        }
        self._process = await asyncio.create_subprocess_exec(
            *child_command("app.engine.nursery", str(theirs.fileno()), self._folder),
            pass_fds=[theirs.fileno()],
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for the supervisor alone
        )
        theirs.close()
        self._pid = self._process.pid
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=_LINE_BYTES)
        return reader

    def _send(self, **words: Any) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(words).encode() + b"\n")

    def _hear(self, words: dict[str, Any]) -> None:
        if name := words.get("forked"):
            if self._asked.pop(name, None):  # else the worker itself has said so
                self.workers[name] = words["pid"]
                self._forked(name, words["pid"])
        elif name := words.get("exited"):
            self._asked.pop(name, None)
            self._gone(name, words["status"])

    async def _bury(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._process is not None:
            await self._process.wait()
            self._process = None
        for name in self.workers.keys() - self._orphans:
            self._watch(name, self.workers[name])
        lost, self._asked = self._asked, {}
        for name in lost:
            self._gone(name, -signal.SIGKILL)

    def _watch(self, name: str, pid: int) -> None:
        """Hear of a worker's end from the kernel: its parent is gone. Where there is no descriptor for it now, later."""
        self._orphans.add(name)
        loop = asyncio.get_running_loop()
        try:
            end = os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended, too
            self._ended(name)
        except (AttributeError, OSError) as error:
            if is_scarce(error):
                loop.call_later(_AGAIN_S, self._watch, name, pid)
                return
            kill(pid)  # this is no Linux, or none that can tell: nobody would hear of its end
            self._ended(name)
        else:
            loop.add_reader(end, self._ended, name, end)

    def _ended(self, name: str, end: int | None = None) -> None:
        if end is not None:
            asyncio.get_running_loop().remove_reader(end)
            os.close(end)
        self._orphans.discard(name)
        self._gone(name, -signal.SIGKILL)

    def _gone(self, name: str, status: int) -> None:
        del self._specs[name]
        self._exited(name, self.workers.pop(name, 0), status)


class Foreman:
    """The process that looks after jobs (`tuning/foreman.py`)."""

    def __init__(self, environment: Mapping[str, str], folder: str) -> None:
        self._environment = environment
        self._folder = folder
        self._running = self._closing = False
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Keep it alive from now on. Once is enough."""
        if self._running:
            return
        self._running = True
        while not self._closing:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *child_command("app.tuning.foreman", self._folder),
                    env=os_environment(self._environment),
                    start_new_session=True,
                )
            except (OSError, RuntimeError) as error:  # as above
                log.error("no foreman can be started for now: %s", error)
            else:
                status = await self._process.wait()
                if not self._closing:
                    log.warning("the foreman died (status %d); replacing it", status)
            if not self._closing:
                await asyncio.sleep(_FOREMAN_AGAIN_S)

    def kill_stopped(self) -> None:
        """End it if somebody stopped it: the next one goes on."""
        if self._process is not None and self._process.returncode is None:
            kill_stopped(self._process.pid, "the foreman")

    async def close(self) -> None:
        """End it, and with it the tuners; the next one goes on with them."""
        self._closing = True
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _FOREMAN_S)
            except TimeoutError:
                kill(self._process.pid)


def os_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """A child's environment: what we were given, our settings, and where our package is."""
    return inherited_environment() | dict(ours) | {"PYTHONPATH": search_path()}


def kill_stopped(pid: int, name: str) -> None:
    """End it where it is stopped (SIGSTOP). 0: there is none."""
    if pid and is_stopped(pid):
        log.error("%s is stopped; killing it", name)
        kill(pid)


def kill_named(pid: int, worker: str) -> None:
    """End a worker, and no other process that has its number since; later, where there is no descriptor to look at it now."""
    try:
        if psutil.Process(pid).name() == f"hearth {worker}"[:15]:
            kill(pid)
    except psutil.Error:
        return
    except OSError:
        asyncio.get_running_loop().call_later(_AGAIN_S, kill_named, pid, worker)


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal; to one that is gone, none."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
