"""Which versions of a model answer, and how it was before: the record that outlives the server. One small file, no sockets."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from app.catalogue import name_of, number_of, versions_of
from app.errors import Conflict, Invalid
from app.wire.messages import Route

_REMEMBERED = 10  # changes of one model that can be taken back


class _Record(msgspec.Struct):
    routes: dict[str, list[Route]] = {}
    """By model, the present one last."""
    adopted: list[str] = []
    """Versions that had their share, of a job or a person, so that no restart gives it to them again."""


class Traffic:
    """The routes of all models, kept in `path`."""

    def __init__(self, path: Path) -> None:
        """Raises Invalid if what is written there cannot be read."""
        self._path = path
        self._record = _Record()
        self._begun: dict[str, Route] = {}
        if path.exists():
            try:
                self._record = msgspec.json.decode(path.read_bytes(), type=_Record)
            except msgspec.DecodeError as error:
                remedy = "mend or remove it; without it the newest version answers, and each that a job made gets its share again"
                raise Invalid(f"{path} is damaged ({error}); {remedy}") from error

    def forget(self, keys: Collection[str]) -> None:
        """Keep what is told of `keys` alone: a version that later gets the number of one that is gone is another one."""
        there = set(keys)
        self._begun = {model: route for model, route in self._begun.items() if route.shares.keys() <= there}
        routes = {
            model: [_without_lost_shadow(route, there) for route in history if route.shares.keys() <= there]
            for model, history in self._record.routes.items()
        }
        record = _Record(
            {model: kept for model, kept in routes.items() if kept}, [key for key in self._record.adopted if key in there]
        )
        if record != self._record:
            self._record = record
            with suppress(OSError):  # what cannot be written down is forgotten again at the next start
                self._keep(record)

    def lose(self, key: str) -> None:
        """Forget what is told of this version."""
        routes = [*self._begun.values(), *(route for history in self._record.routes.values() for route in history)]
        known = {other for route in routes for other in (*route.shares, route.shadow)} | set(self._record.adopted)
        self.forget(known - {key})

    def begin(self, keys: Collection[str], new: Collection[str]) -> dict[str, Route]:
        """The routes at a start. Where nothing is written down the newest version answers, but for those that are `new` and wait
        for their share; of new ones alone the oldest, until the others take theirs. What answers now does so until somebody
        changes it, whatever comes back that is written down.
        """
        for model in {name_of(key) for key in keys if "@" in key}:
            versions = sorted(versions_of(model, keys), key=number_of)
            usual = [key for key in versions if key not in new] or versions[:1]
            self._begun[model] = self.present(model, keys) or Route({usual[-1]: 1.0})
        return self.routes(keys)

    def routes(self, keys: Collection[str]) -> dict[str, Route]:
        """The present route of every model among `keys` that has versions; of one that has none yet the newest version."""
        models = {name_of(key) for key in keys if "@" in key}
        newest = {model: max(versions_of(model, keys), key=number_of) for model in models}
        return {model: self.present(model, keys) or Route({key: 1.0}) for model, key in newest.items()}

    def present(self, model: str, keys: Collection[str]) -> Route | None:
        """What answers: what began, or else was written down last; None if no version ever had a share."""
        begun = [self._begun[model]] if model in self._begun else []
        for route in [*begun, *reversed(self._record.routes.get(model, []))]:
            if route.shares.keys() <= set(keys):
                return _without_lost_shadow(route, keys)
        known = [key for key in versions_of(model, keys) if "@" not in key or key in self._record.adopted]
        return Route({max(known, key=number_of): 1.0}) if known else None

    def wanted(self, model: str, shares: Mapping[str, float], shadow: str, keys: Collection[str]) -> Route:
        """A route from what a caller says, by version. Raises Invalid naming the versions that there are."""
        by_number = {number_of(key): key for key in versions_of(model, keys)}
        for version in [*shares, *([shadow] if shadow else [])]:
            if not version.isdecimal() or int(version) not in by_number:
                there = ", ".join(str(number) for number in sorted(by_number))
                raise Invalid(f"{model} has no version {version!r}; there are: {there}")
        total = sum(shares.values())
        if not total:
            raise Invalid("shares: they are all 0; give at least one version a share of the traffic")
        given = {by_number[int(version)]: share / total for version, share in shares.items() if share}
        key = by_number[int(shadow)] if shadow else ""
        if key in given:
            raise Invalid(f"shadow: version {shadow} answers already; a shadow is a version without a share")
        return Route(given, key)

    def adoption(self, key: str, share: float, keys: Collection[str]) -> Route | None:
        """The route that gives a new version its share of what older ones have; None if it had it before. Several may come
        in any order: none takes anything from a newer one.
        """
        if key in self._record.adopted:
            return None
        before = self.present(name_of(key), keys)
        if before is None:
            return Route({key: 1.0})
        if key in before.shares:  # it answers already
            return before
        older = {other: part for other, part in before.shares.items() if number_of(other) < number_of(key)}
        shares = before.shares | {other: part * (1 - share) for other, part in older.items()} | {key: sum(older.values()) * share}
        shadow = before.shadow if before.shadow != key and (share < 1 or not older) else ""
        return Route({other: part for other, part in shares.items() if part}, shadow)

    def put(self, model: str, route: Route, keys: Collection[str], settled: Collection[str] = ()) -> None:
        """The route is the present one now, and `settled` have the share that they get. On the disk when this returns; raises
        OSError, and all is as before.
        """
        history = list(self._record.routes.get(model, []))
        if (before := self.present(model, keys)) and history[-1:] != [before]:
            history.append(before)
        if not history or history[-1] != route:
            history.append(route)
        versions = self._record.adopted + [key for key in settled if key not in self._record.adopted]
        self._keep(_Record(self._record.routes | {model: history[-_REMEMBERED:]}, versions))
        self._begun.pop(model, None)

    def before(self, model: str, keys: Collection[str]) -> Route:
        """The route before the present one. Raises Conflict if there is none."""
        present = self.present(model, keys)
        for route in reversed(self._record.routes.get(model, [])[:-1]):
            if route.shares.keys() <= set(keys) and (back := _without_lost_shadow(route, keys)) != present:
                return back
        raise Conflict(f"{model} has no earlier state of its traffic to go back to")

    def back(self, model: str, route: Route, keys: Collection[str]) -> None:
        """`route`, which `before` gave, is the present one again, and what came after it is forgotten. Raises as `put` does."""
        history = list(self._record.routes[model])
        while len(history) > 1 and _without_lost_shadow(history[-1], keys) != route:
            history.pop()
        self._keep(_Record(self._record.routes | {model: history}, self._record.adopted))
        self._begun.pop(model, None)

    def needed(self, model: str, keys: Collection[str]) -> set[str]:
        """The versions that are to stay loaded: those of the present route, and of the one that a rollback would bring back."""
        routes = [*self.routes(versions_of(model, keys)).values(), *self._record.routes.get(model, [])[-2:-1]]
        return {key for route in routes for key in [*route.shares, route.shadow] if key}

    def _keep(self, record: _Record) -> None:
        """What cannot be written down does not happen."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f".{self._path.name}.part")
        with beside.open("wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        self._record = record


def _without_lost_shadow(route: Route, keys: Collection[str]) -> Route:
    return route if not route.shadow or route.shadow in keys else Route(route.shares)
