"""What a frontend knows of the models: the last table of the supervisor, and the codecs made from it. No sockets."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.card import Card
from app.catalogue import number_of, versions_of
from app.errors import Conflict, HearthError, Loading, UnknownModel, WorkerLost
from app.keys import Key
from app.pool.admission import PLACE, Admission, Place
from app.pool.base import PAST, Coming, Model, Replica, is_let_in
from app.process import resident_bytes
from app.settings import Settings
from app.tasks import make_codec
from app.tasks.base import Codec
from app.wire.messages import Entry, Route, Table

_TOLD = 100  # characters of a name that nobody has


@dataclass(slots=True)
class Known:
    """One model as the last table told it."""

    entry: Entry
    card: Card
    codec: Codec | None = None
    made: tuple[dict[str, str], dict[str, Any]] | None = None
    """Of which files and meta the codec was."""
    queue: Admission = field(init=False)
    model: Model | None = None
    """`describe` without memory, until the table changes."""

    def __post_init__(self) -> None:
        self.queue = Admission(self.card.name)

    def able(self, *, let_in: bool) -> bool:
        """It was ready. While it is replaced, samples wait for the new worker, unless nobody knows whether that will be; who was
        let in before that, or before it was unloaded, waits all the same.
        """
        entry = self.entry
        refuses = entry.state == "unloaded" or (entry.state == "loading" and entry.why)
        return bool(entry.meta) and (let_in or not refuses)

    @property
    def ended(self) -> bool:
        """It has no workers, and none are to come."""
        return self.entry.state in ("unloaded", "failed") and not self.entry.workers and not self.entry.leaving

    def outdates(self, codec: Codec | None) -> bool:
        """Whether what this codec decoded means something else to the workers there are. None: it does not matter."""
        return codec is not None and codec is not self.codec

    def not_ready(self) -> HearthError:
        """Why it cannot answer now, and what to do."""
        name, entry = self.card.name, self.entry
        if entry.state == "failed":
            return WorkerLost(f"{name} failed: {entry.why}; mend that, then POST /models/{name}/load")
        if entry.state == "loading":
            return Loading(f"{name} is loading{entry.why and f' ({entry.why})'}; come back in a moment", retry_after_s=1.0)
        return Loading(f"{name} is not loaded; POST /models/{name}/load first")


class Directory:
    """The models by name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[str, Known] = {}
        self._defaults: dict[str, Known] = {}  # by task, as far as they were asked for since the last table
        self._routes: dict[str, Route] = {}
        self._frontends = 1

    def __getitem__(self, name: str) -> Known:
        """The version `name`. Raises UnknownModel naming the known models."""
        try:
            return self._known[name]
        except KeyError:
            there = ", ".join(sorted({known.card.model for known in self}))
            raise UnknownModel(f"no model is called {name[:_TOLD]!r}; there are: {there}") from None

    def __iter__(self) -> Iterator[Known]:
        return iter(self._known.values())

    def relied_on(self) -> list[Known]:
        """Whom readiness is about: the preloaded models; where all of them were unloaded, those that are ready."""
        return [known for known in self if known.entry.preload] or [known for known in self if known.entry.state == "ready"]

    def update(self, table: Table) -> None:
        """Take in a new table; a codec whose card, files or meta changed is made anew when it is next needed."""
        self._defaults.clear()
        self._routes, self._frontends = table.routes, table.frontends
        for gone in self._known.keys() - table.models.keys():
            del self._known[gone]
        for name, entry in table.models.items():
            known = self._known.get(name)
            if known is None or known.entry.card != entry.card:
                self._known[name] = Known(entry, Card.model_validate_json(entry.card))
                if known:
                    self._known[name].queue = known.queue  # who was let in is in it
                continue
            known.entry, known.model = entry, None
            if known.made != _for_codec(entry):  # each time that it is loaded: what its files hold may have changed
                known.codec = known.made = None

    def find(self, name: str | None, task: str, *, exactly: bool = False, again: bool = False) -> tuple[Known, Codec]:
        """The model that answers, and its codec: `exactly` the version whose key `name` is, or the one whose turn it is; `again`
        for a request that is let in here, as one may have been in the process before this one.

        Raises UnknownModel, Conflict, Loading; Coming, where who is let in is to find it a little later.
        """
        let_in = again or is_let_in(PAST.get())
        known = self[name] if exactly and name else self._turn(self._default(task).card.model if name is None else name)
        if known.card.task != task:
            raise Conflict(f"{known.card.name!r} is for {known.card.task}, not for {task}; {self._instead(task)}")
        if not known.able(let_in=let_in):
            raise Coming(known.card.name) if let_in and not known.ended else known.not_ready()
        if known.codec is None:
            files = {key: Path(path) for key, path in known.entry.files.items()}
            known.codec = make_codec(known.card, files, known.entry.meta, self._settings)
            known.made = _for_codec(known.entry)
        return known, known.codec

    @contextmanager
    def admit(self, name: str, inputs: int, deadline: float, key: Key | None = None) -> Iterator[None]:
        """Hold room for `inputs` in this frontend's share of the version's queue, and in the caller's share of that. Raises
        TooBusy, RateLimited, TooLarge.
        """
        known = self[name]
        queue = known.queue
        room = max(1, known.card.limits.max_queue // self._frontends)
        workers = max(1, len(known.entry.workers)) / self._frontends
        now, past = time.monotonic(), PAST.get()
        place: Place | None = None
        allowed_s = deadline - now
        if is_let_in(past):
            place = queue.place_of(key) if key and key.share < 1 else None
        else:
            if key and key.share < 1:
                place = queue.place(key, inputs, room=room, allowed_s=allowed_s, workers=workers)
            queue.check(inputs, room=room, allowed_s=allowed_s, workers=workers, now=now)
        if past:
            past.admitted(inputs)
        queue.held += inputs
        try:
            if place is None or key is None:
                yield
            else:
                with _placed(queue, key, place, inputs):
                    yield
        finally:
            queue.held -= inputs

    def holds(self, key: str) -> bool:
        """Whether there are requests for this version that were admitted and are not answered."""
        return key in self._known and self._known[key].queue.held > 0

    def keys(self, name: str) -> list[str]:
        """The versions of model `name`, the most asked one first. Raises UnknownModel."""
        if name not in self._routes:
            return [self[_plain(name, self._known)].card.name]
        shares = self._routes[name].shares
        return sorted(versions_of(name, self._known), key=lambda key: (-shares.get(key, 0.0), -number_of(key)))

    def route(self, key: str) -> Route:
        """How the traffic of this version's model is shared."""
        return self._routes.get(self[key].card.model) or Route({key: 1.0})

    def _turn(self, name: str) -> Known:
        """The version that answers now. One that cannot is passed over while another can."""
        route = self._routes.get(name)
        if route is None:
            return self[_plain(name, self._known)]
        let_in = is_let_in(PAST.get())
        able = {key: share for key, share in route.shares.items() if self[key].able(let_in=let_in)}
        coming = {key: share for key, share in route.shares.items() if not self[key].ended} if let_in else {}
        shares = able or coming or route.shares
        (key,) = shares if len(shares) == 1 else random.choices(list(shares), list(shares.values()))  # noqa: S311  a draw among versions
        return self[key]

    def _default(self, task: str) -> Known:
        if known := self._defaults.get(task):
            return known
        for known in self:
            if known.entry.default and known.card.task == task:
                self._defaults[task] = known
                return known
        if not self._known:
            raise Loading("the server is starting; come back in a moment", retry_after_s=1.0)
        raise UnknownModel(f"no model is the default for {task}; {self._instead(task)}")

    def _instead(self, task: str) -> str:
        """What a caller can do who did not name a model for this task."""
        fitting = sorted(known.card.name for known in self if known.card.task == task)
        if fitting:
            return f"name one of these as model: {', '.join(fitting)}"
        return "there is none yet: POST /finetune makes one of your data, or put a card into $HEARTH_HOME/models"


@contextmanager
def _placed(queue: Admission, key: Key, place: Place, inputs: int) -> Iterator[None]:
    queue.places[key.id] = place
    place.held += inputs
    token = PLACE.set(place)
    try:
        yield
    finally:
        PLACE.reset(token)
        place.held -= inputs
        if not place.held:
            del queue.places[key.id]


def _plain(name: str, known: Collection[str]) -> str:
    """A model without versions is its own first one."""
    model, _, version = name.partition("@")
    return model if version == "1" and name not in known else name


def _for_codec(entry: Entry) -> tuple[dict[str, str], dict[str, Any]]:
    """Files and meta. What computes is no codec's business, and changes once while the model serves."""
    return entry.files, {name: value for name, value in entry.meta.items() if name != "compute"}


def describe(known: Known, route: Route, *, memory: bool = True) -> Model:
    """As the web shows it; `route` is its model's. Reading memory costs milliseconds: leave it out where nobody looks."""
    entry = known.entry
    replicas = tuple(
        Replica(
            worker=worker.name,
            pid=worker.pid,
            device=worker.device,
            state=worker.state,
            memory_bytes=resident_bytes(worker.pid) if memory else 0,
            restarts=worker.restarts,
        )
        for worker in entry.workers
    )
    return Model(
        card=known.card,
        state=entry.state,
        why=entry.why,
        default=entry.default,
        replicas=replicas,
        share=route.shares.get(known.card.name, 0.0),
        shadow=known.card.name == route.shadow,
        meta=entry.meta,
    )
