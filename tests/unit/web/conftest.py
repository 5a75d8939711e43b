"""A pool without processes: toy codecs, answers at once, and levers for what can go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.card import Card
from app.errors import Conflict, HearthError, Loading, UnknownModel
from app.pool.base import Answer, Coming, Model, Renewed, Replica
from app.settings import Settings
from app.tasks.base import Decoded, Sample
from app.web.server import make_app


class ToyCodec:
    """Every input is its length, `more` to it; `bad…` cannot be read."""

    more = 0

    def light(self, item: Any) -> bool:
        return item[:4] != b"long"

    def decode(self, item: Any, **options: Any) -> Decoded:
        if item[:3] in (b"bad", "bad"):
            from app.errors import BadInput

            raise BadInput("the picture is truncated; send the whole file")
        samples = tuple(
            Sample(arrays={"x": np.array([len(item) + self.more])}, cost=1.0) for _ in range(2 if item[:4] == b"long" else 1)
        )
        return Decoded(samples=samples, info={"tokens": len(item)})

    def interpret(self, decoded: Decoded, outputs: list[Any], **options: Any) -> dict[str, Any]:
        value = float(outputs[0]["x"][0])
        if "top_k" in options:
            return {"predictions": [{"label": "len", "index": 0, "score": value}]}
        if "words" in options:
            return {"text": f"{len(outputs)} windows", "duration_s": value}
        return {"embedding": np.array([value, 0.5], np.float32)}


class ToyPool:
    """`error` is raised by submit; `held` makes it wait for `go_on`; `dropped` counts cancelled samples; `coming` how often who is
    let in does not find it yet.
    """

    def __init__(self) -> None:
        self.error: HearthError | None = None
        self.refusal: HearthError | None = None
        self.held = self.unloaded = False
        self.coming, self.let_in, self.inside = 0, False, 0
        self.codec: ToyCodec | None = None
        self.dropped = 0
        self.submitted = asyncio.Event()
        self.go_on = asyncio.Event()
        self.verdicts = {"toy": ""}
        self.state = "ready"
        self.woken = False
        self.shadowed = ""
        self.told_memory: list[bool] = []

    def _model(self, task: str = "image-classification") -> Model:
        card = Card(name="toy", folder=Path("/x"), task=task, source={"kind": "file"}, about={"licence": "x"})
        replica = Replica(worker="toy.1", pid=1, device="cpu", state="ready", memory_bytes=5, restarts=0)
        return Model(card=card, state=self.state, default=True, replicas=(replica,), meta={"classes": 1})

    def models(self, *, memory: bool = True) -> list[Model]:
        self.told_memory.append(memory)
        return [self._model()]

    def versions(self, name: str, *, memory: bool = True) -> list[Model]:
        self.told_memory.append(memory)
        if name != "toy":
            raise UnknownModel(f"no model is called {name!r}; there are: toy")
        return [self._model()]

    def shadow(self, model: str) -> str:
        return self.shadowed

    async def switch(self, name: str, shares: dict[str, float], shadow: str) -> None:
        self.switched = (name, shares, shadow)

    async def back(self, name: str) -> None:
        raise Conflict(f"{name} has no earlier state of its traffic to go back to")

    def find(self, name: str | None, task: str, *, exactly: bool = False, again: bool = False) -> tuple[Model, ToyCodec]:
        if self.unloaded and not again:
            raise Loading("unloaded")
        if (again or self.let_in) and self.coming:
            self.coming -= 1
            raise Coming("toy")
        if name not in (None, "toy"):
            raise UnknownModel(f"no model is called {name!r}; there are: toy")
        self.codec = self.codec or ToyCodec()
        return self._model(task), self.codec

    @contextmanager
    def admit(self, model: str, inputs: int, deadline: float, key: Any = None) -> Iterator[None]:
        if self.refusal:
            raise self.refusal
        self.inside += 1
        yield
        self.inside -= 1

    async def submit(self, model: str, sample: Sample, *, codec: ToyCodec, **_: Any) -> Answer:
        self.submitted.set()
        try:
            while self.held:
                await self.go_on.wait()
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        if self.error:
            raise self.error
        if codec is not self.codec:
            raise Renewed("it was loaded anew")
        return Answer(output=sample.arrays, queue_s=0.001, run_s=0.002, batch=1)

    async def change(self, name: str, verb: str) -> Model:
        if name != "toy":
            raise Conflict("x")
        self.state = "unloaded" if verb == "unload" else "ready"
        return self._model()

    def tune(self) -> None:
        self.woken = True

    async def proven(self, within_s: float) -> dict[str, str]:
        return self.verdicts


@pytest.fixture
def pool() -> ToyPool:
    return ToyPool()


@pytest.fixture
def app(pool: ToyPool) -> Any:
    return make_app(pool, Settings(max_body_mb=0.25, max_inputs=4))


@pytest.fixture
async def client(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://localhost"
    ) as client:
        yield client
