"""The main process: starts, watches and replaces all others. No torch, no HTTP.

Events come from four sides: children's messages, exits told by the nursery, the watch over the black boxes, and signals.
What follows from each is decided in `roster.py`; here it is carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from app import metrics
from app.card import Card
from app.catalogue import Catalogue
from app.errors import HearthError, UnknownModel
from app.logs import log
from app.pool.processes import Foreman, Frontends, Nursery
from app.pool.roster import Birth, Roster, Served
from app.settings import Settings, jobs_folder
from app.tasks.base import Files
from app.wire.blackbox import BlackBox
from app.wire.messages import Adopt, Change, Changed, Died, Hello, LoadFailed, Message, Ready, Stop, Tune
from app.wire.sockets import Endpoint, address

_WATCH_S = 0.5
_PULSE_LOST_S = 10.0  # twenty missed beats of an idle worker (`engine/worker.py` _PULSE_S)

Fetch = Callable[[Card], Awaitable[Files]]
"""Find a model's files, downloading them if they are not here. Raises HearthError."""


class Supervisor:
    """Runs until SIGTERM or SIGINT, then drains."""

    def __init__(
        self,
        settings: Settings,
        environment: dict[str, str],
        roster: Roster,
        listening: socket.socket,
        folder: Path,
        fetch: Fetch,
    ) -> None:
        self._settings = settings
        self._roster = roster
        self._listening = listening
        self._folder = folder
        self._fetch = fetch
        self._frontends: set[str] = set()
        self._boxes: dict[str, BlackBox] = {}
        self._changes: dict[str, list[tuple[str, int]]] = {}  # model → frontends that wait for it to settle
        self._tasks: set[asyncio.Task[None]] = set()
        self._settled = asyncio.Event()
        self._stop = asyncio.Event()
        self._nursery = Nursery(environment, self._on_forked, self._on_exited)
        self._foreman = Foreman(environment, str(folder))
        self._http = Frontends(environment, listening, str(folder))
        self._seen = metrics.for_supervisor(folder / "metrics")

    async def run(self, announce: Callable[[Roster], None]) -> None:
        """Serve. `announce` is called once, when every preloaded model is ready or has failed, and a frontend answers."""
        self._control = Endpoint.listen(address(str(self._folder), "supervisor"))
        self._control.attach(self._on_message)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        self._spawn(self._nursery.run())
        for _ in range(self._settings.frontend_count()):
            self._spawn(self._http.run_one(self._on_frontend_exit))
        for name, served in self._roster.models.items():
            if served.preload:
                self._load(name)
        if self._settings.database or (jobs_folder(self._settings.home) / "jobs.db").exists():
            self._spawn(self._foreman.run())
        self._spawn(self._watch())
        self._spawn(self._announce(announce))
        await self._stop.wait()
        await self._drain()

    async def _announce(self, announce: Callable[[Roster], None]) -> None:
        await self._settled.wait()
        announce(self._roster)

    async def _drain(self) -> None:
        """Stop accepting, let the frontends finish what they accepted, then end the workers. Order loses nothing."""
        log.info("draining: finishing what was accepted, for at most %g s", self._settings.drain_s)
        self._listening.close()
        await self._http.close(self._settings.drain_s)
        await self._foreman.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._nursery.close()
        self._control.close()
        log.info("stopped")

    def _on_signal(self) -> None:
        if self._stop.is_set():
            log.warning("stopping at once; what was still running is lost")
            self._spawn(self._http.close(0))
        self._stop.set()

    # Loading and unloading

    def _load(self, model: str) -> None:
        served = self._roster.models[model]
        served.wanted, served.why = True, ""
        self._spawn(self._start_workers(model))

    async def _start_workers(self, model: str) -> None:
        self._publish()
        try:
            files = await self._fetch(self._roster.models[model].card)
        except HearthError as error:
            self._give_up(model, error.detail)
            return
        served = self._roster.models[model]
        if served.wanted and not served.slots:  # it may have been unloaded, and loaded again, while the files came
            for birth in self._roster.want(model, files):
                self._fork(birth)
            self._publish()

    def _unload(self, model: str, why: str = "") -> None:
        """Frontends hear first, so that the workers' last word is an answer."""
        workers = self._roster.unwant(model, why)
        self._publish()
        for worker in workers:
            self._control.send(Stop(), to=worker)
            asyncio.get_running_loop().call_later(self._settings.drain_s, self._nursery.kill, worker)

    def _give_up(self, model: str, why: str) -> None:
        log.error("%s failed: %s", model, why)
        self._unload(model, why)
        self._settle(model)

    def _fork(self, birth: Birth) -> None:
        served = self._roster.models[birth.model]
        path = self._folder / f"{birth.name}.blackbox"
        self._boxes[birth.name] = BlackBox(path, create=True)
        self._nursery.fork(
            {
                "name": birth.name,
                "card": served.card.model_dump_json(),
                "files": {name: str(file) for name, file in served.files.items()},
                "device": birth.device,
                "threads": self._settings.thread_count(),
                "precision": self._settings.precision,
                "compute": self._settings.compute,
                "home": str(self._settings.home),
                "address": address(str(self._folder), birth.name),
                "control": address(str(self._folder), "supervisor"),
                "blackbox": str(path),
            }
        )

    # Events

    def _on_message(self, peer: str, message: Message, _: dict[str, Any]) -> None:
        match message:
            case Hello(role="frontend"):
                self._frontends.add(peer)
                self._control.send(self._table(), to=peer)
                self._check_settled()
            case Ready(meta=meta):
                if self._roster.ready(peer, meta) and (found := self._roster.find(peer)):
                    self._publish()
                    self._settle(found[0].card.name)
                else:  # nobody wants it any more
                    self._control.send(Stop(), to=peer)
            case LoadFailed(why=why):
                if found := self._roster.find(peer):
                    self._give_up(found[0].card.name, why)
            case Change():
                self._on_change(peer, message)
            case Tune():
                self._spawn(self._foreman.run())
            case Adopt(model=model):
                self._adopt(model)
            case _:
                pass

    def _adopt(self, model: str) -> None:
        """A tuned model goes into service; its card has just been written."""
        try:
            card = Catalogue.read(self._settings.home).named(model)
        except HearthError as error:
            log.error("%s cannot be taken into service: %s", model, error.detail)
            return
        self._roster.models.setdefault(model, Served(card, default=False, preload=False))
        if not self._roster.models[model].wanted:
            self._load(model)

    def _on_change(self, peer: str, change: Change) -> None:
        served = self._roster.models.get(change.model)
        if served is None:
            error = UnknownModel(f"no model is called {change.model!r}")
            self._control.send(Changed(change.id, error.code, error.detail), to=peer)
            return
        self._changes.setdefault(change.model, []).append((peer, change.id))
        if change.verb == "load" and not served.wanted:
            self._load(change.model)
        elif change.verb == "unload" and served.wanted:
            self._unload(change.model)
        self._settle(change.model)

    def _on_forked(self, name: str, pid: int) -> None:
        self._roster.forked(name, pid)

    def _on_exited(self, name: str, pid: int, status: int) -> None:
        box = self._boxes.pop(name, None)
        running = box.read().running if box and status != 0 else ()
        if box:
            box.close()
        for leftover in (f"{name}.blackbox", name):
            (self._folder / leftover).unlink(missing_ok=True)
        self._seen.process_gone(pid)
        found = self._roster.find(name)
        if found:
            model = found[0].card.name
            reason = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            log.warning("worker %s died (%s), %d samples were running", name, reason, len(running))
            self._seen.worker_restarted(model)
            if birth := self._roster.died(name, reason):
                self._fork(birth)
            else:
                self._give_up(model, self._roster.models[model].why)
        for frontend in self._frontends:
            self._control.send(Died(name, running), to=frontend)
        self._publish()
        for model in list(self._changes):
            self._settle(model)

    def _on_frontend_exit(self, name: str, pid: int, status: int) -> None:
        log.warning("%s died (status %d); replacing it", name, status)
        self._frontends.discard(name)
        self._seen.frontend_restarted()
        self._seen.process_gone(pid)

    # Telling

    def _table(self) -> Message:
        return self._roster.table(self._settings.frontend_count())

    def _publish(self) -> None:
        table = self._table()
        for frontend in self._frontends:
            self._control.send(table, to=frontend)

    def _settle(self, model: str) -> None:
        """Answer those who wait for `model`, if it stands still: ready, failed, or unloaded and its processes gone."""
        served = self._roster.models[model]
        gone = not any(worker.rpartition(".")[0] == model for worker in self._boxes)
        if served.state == "ready" or (not served.wanted and gone):
            for frontend, id in self._changes.pop(model, []):
                self._control.send(Changed(id), to=frontend)
        self._check_settled()

    def _check_settled(self) -> None:
        preloaded = [served for served in self._roster.models.values() if served.preload]
        if self._frontends and all(served.state in ("ready", "failed") for served in preloaded):
            self._settled.set()

    # Watching

    async def _watch(self) -> None:
        """Kill what neither beats nor finishes; note what the workers hold."""
        while True:
            await asyncio.sleep(_WATCH_S)
            now = time.monotonic()
            for name, box in list(self._boxes.items()):
                found = self._roster.find(name)
                if found is None or found[1].state != "ready":
                    continue
                reading = box.read()
                stall_s = found[0].card.limits.stall_s
                stuck = bool(reading.busy_since) and now - reading.busy_since > stall_s
                silent = not reading.busy_since and now - reading.beat > _PULSE_LOST_S
                if stuck or silent:
                    log.error("worker %s has not moved for %.0f s; killing it", name, now - reading.beat)
                    self._nursery.kill(name)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        with contextlib.suppress(asyncio.CancelledError):
            if error := task.exception():
                log.critical("a task of the supervisor ended", exc_info=error)
                self._stop.set()
