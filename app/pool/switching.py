"""The supervisor's hand for versions: shares a model's traffic anew, at once, when every version that shall answer is ready."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from functools import partial

from app.card import Card
from app.catalogue import name_of, number_of, versions_of
from app.errors import Conflict, HearthError, Unavailable, UnknownModel
from app.logs import log
from app.pool.house import House
from app.pool.leaving import Leaving
from app.pool.loading import Loading
from app.pool.roster import Roster, Served
from app.pool.traffic import Traffic
from app.wire.messages import Back, Changed, Route, Switch


@dataclass(frozen=True, slots=True)
class _Change:
    """A route that waits for its versions."""

    model: str
    keys: frozenset[str]
    """Who must be ready for it."""
    route: Route | None = None
    asker: tuple[str, int] | None = None
    settled: frozenset[str] = frozenset()
    """Versions that are no new ones any more once it is made."""
    back: bool = False
    adopted: str = ""
    """A new version, whose route is made when it is ready, from what it is then."""
    share: float = 0.0


class Switching:
    """Changes of traffic under way. Until one is done, everything is answered as before."""

    def __init__(self, roster: Roster, traffic: Traffic, loading: Loading, house: House, *, kept: int, grace_s: float) -> None:
        """`kept`: how many versions of a model stay on the disk. `grace_s`: what loses its traffic stays loaded for so long,
        and until its last request is answered.
        """
        self._roster = roster
        self._traffic = traffic
        self._loading = loading
        self._house = house
        self._kept = kept
        self._grace_s = grace_s
        self._changes: list[_Change] = []
        self._successors: dict[str, tuple[Card, float]] = {}  # of versions that were removed and are still here
        self._retiring: dict[str, asyncio.TimerHandle] = {}
        self.leaving = Leaving(house)
        """Versions without traffic."""

    def routes(self) -> dict[str, Route]:
        """What frontends are told."""
        return self._traffic.routes(self._roster.models)

    def adopt(self, card: Card, share: float) -> None:
        """A job made this version; it gets its share as soon as it is ready."""
        key = card.name
        if (before := self._roster.models.get(key)) and before.gone:
            log.warning("%s waits: one of that number was removed and is still loaded; POST /models/%s/unload ends it", key, key)
            self._successors[key] = (card, share)
            return
        waiting = {change.adopted for change in self._changes}
        others = set(versions_of(card.model, self._roster.models)) - {key} - waiting
        loaded = {other for other in others if self._roster.models[other].wanted}
        if loaded and self._traffic.present(card.model, others) is None:  # they answer, and nothing was ever written down
            self._traffic.begin(loaded, ())
        self._roster.models.setdefault(key, Served(card, default=False, preload=False))
        self._house.publish()
        if key not in waiting and self._traffic.adoption(key, share, self._roster.models):
            alone = frozenset([key])
            first = self._traffic.present(card.model, self._roster.models) is None
            self._begin(_Change(card.model, alone if share or first else frozenset(), settled=alone, adopted=key, share=share))

    def asked(self, peer: str, message: Switch | Back) -> None:
        """A frontend wants other shares, or those from before."""
        there, model = self._roster.models, message.model
        try:
            if not versions_of(model, there):
                raise UnknownModel(f"no model is called {model!r}")
            if isinstance(message, Switch):
                route = self._traffic.wanted(model, message.shares, message.shadow, there)
            else:
                route = self._traffic.before(model, there)
        except HearthError as error:
            self._house.tell(Changed(message.id, error.code, error.detail), to=peer)
            return
        keys = frozenset({*route.shares, route.shadow} - {""})
        named = {int(version) for version in [*message.shares, message.shadow] if version} if isinstance(message, Switch) else ()
        settled = frozenset(key for key in versions_of(model, there) if number_of(key) in named)
        self._begin(_Change(model, keys, route, (peer, message.id), settled=settled, back=isinstance(message, Back)))

    def _begin(self, change: _Change) -> None:
        for other in [other for other in self._changes if other.model == change.model and change.asker and other.asker]:
            self._refuse(other, Conflict(f"a later change of the traffic of {change.model} took its place"))
        self._changes.append(change)
        for key in change.keys:
            if not self._roster.models[key].wanted:
                self._loading.load(key)
        self.look()

    def look(self) -> None:
        """Make the changes whose versions are ready; refuse those of which one cannot be loaded, or where somebody waits to hear
        may never be: an adopted version can wait.
        """
        for change in list(self._changes):
            if change not in self._changes:  # one before it has settled it
                continue
            served = {key: self._roster.models[key] for key in change.keys}
            lost = next((key for key, one in served.items() if _lost(one, change)), None)
            if lost is not None:
                what = "removed" if served[lost].gone else "unloaded"
                self._refuse(change, Conflict(f"{lost} cannot answer: {served[lost].why or f'it was {what} meanwhile'}"))
            elif all(one.state == "ready" for one in served.values()) and not self._waits(change):
                self._make(change)

    def _waits(self, change: _Change) -> bool:
        """New versions take their shares in the order in which they came; nobody waits for one that may never be ready."""
        before = [other.adopted for other in self._changes[: self._changes.index(change)] if other.model == change.model]
        return bool(change.adopted) and any(key and not self._roster.models[key].in_doubt for key in before)

    def _make(self, change: _Change) -> None:
        self._changes.remove(change)
        there = self._roster.models
        route = change.route or self._traffic.adoption(change.adopted, change.share, there)
        if route is None:
            return
        try:
            if change.back:
                self._traffic.back(change.model, route, there)
            else:
                self._traffic.put(change.model, route, there, change.settled)
        except OSError as error:
            why = f"the change cannot be written down ({error.strerror}); see that HEARTH_HOME has room and can be written"
            self._deny(change, Unavailable(why))
            return
        self._changes = [other for other in self._changes if other.adopted not in change.settled]
        said = ", ".join(f"{key} ({share:.0%})" for key, share in route.shares.items())
        log.info("%s is answered by %s", change.model, said)
        self._house.publish()
        if change.asker:
            self._house.tell(Changed(change.asker[1]), to=change.asker[0])
        # Most requests that found the old versions are answered by then. A later change begins anew.
        for key in versions_of(change.model, self._roster.models):
            self.leaving.forget(key)
        self._retire_later(change.model)

    def _retire_later(self, model: str) -> None:
        if timer := self._retiring.pop(model, None):
            timer.cancel()
        self._retiring[model] = asyncio.get_running_loop().call_later(self._grace_s, self._retire, model)

    def _refuse(self, change: _Change, error: HearthError) -> None:
        self._changes.remove(change)
        self._deny(change, error)

    def _deny(self, change: _Change, error: HearthError) -> None:
        if change.asker:
            self._house.tell(Changed(change.asker[1], error.code, error.detail), to=change.asker[0])
        else:
            log.error("%s keeps its traffic: %s", change.model, error.detail)
        self._retire_later(change.model)  # it may have loaded some

    def _retire(self, model: str) -> None:
        """Free what nobody needs: the processes of versions without traffic, and the folders of old ones that jobs made."""
        needed = self._needed(model)
        versions = sorted(versions_of(model, self._roster.models), key=number_of)
        for key in versions:
            if key not in needed and self._roster.models[key].wanted:
                self.leaving.ask(key, partial(self._free, key, self._roster.models[key].loads))  # some take longer than the grace
        for key in versions[: -self._kept]:
            served = self._roster.models[key]
            folder, loaded = served.card.folder, served.wanted or self._loading.lives(key)  # wanted: its files may just be coming
            if key not in needed and not loaded and (folder / "tuned.json").exists():
                log.info("%s is removed: the newest %d versions are kept", key, self._kept)
                del self._roster.models[key]
                self._house.spawn(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True), f"removing {folder}")
                self._house.publish()

    def _needed(self, model: str) -> set[str]:
        busy = {key for key in versions_of(model, self._roster.models) if self.waits_for(key)}
        return self._traffic.needed(model, self._roster.models) | busy

    def removed(self, key: str) -> None:
        """It is gone; what has its number since, or gets it later, is another version."""
        self._traffic.lose(key)
        if successor := self._successors.pop(key, None):
            self.adopt(*successor)

    def waits_for(self, key: str) -> bool:
        """Whether a change of traffic under way is about this version."""
        return any(key in change.keys or key == change.adopted for change in self._changes)

    def _free(self, key: str, loads: int) -> None:
        """Its last request is answered, unless it was loaded anew since."""
        served = self._roster.models.get(key)
        if served and served.wanted and served.loads == loads and key not in self._needed(name_of(key)):
            self._loading.unload(key)
            self._loading.settle(key)  # there may be no process whose end would do so


def _lost(served: Served, change: _Change) -> bool:
    """This version will not answer, or nobody knows whether it will and somebody waits to hear."""
    return not served.wanted or (served.in_doubt if change.asker else served.gone)
