"""The supervisor's hand for cards: takes in what was added, changed or removed in the folders of models while the server runs.

A loaded model is left alone: what changed in its card holds when it is next loaded, because samples that were decoded by the old
card are under way. Whoever wants it without a gap adds the next version (`photos@2`) and gives it the traffic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from app.card import Card
from app.catalogue import Catalogue
from app.logs import log
from app.pool.house import House
from app.pool.loading import Loading
from app.pool.roster import Roster, Served
from app.pool.switching import Switching

_FAREWELL_S = 1.0


class Renewal:
    """What came of the last look at the cards."""

    def __init__(self, roster: Roster, loading: Loading, switching: Switching, house: House) -> None:
        self._roster = roster
        self._loading = loading
        self._switching = switching
        self._house = house

    def take(self, catalogue: Catalogue, shares: Mapping[str, float]) -> dict[str, Any]:
        """Make the roster what the catalogue is; told is what that changed. `shares`: of its versions that are new, and go into
        service now; others wait.

        A card that cannot be read changes nothing of what it was before.
        """
        for folder, why in catalogue.broken.items():
            log.error("the card in %s changes nothing: %s", folder, why)
        there = self._roster.models
        broken = {Path(folder).name for folder in catalogue.broken}
        added = [name for name in catalogue.cards if name not in there and ("@" not in name or name in shares)]
        changed = [name for name, card in catalogue.cards.items() if name in there and self._changes(there[name], card)]
        gone = [name for name in there if name not in catalogue.cards and name not in broken]
        for name in added:
            self._add(catalogue.cards[name], shares)
        for name in gone:
            there[name].gone = True
            self.settled(name)
        self._house.publish()
        log.info("cards: %s new, %s changed, %s removed, %s broken", *map(_listed, (added, changed, gone, sorted(broken))))
        return {"added": added, "changed": changed, "removed": gone, "broken": sorted(broken)}

    def settled(self, model: str) -> None:
        """It stands still. If its card is gone, so is it, a little later: whoever unloaded it is shown what it was."""
        if (served := self._roster.models.get(model)) and served.gone:
            asyncio.get_running_loop().call_later(_FAREWELL_S, self._remove, model)

    def _remove(self, model: str) -> None:
        served = self._roster.models.get(model)
        needed = served is None or served.wanted or self._loading.lives(model) or self._switching.waits_for(model)
        if served and served.gone and not needed:
            del self._roster.models[model]
            self._switching.removed(model)
            self._house.publish()

    def _changes(self, served: Served, card: Card) -> bool:
        served.gone = False
        if card == (served.renewed or served.card):
            return False
        served.renewed = card
        if not served.wanted and not self._loading.lives(card.name):
            served.renew()
        return True

    def _add(self, card: Card, shares: Mapping[str, float]) -> None:
        if "@" in card.name:
            self._switching.adopt(card, shares[card.name])
            return
        taken = any(other.default and other.card.task == card.task for other in self._roster.models.values())
        default = card.default and not taken
        self._roster.models[card.name] = Served(card, default, preload=False)  # the server is ready without it, as it was before
        if card.serving.resident or (default and card.serving.preload):
            self._loading.load(card.name)


def _listed(names: Collection[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "0"
