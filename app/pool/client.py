"""How a frontend reaches the workers: `Pool` over local sockets. Keeps every unanswered sample, and its promise."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import count
from typing import Literal

import numpy as np

from app.card import Card
from app.errors import Poisoned, WorkerLost, from_code
from app.keys import Key
from app.logs import log
from app.patience import patiently
from app.pool.admission import PLACE
from app.pool.base import Answer, Model, Renewed
from app.pool.cargo import Cargo
from app.pool.directory import Directory, describe
from app.pool.flights import SUSPECT, Flight, Flights
from app.pool.leaving import Held
from app.pool.probe import Probe
from app.settings import Settings
from app.tasks import card_samples
from app.tasks.base import Codec, Sample
from app.wire.messages import Back, Cancel, Change, Changed, Died, Done, Failed, Hello, Leave, Message, Run, Switch, Table, Tune
from app.wire.sockets import Endpoint, address

_AGAIN_S = 1.0  # after which a worker that could not be reached is tried again
_ID_BITS = 40  # a frontend's number stands above its counter: ids are unique among frontends


class Client:
    """One frontend's pool. `start` connects; the rest is `pool/base.py: Pool`."""

    def __init__(self, settings: Settings, folder: str, number: int) -> None:
        self._folder = folder
        self._name = f"frontend.{number}"
        self._flights: Flights[Cargo] = Flights(first_id=number << _ID_BITS)
        self._directory = Directory(settings)
        self._links: dict[str, Endpoint] = {}
        self._load: Counter[str] = Counter()  # worker → open flights
        self._table: Table | None = None
        self._changes: dict[int, asyncio.Future[None]] = {}
        self._change_ids = count(1)
        self._probe = Probe(self._directory, self._try)
        self._told = asyncio.Event()
        self.on_keys: Callable[[str | None], None] = lambda _: None  # hears who may ask

    def start(self) -> None:
        """Connect to the supervisor, who answers with the table. Needs the running loop."""
        self._control = Endpoint.connect(address(self._folder, "supervisor"), self._name)
        self._held = Held(self._directory.holds, self._control.send)
        self._control.attach(self._on_control)
        self._control.send(Hello(role="frontend", pid=os.getpid()))

    async def told(self) -> None:
        """Returns when the table has come: before that, no model is known."""
        await self._told.wait()

    def close(self) -> None:
        """Close the sockets."""
        for link in (*self._links.values(), self._control):
            link.close()

    # What the web asks (pool/base.py)

    def models(self, *, memory: bool = True) -> list[Model]:
        """Every card with its present state, by name."""
        return [self._describe(name, memory=memory) for name in sorted(known.card.name for known in self._directory)]

    def versions(self, name: str, *, memory: bool = True) -> list[Model]:
        """The versions of a model, the most asked one first."""
        return [self._describe(key, memory=memory) for key in self._directory.keys(name)]

    def _describe(self, key: str, *, memory: bool = True) -> Model:
        return describe(self._directory[key], self._directory.route(key), memory=memory)

    def find(self, name: str | None, task: str, *, exactly: bool = False, again: bool = False) -> tuple[Model, Codec]:
        """The model that answers, and its codec. Raises UnknownModel, Conflict, Loading."""
        known, codec = self._directory.find(name, task, exactly=exactly, again=again)
        if known.model is None:
            known.model = self._describe(known.card.name, memory=False)
        return known.model, codec

    def admit(self, model: str, inputs: int, deadline: float, key: Key | None = None) -> AbstractContextManager[None]:
        """Hold room for `inputs` in this frontend's share of the model's queue. Raises TooBusy, RateLimited, TooLarge."""
        return self._directory.admit(model, inputs, deadline, key)

    async def submit(
        self, model: str, sample: Sample, *, outputs: tuple[str, ...], deadline: float, codec: Codec | None, before: int = 0
    ) -> Answer:
        """Run one sample. Whatever happens, exactly one answer or error."""
        return await self._submit(model, Cargo(sample, outputs, deadline, codec, before), None)

    def shadow(self, model: str) -> str:
        """The version that runs along with version `model`."""
        route = self._directory.route(model)
        return route.shadow if model in route.shares else ""

    async def change(self, name: str, verb: Literal["load", "unload"]) -> Model:
        """Ask the supervisor, wait until the model stands still: the versions with traffic to load it, all to unload it."""
        first, *others = self._directory.keys(name)
        shares = self._directory.route(first).shares
        keys = [first, *(key for key in others if verb == "unload" or key in shares)]
        await asyncio.gather(*(self._ask(lambda id, key=key: Change(id, key, verb)) for key in keys))  # type: ignore[misc]
        return self._describe(first)

    async def switch(self, name: str, shares: Mapping[str, float], shadow: str) -> None:
        """Ask the supervisor, wait until it is done."""
        await self._ask(lambda id: Switch(id, name, dict(shares), shadow))

    async def back(self, name: str) -> None:
        """The same."""
        await self._ask(lambda id: Back(id, name))

    async def _ask(self, message: Callable[[int], Message]) -> None:
        id = next(self._change_ids)
        self._changes[id] = asyncio.get_running_loop().create_future()
        self._control.send(message(id))
        try:
            await self._changes[id]
        finally:
            del self._changes[id]

    def tune(self) -> None:
        """A job was written into the database: somebody shall look after it."""
        self._control.send(Tune())

    async def proven(self, within_s: float) -> dict[str, str]:
        """Each preloaded model: "" after a real forward in each of its workers, else what is wrong."""
        if self._table is None:
            return {"hearth": "the supervisor has not yet said which models there are"}
        if not (chosen := self._directory.relied_on()):
            return {"hearth": "no model is loaded; POST /models/NAME/load loads one"}
        verdicts = await asyncio.gather(*(self._probe.prove(known, within_s) for known in chosen))
        return dict(zip((known.card.name for known in chosen), verdicts, strict=True))

    # Inside

    async def _try(self, card: Card, worker: str, deadline: float) -> None:
        if worker not in self._links:  # else another one would answer for it
            raise Renewed(f"{worker} cannot be reached")
        _, codec = await patiently(lambda: self._directory.find(card.name, card.task, exactly=True), deadline)
        samples = await patiently(lambda: card_samples(card, codec), deadline)
        if not samples:
            raise WorkerLost(f"{card.name} cannot be proven: put a sample.* beside its card")
        await self._submit(card.name, Cargo(samples[0], (), deadline, codec, past=None), worker)

    async def _submit(self, model: str, cargo: Cargo, worker: str | None) -> Answer:
        queue, place = self._directory[model].queue, PLACE.get()  # it may be gone since the request was let in
        flight = self._flights.open(model, cargo)
        if past := cargo.past:
            flight.blamed, flight.before = min(past.inherited, SUSPECT), past.before  # it may have been another of its samples
            past.sent(flight.id)
        counts = (queue,) if place is None else (queue, place)
        for one in counts:
            one.sent += 1
        late = asyncio.get_running_loop().call_later(cargo.deadline - time.monotonic(), cargo.late)
        try:
            self._launch(flight, worker)
            return await cargo.future
        finally:
            for one in counts:
                one.sent -= 1
            late.cancel()
            if flight.worker is not None and flight.worker in self._load:
                self._load[flight.worker] -= 1
            if self._flights.close(flight.id) and flight.worker in self._links:
                self._links[flight.worker].send(Cancel(flight.id))
            del flight, cargo, late  # they hold an error, which holds this frame: all would wait for the garbage collector

    def _launch(self, flight: Flight[Cargo], worker: str | None = None) -> None:
        """Send a sample to the least loaded ready worker; without one it waits for the next table."""
        known = self._directory[flight.model]
        ready = [w.name for w in known.entry.workers if w.state == "ready" and w.name in self._links]
        if worker in ready:
            ready = [worker]
        if not ready:
            if known.ended:
                self._fail(flight, known.not_ready())
            return
        if known.outdates(flight.cargo.codec):
            self._fail(flight, Renewed(f"{flight.model} was loaded anew while this was read; send it again", retry_after_s=1.0))
            return
        flight.worker = chosen = min(ready, key=lambda name: self._load[name])
        self._load[chosen] += 1
        run = Run(flight.id, (cargo := flight.cargo).sample.cost, cargo.deadline, cargo.outputs, flight.alone, cargo.before)
        self._links[chosen].send(run, cargo.sample.arrays)

    def _fail(self, flight: Flight[Cargo], error: Exception) -> None:
        self._flights.close(flight.id)
        flight.cargo.fail(error)

    # What the others say

    def _on_control(self, _: str, message: Message, __: dict[str, np.ndarray]) -> None:
        if isinstance(message, Table):
            self._on_table(message)
        elif isinstance(message, Died):
            self._on_died(message)
        elif isinstance(message, Leave):
            self._held.asked(message)
        elif isinstance(message, Changed) and (future := self._changes.get(message.id)) and not future.done():  # who asked waits
            if message.code:
                future.set_exception(from_code(message.code, message.detail))
            else:
                future.set_result(None)

    def _on_table(self, table: Table) -> None:
        self._table = table
        self._told.set()
        self._directory.update(table)
        self.on_keys(table.keys)
        self._connect(table)
        for flight in self._flights.aboard(None):
            self._launch(flight)

    def _connect(self, table: Table) -> None:
        """A link to every worker that is ready."""
        for name in [worker.name for entry in table.models.values() for worker in entry.workers if worker.state == "ready"]:
            if name in self._links and not self._links[name].gone:
                continue
            try:
                link = Endpoint.connect(address(self._folder, name), self._name)
            except OSError as error:
                log.error("%s cannot be reached for now: %s", name, error)
                asyncio.get_running_loop().call_later(_AGAIN_S, self._connect_again)
                continue
            if old := self._links.get(name):
                old.drain()  # what it still said counts
                old.close()
            link.attach(lambda _, message, arrays, of=name: self._on_answer(of, message, arrays))  # type: ignore[misc]
            self._links[name] = link

    def _connect_again(self) -> None:
        if self._table is not None:
            self._on_table(self._table)

    def _on_died(self, died: Died) -> None:
        if link := self._links.pop(died.worker, None):
            link.drain()  # an answer may have come before the news of the death, and wait to be read
            link.close()
        self._load.pop(died.worker, None)
        self._probe.forget(died.worker)
        again, poisoned = self._flights.died(
            died.worker, died.running, stalled=died.stalled, killed=died.killed, sole=lambda flight: flight.cargo.sole
        )
        for flight in poisoned:
            if flight.worker in self._links:  # it was sent twice, by this process and one before it
                self._links[flight.worker].send(Cancel(flight.id))
            self._fail(flight, Poisoned("this input, run alone, ended the process that ran it; do not send it again"))
        for flight in self._flights:
            if flight.blamed and (past := flight.cargo.past):
                past.blame(flight.blamed)
        for flight in again:
            self._launch(flight)

    def _on_answer(self, worker: str, message: Message, arrays: dict[str, np.ndarray]) -> None:
        if not isinstance(message, Done | Failed):
            return
        if isinstance(message, Done):  # an error proves nothing: every forward may fail
            self._probe.answered(worker, message.run_s)
        flight = self._flights.close(message.id)
        if flight is None or flight.cargo.future.done():
            return
        if isinstance(message, Done):
            self._directory[flight.model].queue.answered(message.pace_s, message.batch)
            answer = Answer(output=arrays, queue_s=message.queue_s, run_s=message.run_s, batch=message.batch)
            flight.cargo.future.set_result(answer)
        else:
            flight.cargo.fail(from_code(message.code, message.detail))
