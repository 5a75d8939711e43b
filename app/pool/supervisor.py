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
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from app import metrics
from app.card import Card
from app.catalogue import Catalogue
from app.errors import HearthError
from app.logs import log
from app.pool.frontends import Frontends
from app.pool.keyring import Keyring
from app.pool.loading import Fetch, Loading
from app.pool.processes import Foreman, Nursery, kill_named
from app.pool.renewal import Renewal
from app.pool.roster import Roster
from app.pool.switching import Switching
from app.pool.traffic import Traffic
from app.process import ending, is_there, reaped
from app.settings import Settings, jobs_folder
from app.wire.messages import Adopt, Back, Change, Died, Hello, Leave, LoadFailed, Message, Ready, Stop, Switch, Tune
from app.wire.sockets import Endpoint, address

_ADOPT_AGAIN_S = 1.0
_WATCH_S = 0.25
_REAP_S = 0.5
_ABSENT_S = 2.0  # more than so much later than it should: whatever held this process held the others, too
_PULSE_LOST_S = 10.0  # twenty missed beats of an idle worker (`engine/worker.py` _PULSE_S)
_FRONTEND_LOST_S = 5.0  # as many of a frontend (`web/process.py` _BEAT_S), whom its heir costs a tenth of a second


class Supervisor:
    """Runs until `stop`, then drains."""

    def __init__(
        self,
        settings: Settings,
        environment: dict[str, str],
        roster: Roster,
        traffic: Traffic,
        listening: socket.socket,
        folder: Path,
        fetch: Fetch,
    ) -> None:
        self._settings = settings
        self._roster = roster
        self._listening = listening
        self._folder = folder
        self.frontends: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._settled = asyncio.Event()
        self._stop = asyncio.Event()
        self._broken = False
        self._stuck: dict[str, tuple[int, ...]] = {}  # worker that was killed because it stood still → with which samples
        self._nursery = Nursery(environment, str(folder), self._on_forked, self._on_exited)
        self._loading = Loading(settings, roster, folder, fetch, self._nursery, self)
        self._switching = Switching(roster, traffic, self._loading, self, kept=settings.versions, grace_s=settings.timeout_s)
        self._leaving = (self._loading.leaving, self._switching.leaving)
        self.renewal = Renewal(roster, self._loading, self._switching, self)
        self.keyring = Keyring(settings, self)
        self._foreman = Foreman(environment, str(folder))
        self._http = Frontends(environment, listening, str(folder))
        self._seen = metrics.for_supervisor(folder / "metrics")

    async def run(self, announce: Callable[[Roster], None]) -> None:
        """Serve. `announce` is called once, when every preloaded model is ready or has failed, and a frontend answers.

        Raises HearthError, after draining, if a task failed that the server cannot do without.
        """
        self._control = Endpoint.listen(address(str(self._folder), "supervisor"))
        self._control.attach(self._on_message)
        self.spawn(self._nursery.run())
        self.spawn(self.keyring.run())
        for _ in range(self._settings.frontend_count()):
            self.spawn(self._http.run_one(self._on_frontend_exit))
        for name, served in self._roster.models.items():
            if served.preload:
                self._loading.load(name)
        if self._settings.database or (jobs_folder(self._settings.home) / "jobs.db").exists():
            self.spawn(self._foreman.run())
        self.spawn(self._watch())
        self.spawn(self._reap())
        self.spawn(self._announce(announce))
        await self._stop.wait()
        await self._drain()
        if self._broken:
            raise HearthError("the server ended because a task of its supervisor failed; report what its log says of it")

    def stop(self) -> None:
        """Drain and return from `run`; asked again, lose what still runs."""
        if self._stop.is_set():
            log.warning("stopping at once; what was still running is lost")
            self.spawn(self._http.close(0))
        self._stop.set()

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

    # Events

    def _on_message(self, peer: str, message: Message, _: dict[str, Any]) -> None:
        match message:
            case Hello(role="frontend", pid=pid) if is_there(pid):  # else it was buried before it was heard
                self.frontends.add(peer)
                self.tell(self._table(), to=peer)
                for leaving in self._leaving:
                    leaving.came()
                self._check_settled()
            case Hello(role="worker", pid=pid):
                if self._roster.find(peer):
                    self._nursery.met(peer, pid)
                else:  # its nursery died before it could tell of it, and there is another one since
                    kill_named(pid, peer)
            case Ready(meta=meta):
                if self._roster.ready(peer, meta) and (found := self._roster.find(peer)):
                    self.publish()
                    self._loading.settle(found[0].card.name)
                else:  # nobody wants it any more
                    self.tell(Stop(), to=peer)
            case LoadFailed(why=why):
                if (found := self._roster.find(peer)) and (found[0].meta or not found[0].wanted):  # it ends, and is replaced
                    found[1].why = why
                elif found:
                    self._loading.give_up(found[0].card.name, why)
            case Change():
                self._loading.change(peer, message)
            case Switch() | Back():
                self._switching.asked(peer, message)
            case Leave():
                for leaving in self._leaving:
                    leaving.left(peer, message)
            case Tune():
                self.spawn(self._foreman.run())
            case Adopt(key=key, share=share):
                self._adopt(key, share)
            case _:
                pass

    def adopt(self, card: Card, share: float) -> None:
        """A tuned model goes into service, unless it was there before."""
        self._switching.adopt(card, share)

    def _adopt(self, key: str, share: float) -> None:
        """The same; its card may just have been written."""
        try:
            known = self._roster.models.get(key)
            self.adopt(known.card if known and not known.gone else Catalogue.read(self._settings.home).named(key), share)
        except HearthError as error:
            log.error("%s cannot be taken into service: %s", key, error.detail)
        except OSError as error:
            log.error("%s cannot be taken into service for now: %s", key, error)
            asyncio.get_running_loop().call_later(_ADOPT_AGAIN_S, self._adopt, key, share)

    def _on_forked(self, name: str, pid: int) -> None:
        self._roster.forked(name, pid)

    def _on_exited(self, name: str, pid: int, status: int) -> None:
        running = self._loading.buried(name)  # nothing, if it was told to stop; a model can end its process with 0, too
        stuck = self._stuck.pop(name, None)
        if stuck is not None:  # what it began after that has no part in it
            running = tuple(id for id in stuck if id in running)
        killed = status == -signal.SIGKILL and stuck is None
        self._seen.process_gone(pid)
        found = self._roster.find(name)
        if found:
            model = found[0].card.name
            reason = ending(status)
            log.warning("worker %s died (%s), %d samples were running", name, reason, len(running))
            if found[1].pid or found[1].state == "ready":  # else there was none
                self._seen.worker_restarted(model)
            if birth := self._roster.died(name, reason, time.monotonic()):
                self._loading.fork(birth)
            else:
                self._loading.give_up(model, self._roster.models[model].why)
        for frontend in self.frontends:
            self.tell(Died(name, running, bool(stuck), killed), to=frontend)
        self.publish()
        self._loading.settle_all()
        self.renewal.settled(name.rpartition(".")[0])
        self._switching.look()
        self._check_settled()

    def _on_frontend_exit(self, name: str, pid: int, status: int) -> None:
        self.frontends.discard(name)
        for leaving in self._leaving:
            leaving.gone(name)
        self._seen.process_gone(pid)
        if not self._stop.is_set():
            log.warning("%s died (status %d); replacing it", name, status)
            self._seen.frontend_restarted()

    @property
    def expected(self) -> int:
        """How many frontends there are to be: while it ends, none comes any more."""
        return 0 if self._stop.is_set() else self._settings.frontend_count()

    # Telling

    def _table(self) -> Message:
        return self._roster.table(self._settings.frontend_count(), self._switching.routes(), self.keyring.text)

    def publish(self) -> None:
        """Tell every frontend what there is now."""
        table = self._table()
        for frontend in self.frontends:
            self.tell(table, to=frontend)

    def tell(self, message: Message, to: str) -> None:
        """Send a message to a frontend or worker."""
        self._control.send(message, to=to)

    def settled(self, model: str) -> None:
        """A model stands still: changes of traffic may wait for it, and so may the announcement."""
        self._switching.look()
        self.renewal.settled(model)
        self._check_settled()

    def _check_settled(self) -> None:
        preloaded = [served for served in self._roster.models.values() if served.preload]
        if self.frontends and all(served.meta or served.in_doubt or served.state in ("ready", "failed") for served in preloaded):
            self._settled.set()

    # Watching

    async def _watch(self) -> None:
        """Kill what neither beats nor finishes."""
        now, resumed = time.monotonic(), 0.0
        while True:
            before = now
            await asyncio.sleep(_WATCH_S)
            now = time.monotonic()
            if now - before > _WATCH_S + _ABSENT_S:  # the machine was paused: they may have been gone for as long
                resumed = now
                continue
            self._http.kill_silent(now, _FRONTEND_LOST_S, resumed)
            self._nursery.kill_stopped()
            self._foreman.kill_stopped()
            for name, box in list(self._loading.boxes.items()):
                found = self._roster.find(name)
                if found is None or found[1].state != "ready":  # loading has no limit, and no beat: files may come slowly
                    self._nursery.kill_stopped(name)
                    continue
                reading = box.read()
                stall_s, since = found[0].card.limits.stall_s, max(resumed, reading.busy_since or reading.beat)
                if now - since > (stall_s if reading.busy_since else min(stall_s, _PULSE_LOST_S)):
                    log.error("worker %s has not moved for %.0f s; killing it", name, now - reading.beat)
                    if name not in self._stuck:  # later it is one that was killed
                        self._stuck[name] = () if self._nursery.stopped(name) else reading.running
                    self._nursery.kill(name)

    async def _reap(self) -> None:
        """Let go what killed processes had started: decoders, workers, spares."""
        dead: set[int] = set()
        while True:
            await asyncio.sleep(_REAP_S)
            dead = reaped(dead)

    def spawn(self, work: Coroutine[Any, Any, None], errand: str = "") -> None:
        """Run it; that it fails ends the server, unless it is an errand, which has a name."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._on_done(task, errand))

    def _on_done(self, task: asyncio.Task[None], errand: str) -> None:
        self._tasks.discard(task)
        with contextlib.suppress(asyncio.CancelledError):
            if (error := task.exception()) and errand:
                log.error("%s failed", errand, exc_info=error)
            elif error:
                log.critical("a task of the supervisor ended", exc_info=error)
                self._broken = self._broken or not self._stop.is_set()
                self._stop.set()
