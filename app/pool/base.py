"""The waist between the web and whatever runs the models: five calls and three values. Knows no sockets and no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from msgspec import Struct

from app.card import Card
from app.errors import Loading
from app.keys import Key
from app.tasks.base import Codec, Output, Sample

State = Literal["unloaded", "loading", "ready", "failed"]


class Answer(Struct, frozen=True, kw_only=True):
    """What one sample got back, and where its time went."""

    output: Output
    queue_s: float
    run_s: float
    batch: int
    """How many samples ran with it, itself included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One worker process of a model, as `GET /models` shows it."""

    worker: str
    pid: int
    device: str
    state: State
    memory_bytes: int
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A card and what has become of it."""

    card: Card
    state: State
    why: str = ""
    """Why it failed, or what it waits for."""
    default: bool = False
    """Its task's endpoint uses it when no model is named (depends on the profile)."""
    replicas: tuple[Replica, ...] = ()
    share: float = 1.0
    """Of the traffic of its name."""
    shadow: bool = False
    """It runs along unheard."""
    meta: dict[str, Any] = field(default_factory=dict)
    """What the worker's program told of the module: labels, dimensions, max_tokens, parameters …"""


class Renewed(Loading):
    """The model was loaded anew, perhaps by another card or from other files, since this was decoded for it: who still has the
    input begins again.
    """


class Coming(Loading):
    """Version `model` has no worker yet: who is let in waits for one."""

    def __init__(self, model: str) -> None:
        super().__init__(f"{model} is not ready yet")
        self.model = model


class Past(Protocol):
    """What of a request outlives the process that answers it: the next one goes on from there."""

    lives: int
    """How many processes ended while they had it, or its beginning: it has paid its part of a rate, if that was looked at."""
    let_in: bool
    """Whether one of them found room for it: it is not refused for want of that."""
    inherited: int
    """How often one of its samples was blamed in the processes before (`flights.Flight`)."""
    before: int
    """The id of its first sample in the process before; 0: there was none."""
    several: bool
    """Whether it has more than one input, or more than one of its samples was sent in this process."""

    def admitted(self, inputs: int) -> None:
        """There is room for it; it has so many."""
        ...

    def sent(self, id: int) -> None:
        """A sample of it is under way."""
        ...

    def again(self) -> None:
        """It begins anew in this process, as it would in the next one: what was sent of it is what came before."""
        ...

    def blame(self, times: int) -> None:
        """One of its samples was blamed for a death, so often by now."""
        ...


PAST: ContextVar[Past | None] = ContextVar("past", default=None)
"""Of the request that this task answers."""


def is_inherited(past: Past | None) -> bool:
    """Whether a process before this one had the request, or its beginning."""
    return past is not None and past.lives > 0


def is_let_in(past: Past | None) -> bool:
    """Whether a process before this one let the request in."""
    return past is not None and past.let_in


class Pool(Protocol):
    """How a frontend reaches the workers."""

    def models(self, *, memory: bool = True) -> list[Model]:
        """Every card of the catalogue with its present state, by name. What its workers' memory is takes milliseconds to tell."""
        ...

    def versions(self, name: str, *, memory: bool = True) -> list[Model]:
        """The versions of a model, the most asked one first; of `name@2` that one alone. Raises UnknownModel."""
        ...

    def find(self, name: str | None, task: str, *, exactly: bool = False, again: bool = False) -> tuple[Model, Codec]:
        """A model `name` of `task` (None: the task's default) and its codec: of its versions the one whose turn it is,
        or `exactly` the one whose key `name` is; `again` for a request that is let in and begins again.

        Raises UnknownModel (naming the known ones), Conflict (another task), Loading (not ready, saying how to load it); Coming,
        where who is let in is to find it a little later.
        """
        ...

    def admit(self, model: str, inputs: int, deadline: float, key: Key | None = None) -> AbstractContextManager[None]:
        """Room in the queue while the context lasts; TooBusy (with `retry_after_s`) if there is none, or no answer could come
        before the `deadline`; RateLimited or TooLarge if the caller's `key` has no room in its share. Enter before decoding.
        """
        ...

    async def submit(
        self, model: str, sample: Sample, *, outputs: tuple[str, ...], deadline: float, codec: Codec | None, before: int = 0
    ) -> Answer:
        """Run one sample and return the named outputs. `deadline` is on time.monotonic()'s clock; `before`: samples of the
        same request that come before it, for which it lets others go first; `codec`: what decoded it, where that matters.

        Raises TooBusy, Deadline, ModelFailed, Poisoned, OutOfMemory, WorkerLost; Renewed, where the model has another codec by
        the time when it would run. Cancelling the task drops the sample.
        """
        ...

    def shadow(self, model: str) -> str:
        """The version that runs along with version `model`; empty: none."""
        ...

    async def change(self, name: str, verb: Literal["load", "unload"]) -> Model:
        """Load or unload a model; returns when it is `ready`, `failed` or `unloaded`. Idempotent. Raises UnknownModel."""
        ...

    async def switch(self, name: str, shares: Mapping[str, float], shadow: str) -> None:
        """Share a model's traffic anew, by version; returns when it is done, all at once. Raises UnknownModel, Invalid for a
        version that there is not, Conflict for one that cannot be loaded.
        """
        ...

    async def back(self, name: str) -> None:
        """Share a model's traffic as it was before the last change. Raises UnknownModel, Conflict where nothing was before."""
        ...

    def tune(self) -> None:
        """A job was written into the database: somebody shall look after it."""
        ...

    async def proven(self, within_s: float) -> dict[str, str]:
        """Preloaded models → "" if each of its workers has answered a real forward in the last half second or does so within
        `within_s` (or a few of its longest batches, if that is longer: it may be busy), else what is wrong. Truth for
        `/health/ready`. Where all preloaded models were unloaded: those that are ready.
        """
        ...
