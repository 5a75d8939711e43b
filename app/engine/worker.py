"""The worker process: load, ready, then receive → batch → run → reply until told to stop. One loop.

A thread stands by to take in what comes while the device runs, so the next batch gathers by itself; the loop takes it in
one gulp between two batches. On CUDA it launches a second batch, if one waits, before it lands the first. The supervisor sees
the loop's pulse in the black box.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from app import metrics
from app.card import Card
from app.engine import device as devices
from app.engine.batcher import Batcher, Waiting, yields_s
from app.engine.budget import Budget
from app.engine.kept import kept
from app.engine.order import Choice, Order, Spec
from app.engine.runner import Pending, Runner
from app.errors import HearthError, ModelFailed
from app.logs import log
from app.process import outlive_parent
from app.tasks import TASKS, card_samples, make_codec, resolve
from app.tasks.base import Arrays, Program
from app.wire.blackbox import BlackBox
from app.wire.messages import Cancel, Done, Failed, Hello, LoadFailed, Ready, Run, Stop
from app.wire.sockets import Endpoint, wait
from app.wire.standby import Standby

if TYPE_CHECKING:
    from app.engine.search import Search

_PULSE_S = 0.5  # how often an idle worker shows that it lives
_REST_S = 3.0  # idle for so long: what malloc kept goes back to the kernel
_HALVED = 8  # times as long as a batch of eight takes, or less, it may be busy: it is halved until the one that fails is alone
_LINGER_S = 0.1  # a local message takes well under a millisecond


@dataclass(slots=True)
class _Held:
    """A sample in this worker, and who waits for it."""

    peer: str
    run: Run
    arrays: Arrays
    arrived: float


@dataclass(slots=True)
class _Launched:
    """A batch that the device has, and when it began: at its launch, or when the one before it landed."""

    batch: list[Waiting]
    began: float
    pending: Pending


class Worker:
    """One model on one device."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._card = Card.model_validate_json(spec.card)
        self._search: Search | None = None
        self._held: dict[int, _Held] = {}
        self._launched: deque[_Launched] = deque()
        self._stopping = False
        self._worked = 0.0  # when memory was last used; 0: what was free then is given back
        self._last_word = 0.0
        self._box = BlackBox(Path(spec.blackbox))
        self._frontends = Endpoint.listen(spec.address)
        self._supervisor = Endpoint.connect(spec.control, spec.name)
        self._standby = Standby([self._frontends, self._supervisor])
        self._ran_s = self._landed = 0.0  # how long the last batch ran, and when it landed
        self._seen = metrics.for_worker(self._card.name, spec.name)

    def serve(self) -> None:
        """Load the model and answer until `Stop` comes and nothing waits."""
        self._supervisor.send(Hello(role="worker", pid=os.getpid()))
        self._supervisor.flush()
        outlive_parent()
        try:
            self._load()
        except Exception as error:  # noqa: BLE001  whatever it is, the supervisor must hear why
            log.exception("%s could not be loaded", self._card.name)
            why = error.detail if isinstance(error, HearthError) else f"{type(error).__name__}: {error}"
            self._supervisor.send(LoadFailed(why[:2000]))
        else:
            while not self._finished():
                self._turn()
        self._frontends.close()
        self._supervisor.close()

    def _finished(self) -> bool:
        """Told to stop, and what frontends had sent before they heard of it has had time to come and was answered."""
        over = self._stopping and not self._held and not self._frontends.crowded
        return over and time.monotonic() - self._last_word > _LINGER_S

    def _load(self) -> None:
        """What an earlier start compiled; else eager at once, and what computes faster is looked for beside the service."""
        devices.keep_memory()
        spec, on_cpu = self._spec, self._spec.device == "cpu"
        if on_cpu:  # CUDA reserves far more than it uses
            devices.bound_memory(self._card.limits.memory_mb)
        self._threads = devices.thread_count(spec.device, spec.threads)
        files = {name: Path(path) for name, path in spec.files.items()}
        program: Program = resolve(TASKS[self._card.task].program)(self._card, files)
        limits = self._card.limits
        self._batcher = Batcher(
            max_batch=limits.max_batch,
            max_cost=limits.max_cost,
            max_wait_s=limits.max_wait_ms / 1000,
            padded=program.padded,
            longest_s=limits.stall_s / _HALVED,
        )

        def samples(meta: dict[str, Any]) -> list[Arrays]:
            return [sample.arrays for sample in card_samples(self._card, make_codec(self._card, files, meta))]

        searching = on_cpu and (spec.compute, spec.precision) != ("eager", "fp32")
        if searching and (known := kept(self._order(), program, samples)):
            self._runner = Runner(known.compute, program, self._seen.stage)
            self._meta = known.meta
            self._computes_by(known.choice)
        else:  # with torch: 500 MB and two seconds, without which a worker does that has compiled networks
            from app.engine.eagerly import begin
            from app.engine.search import Search

            begun = begin(self._card, files, program, samples, spec.device, spec.threads, self._precision(), self._seen.stage)
            self._runner, self._meta = begun.runner, begun.meta
            self._computes_by(begun.choice)
            if searching and begun.samples:
                self._search = Search(self._order(), program, begun.samples)
        devices.give_back()
        self._budget = Budget(self._runner.lane, self._inputs if on_cpu else lambda: 0)
        self._supervisor.send(Ready(self._meta))
        self._box.beat(time.monotonic(), 0)

    def _computes_by(self, choice: Choice) -> None:
        """Tell it. Without a reason the search for it still runs."""
        devices.leave_cores_to(choice.engine, choice.threads)
        self._meta["compute"] = {name: value for name, value in msgspec.to_builtins(choice).items() if value}

    def _order(self) -> Order:
        spec = self._spec
        return Order(spec.card, spec.files, self._threads, self._precision(), spec.compute, spec.home)

    def _precision(self) -> str:
        return self._card.serving.precision if self._spec.precision == "auto" else self._spec.precision

    def _exchange(self) -> None:
        """Take what the search found, between two batches."""
        if self._search is None or not self._search.done():
            return
        search, self._search = self._search, None
        if search.found is None:
            self._meta["compute"] = self._meta["compute"] | {"why": search.why}
        else:
            compute, choice = search.found
            if compute is not None:
                self._runner.use(compute)
                devices.give_back()  # of eager's weights and batches
                self._budget = Budget(self._runner.lane, self._inputs)
            self._computes_by(choice)
        self._worked = time.monotonic()  # eager's weights may now be free
        self._supervisor.send(Ready(self._meta))

    def _turn(self) -> None:
        """Take in what came, drop what is late, launch one batch; land the oldest if no other may or can be launched before."""
        self._exchange()
        pause_s = 0.0 if self._launched else self._batcher.wait_s(time.monotonic())
        if pause_s != 0.0:
            longest_s = _LINGER_S if self._stopping else _PULSE_S
            wait([self._frontends, self._supervisor], longest_s if pause_s is None else min(pause_s, longest_s))
        now = time.monotonic()
        self._receive(now)
        due = self._batcher.wait_s(now) == 0.0 or self._stopping
        if due and len(self._batcher) > 1:
            self._batcher.hold_to(self._budget.room(now))
        batch = self._batcher.next_batch() if due else []
        alone = any(sample.alone for sample in batch)  # a suspect shares the device with nobody: a death must blame it alone
        while alone and self._launched:
            self._land()
        if batch:
            self._launch(batch)
        if self._launched and (alone or not batch or len(self._launched) == self._runner.depth):
            self._land()
        elif self._worked and not self._launched and now - self._worked > _REST_S:
            devices.give_back()
            self._worked = 0.0
        self._note()
        self._seen.waiting(len(self._batcher))

    def _receive(self, now: float) -> None:
        for _, message, _ in self._supervisor.receive():
            self._stopping |= isinstance(message, Stop)
            self._last_word = now
        for peer, message, arrays in self._frontends.receive():
            self._last_word = now
            if isinstance(message, Run):
                self._accept(peer, message, arrays, now)
            elif isinstance(message, Cancel) and self._batcher.cancel(message.id):
                del self._held[message.id]
        for late in self._batcher.expire(now):
            self._fail(late.id, "deadline", "the deadline passed while the sample waited; allow more time")
        self._frontends.flush()

    def _accept(self, peer: str, run: Run, arrays: Arrays, now: float) -> None:
        self._held[run.id] = _Held(peer, run, arrays, now)
        yields = yields_s(run.before, self._card.limits.max_batch, run.deadline - now)
        if not self._batcher.add(Waiting(run.id, run.cost, now, run.deadline, run.alone, yields)):
            limit = self._card.limits.max_cost
            self._fail(run.id, "too_large", f"the input costs {run.cost:g}, the limit is {limit:g}; send a smaller one")

    def _note(self, coming: Sequence[Waiting] = ()) -> None:
        """Into the black box: all that the device has or is about to get, since the oldest of it began."""
        now = time.monotonic()
        ids = [sample.id for launched in self._launched for sample in launched.batch] + [sample.id for sample in coming]
        if ids:
            self._box.start(self._launched[0].began if self._launched else now, len(self._batcher), ids)
        else:
            self._box.beat(now, len(self._batcher))

    def _inputs(self) -> int:
        """Bytes of those that are here."""
        return sum(array.nbytes for held in self._held.values() for array in held.arrays.values())

    def _launch(self, batch: list[Waiting]) -> None:
        began = time.monotonic()
        self._note(coming=batch)
        self._budget.begins(self._batcher.cost(batch))
        with self._standby.during(self._ran_s):
            pending = self._runner.launch([self._held[sample.id].arrays for sample in batch])
        self._launched.append(_Launched(batch, began, pending))

    def _land(self) -> None:
        """Wait for the oldest batch and answer."""
        launched = self._launched.popleft()
        batch, began = launched.batch, launched.began
        with self._standby.during(self._ran_s):
            results = self._runner.land(launched.pending)
        now = self._worked = time.monotonic()
        self._ran_s = now - began
        if not self._runner.no_room_for and not any(isinstance(result, HearthError) for result in results):
            self._batcher.took(batch, self._ran_s)
            self._budget.took(self._batcher.cost(batch))
        busy_since = max(self._landed, min(sample.arrived for sample in batch))
        self._landed, pace_s = now, (now - busy_since) / len(batch)
        if self._launched:
            self._launched[0].began = now
        if self._runner.no_room_for > 1:
            self._batcher.too_much(self._batcher.cost(batch) * self._runner.no_room_for / len(batch))
        for sample, result in zip(batch, results, strict=True):
            if isinstance(result, HearthError):
                self._fail(sample.id, result.code, result.detail)
            else:
                self._answer(result, Done(sample.id, began - sample.arrived, now - began, len(batch), pace_s))
        self._frontends.flush()
        self._seen.batch(len(batch), sum(sample.cost for sample in batch), [began - sample.arrived for sample in batch])
        self._last_word = time.monotonic()  # what came while the device ran is still to be read

    def _answer(self, output: Arrays, done: Done) -> None:
        held = self._held.pop(done.id)
        missing = [name for name in held.run.outputs if name not in output]
        if missing:
            error = ModelFailed(f"this model gives no {missing[0]!r}, only {', '.join(sorted(output))}")
            self._frontends.send(Failed(done.id, error.code, error.detail), to=held.peer)
            return
        self._frontends.send(done, {name: output[name] for name in held.run.outputs}, to=held.peer)

    def _fail(self, id: int, code: str, detail: str) -> None:
        held = self._held.pop(id)
        self._frontends.send(Failed(id, code, detail), to=held.peer)


def main(spec: dict[str, Any]) -> None:
    """Entry of the forked process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Worker(msgspec.convert(spec, Spec)).serve()
