"""The supervisor's hand for models: loads and unloads them, and answers who asked when they stand still."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from app.card import Card
from app.errors import HearthError, UnknownModel
from app.logs import log
from app.pool.house import House
from app.pool.leaving import Leaving
from app.pool.processes import Nursery
from app.pool.roster import Birth, Roster, Served
from app.private import discard
from app.settings import Settings
from app.tasks.base import Files
from app.wire.blackbox import BlackBox
from app.wire.messages import Change, Changed, Stop
from app.wire.sockets import address

_AGAIN_S = 1.0

Fetch = Callable[[Card], Awaitable[Files]]
"""Find a model's files, downloading them if they are not here. Raises HearthError."""


class Loading:
    """Who is loaded. What follows from each event is decided in `roster.py`; here it is carried out."""

    def __init__(self, settings: Settings, roster: Roster, folder: Path, fetch: Fetch, nursery: Nursery, house: House) -> None:
        self.boxes: dict[str, BlackBox] = {}
        """Of the workers that live."""
        self._settings = settings
        self._roster = roster
        self._folder = folder
        self._fetch = fetch
        self._nursery = nursery
        self._house = house
        self.leaving = Leaving(house)
        """What was unloaded, and is still being answered by."""
        self._waiting: dict[str, list[tuple[str, int]]] = {}  # model → frontends that wait for it to settle

    def load(self, model: str) -> None:
        """Start its workers, once its files are here."""
        served = self._roster.models[model]
        self.leaving.forget(model)
        old = self._roster.unwant(model)  # it was unloaded a moment ago; who still waits for them waits for the new ones
        served.renew()
        served.wanted, served.why, served.loads = True, "", served.loads + 1
        if old:
            self._end(old)
        self._house.spawn(self._start_workers(model, served, served.loads))

    async def _start_workers(self, model: str, served: Served, load: int) -> None:
        self._house.publish()
        try:
            files = await self._fetch(served.card)
            if (served.wanted or served.leaving) and served.loads == load:  # it may have been loaded again while the files came
                for birth in self._roster.want(model, files):
                    self.fork(birth)
                self._house.publish()
        except Exception as error:  # noqa: BLE001  one model that cannot be started must not end the server
            if not (served.wanted or served.leaving) or served.loads != load:
                return
            if isinstance(error, HearthError):
                why = error.detail
            else:
                log.error("%s cannot be started", model, exc_info=error)
                what = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
                why = f"it cannot be started ({what}); the server's log has more"
            self.give_up(model, why if served.wanted else "")

    def unload(self, model: str) -> None:
        """Nobody finds it any more; its workers end when what found it is answered, which may take no longer than a drain."""
        self._roster.leave(model)
        self._house.publish()
        self.leaving.ask(model, lambda: self._unloaded(model), self._settings.drain_s)

    def _unloaded(self, model: str) -> None:
        self._free(model)
        self.settle(model)  # there may be no process whose end would do so

    def _free(self, model: str, why: str = "") -> None:
        """Its workers end. With a `why` it counts as failed."""
        self.leaving.forget(model)
        if model not in self._roster.models:  # its card is gone, and it had no process
            return
        self._end(self._roster.unwant(model, why))

    def _end(self, workers: list[str]) -> None:
        """Frontends hear first, so that the workers' last word is an answer."""
        self._house.publish()
        for worker in workers:
            self._house.tell(Stop(), to=worker)
            asyncio.get_running_loop().call_later(self._settings.drain_s, self._nursery.kill, worker)

    def give_up(self, model: str, why: str) -> None:
        """It counts as failed; without a `why` as unloaded, as it was to be."""
        if why:
            log.error("%s failed: %s", model, why)
        if model not in self._roster.models:  # removed, while its files were still looked for
            return
        self._free(model, why)
        self.settle(model)

    def fork(self, birth: Birth) -> None:
        """Ask the nursery for a worker, at once or later."""
        if birth.after_s:
            asyncio.get_running_loop().call_later(birth.after_s, self._fork_again, replace(birth, after_s=0.0))
            return
        served = self._roster.models[birth.model]
        path = self._folder / f"{birth.name}.blackbox"
        try:
            self.boxes[birth.name] = BlackBox(path, create=True)
        except OSError as error:
            log.error("no worker can be started for %s for now: %s", birth.model, error)
            asyncio.get_running_loop().call_later(_AGAIN_S, self._fork_again, birth)
            return
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

    def _fork_again(self, birth: Birth) -> None:
        if self._roster.find(birth.name):  # it is still wanted
            self.fork(birth)

    def change(self, peer: str, change: Change) -> None:
        """A frontend wants a model loaded or unloaded."""
        served = self._roster.models.get(change.model)
        if served is None:
            error = UnknownModel(f"no model is called {change.model!r}")
            self._house.tell(Changed(change.id, error.code, error.detail), to=peer)
            return
        self._waiting.setdefault(change.model, []).append((peer, change.id))
        if change.verb == "load" and not served.wanted:
            self.load(change.model)
        elif change.verb == "unload" and served.wanted:
            self.unload(change.model)
        self.settle(change.model)

    def buried(self, worker: str) -> tuple[int, ...]:
        """A worker's process is gone; the samples that it was running."""
        box = self.boxes.pop(worker, None)
        running = box.read().running if box else ()
        if box:
            box.close()
        for leftover in (f"{worker}.blackbox", worker):
            discard(self._folder / leftover)
        return running

    def lives(self, model: str) -> bool:
        """Whether a process of its is there, wanted or not, or is still to come."""
        served = self._roster.models.get(model)
        return bool(served and (served.slots or served.leaving)) or any(
            worker.rpartition(".")[0] == model for worker in self.boxes
        )

    def settle(self, model: str) -> None:
        """Answer those who wait for `model`, if it stands still: ready, failed, or unloaded and its processes gone; or if
        nobody knows whether it will be ready.
        """
        served = self._roster.models.get(model)
        if served is None or served.state == "ready" or (served.in_doubt if served.wanted else not self.lives(model)):
            for frontend, id in self._waiting.pop(model, []):
                self._house.tell(Changed(id), to=frontend)
        self._house.settled(model)

    def settle_all(self) -> None:
        """A process ended: whoever waits may wait for that."""
        for model in list(self._waiting):
            self.settle(model)
