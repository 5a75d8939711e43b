"""The supervisor's table: which models are wanted, which workers there are, and what follows from each event. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal

from app.card import Card
from app.engine.placement import place
from app.tasks.base import Files
from app.wire.messages import Entry, Route, Table, Worker

_TRIES = 3  # deaths in a row while loading, after which a model that never was ready counts as failed
_DOUBT_S = 1.5  # the same for one that was ready, from the first on: callers may well wait for so long before they are told
# Before others get another try, the last one again and again; so does what no process could be started for.
_PAUSES_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0)


@dataclass(slots=True)
class Slot:
    """One replica's place: the worker in it changes, the place stays."""

    device: str
    worker: str = ""
    pid: int = 0
    state: Literal["loading", "ready"] = "loading"
    deaths: int = 0
    """While loading, since it was ready."""
    unborn: int = 0
    """How often since then not even a process could be forked."""
    failing_since: float = 0.0
    """When the first of both was."""
    why: str = ""
    """Why its last worker could not load, as far as that one said so."""
    restarts: int = 0

    @property
    def failures(self) -> int:
        """Both, in a row."""
        return self.deaths + self.unborn

    def doubted(self, now: float, patience_s: float) -> bool:
        """Whether nobody knows any more that its worker will be ready."""
        return self.failures >= _TRIES and now - self.failing_since >= patience_s


@dataclass(slots=True)
class Served:
    """One card and what has become of it."""

    card: Card
    default: bool
    preload: bool
    wanted: bool = False
    leaving: bool = False
    """Unloaded, while some whom it let in may still wait: its workers stay, and those that were to come do."""
    why: str = ""
    files: Files = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    loads: int = 0
    """How often it was asked for: files that were looked for before are another load's."""
    renewed: Card | None = None
    """What its card is since it was loaded."""
    gone: bool = False
    """Its card was removed since it was loaded."""

    def renew(self) -> None:
        """What changed in its card holds from now on."""
        if self.renewed is not None:
            self.card, self.renewed = self.renewed, None

    @property
    def state(self) -> Literal["unloaded", "loading", "ready", "failed"]:
        """As `GET /models` shows it."""
        if not self.wanted:
            return "failed" if self.why else "unloaded"
        return "ready" if any(slot.state == "ready" for slot in self.slots) else "loading"

    @property
    def in_doubt(self) -> bool:
        """Wanted, and nobody knows whether it will be ready."""
        return self.state == "loading" and bool(self.why)


@dataclass(frozen=True, slots=True)
class Birth:
    """A worker to fork."""

    model: str
    name: str
    device: str
    after_s: float = 0.0


class Roster:
    """Events in, births and tables out."""

    def __init__(self, models: dict[str, Served], devices: Sequence[str]) -> None:
        self.models = models
        self._devices = devices
        self._births = count(1)  # never again from the beginning: a model may be removed, and another one get its name

    def want(self, model: str, files: Files) -> list[Birth]:
        """Load a model: one birth per replica."""
        served = self.models[model]
        served.wanted, served.why, served.files = not served.leaving, "", files
        taken = [slot.device for other in self.models.values() for slot in other.slots]
        served.slots = [Slot(device) for device in place(served.card.serving.replicas, self._devices, taken)]
        return [self._birth(model, served, slot) for slot in served.slots]

    def leave(self, model: str) -> None:
        """Nobody new shall find a model; what found it is still answered."""
        served = self.models[model]
        served.wanted, served.leaving, served.why = False, True, ""

    def unwant(self, model: str, why: str = "") -> list[str]:
        """Stop using a model; returns its workers, which may finish. With a `why` it counts as failed."""
        served = self.models[model]
        served.wanted, served.leaving, served.why = False, False, why
        names = [slot.worker for slot in served.slots]
        served.slots, served.meta = [], {}
        return names

    def forked(self, name: str, pid: int) -> None:
        """The nursery made the process."""
        if found := self.find(name):
            found[1].pid = pid

    def ready(self, name: str, meta: dict[str, Any]) -> bool:
        """The worker loaded and ran. False if nobody wants it any more."""
        found = self.find(name)
        if found is None:
            return False
        served, slot = found
        served.meta, served.why = meta, ""
        slot.state, slot.why, slot.deaths, slot.unborn = "ready", "", 0, 0
        return True

    def died(self, name: str, reason: str, now: float) -> Birth | None:
        """The process ended, or there never was one. Returns its replacement; None if it is not wanted, or died too often
        without ever getting ready.
        """
        found = self.find(name)
        if found is None:
            return None
        served, slot = found
        born = slot.pid > 0 or slot.state == "ready"
        if not slot.failures:
            slot.failing_since = now
        if not born:
            slot.unborn += 1
        elif slot.state == "loading":
            slot.deaths += 1
        slot.restarts += born
        what = (
            f"its worker died {slot.deaths} times while loading" if born else f"no process could be started {slot.unborn} times"
        )
        why = slot.why or f"{what} ({reason})"
        if slot.deaths >= _TRIES and not served.meta:
            served.slots.remove(slot)  # the others are still to be ended
            served.wanted, served.why = False, why if served.wanted else ""
            return None
        if served.wanted and all(one.doubted(now, _DOUBT_S if served.meta else 0.0) for one in served.slots):
            served.why = f"{why}; it is tried again"
        again = self._birth(served.card.name, served, slot)
        late = slot.failures - _TRIES
        return again if late < 0 and born else replace(again, after_s=_PAUSES_S[min(max(late, 0), len(_PAUSES_S) - 1)])

    def find(self, name: str) -> tuple[Served, Slot] | None:
        """The slot that holds worker `name`."""
        for served in self.models.values():
            for slot in served.slots:
                if slot.worker == name:
                    return served, slot
        return None

    def table(self, frontends: int, routes: dict[str, Route], keys: str | None = None) -> Table:
        """What frontends are told."""
        return Table({name: _entry(served) for name, served in self.models.items()}, frontends, routes, keys)

    def _birth(self, model: str, served: Served, slot: Slot) -> Birth:
        slot.worker, slot.pid, slot.state, slot.why = f"{model}.{next(self._births)}", 0, "loading", ""
        return Birth(model, slot.worker, slot.device)


def _entry(served: Served) -> Entry:
    workers = tuple(Worker(slot.worker, slot.pid, slot.device, slot.state, slot.restarts) for slot in served.slots)
    return Entry(
        card=served.card.model_dump_json(),
        state=served.state,
        why=served.why,
        default=served.default,
        preload=served.preload and served.state != "unloaded",  # unloaded on purpose is not a fault
        files={name: str(path) for name, path in served.files.items()},
        meta=served.meta,
        workers=workers,
        leaving=served.leaving,
    )
