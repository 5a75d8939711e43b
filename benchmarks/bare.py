"""A model without a server: the same codec, program, threads and compute as the worker's, in this process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from app.card import Card
from app.catalogue import Catalogue
from app.engine import device as devices
from app.engine.compute import Compute, compiled
from app.engine.loader import load
from app.engine.modules import as_chosen
from app.engine.runner import Runner
from app.errors import HearthError
from app.settings import Settings
from app.tasks import TASKS, make_codec, resolve
from app.tasks.base import Arrays, Files
from app.weights import locate


def find(name: str, home: Path) -> tuple[Card, Files]:
    """A card of the catalogue and its files."""
    card = Catalogue.read(home).named(name)
    files = locate(card, Settings.from_environment({"home": home}))
    if files is None:
        raise SystemExit(f"{name}: its weights are not on this machine")
    return card, files


class Bare:
    """Decode and run, and nothing else. `told` is what `GET /models/{name}` said of the compute that the worker has."""

    def __init__(self, name: str, home: Path, told: dict[str, Any]) -> None:
        self.card, self.files = find(name, home)
        settings = Settings.from_environment({"home": home})
        self.device = told["workers"][0]["device"]
        devices.keep_memory()
        devices.settle(self.device, settings.thread_count())
        module = load(self.card, self.files)
        self.program = resolve(TASKS[self.card.task].program)(self.card, self.files)
        self.codec = make_codec(self.card, self.files, self.program.describe(module))
        self.compute = self._compute(module, home, told["meta"]["compute"])
        devices.leave_cores_to(self.compute.engine, told["meta"]["compute"].get("threads", 0))
        self._runner = Runner(self.compute, self.program, lambda *_: None)

    def _compute(self, module: torch.nn.Module, home: Path, choice: dict[str, Any]) -> Compute:
        """As the worker makes it: `app/engine/worker.py`, `app/engine/search.py`."""
        engine, precision, judged = choice["engine"], choice["precision"], bool(choice.get("close_calls"))
        if self.device.startswith("cuda"):
            from app.engine.graphs import graphed

            return graphed(as_chosen(self.program, module, precision, self.device, judged=judged), self.card.limits.max_batch)
        if engine == "eager":
            return as_chosen(self.program, module, precision, self.device, judged=judged)
        names = list(self.program.networks(module))
        threads = choice.get("threads") or torch.get_num_threads()
        return compiled(engine, precision, _folder(self.card.name, home, choice), names, threads, classifies=judged)

    def decode(self, item: bytes | str) -> list[Arrays]:
        """As the frontend does."""
        return [sample.arrays for sample in self.codec.decode(item).samples]

    def run(self, samples: Sequence[Arrays]) -> None:
        """One batch. Raises what a sample's answer would be if it failed."""
        for result in self._runner.run(samples):
            if isinstance(result, HearthError):
                raise result

    def rate(self, items: Sequence[bytes | str], batch: int, seconds: float) -> float:
        """Items per second of a loop that decodes `batch` items and runs them, over and over, one thing after the other."""
        done, spent, start = 0, 0.0, time.perf_counter()
        while spent < seconds:
            turn = [items[(done + number) % len(items)] for number in range(batch)]
            self.run([sample for item in turn for sample in self.decode(item)])
            done, spent = done + batch, time.perf_counter() - start
        return done / spent


def _folder(name: str, home: Path, choice: dict[str, Any]) -> Path:
    """Where the worker's compiled networks lie: the choice beside them is the one that the server tells."""
    made = {path: json.loads(path.read_bytes()) for path in (home / "compute").glob(f"{name}-*/choice.json")}
    fitting = [path for path, known in made.items() if {name: value for name, value in known.items() if value} == choice]
    if not fitting:
        raise SystemExit(f"{name}: the server computes with {choice['engine']}, and {home}/compute has no such choice")
    return max(fitting, key=os.path.getmtime).parent
