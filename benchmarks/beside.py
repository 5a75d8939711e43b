"""What a job costs those who ask: latency at half load, alone and while a model is tuned, by turns in one run.

    python benchmarks/beside.py [--model all-minilm-l6-v2] [--turns 3] [--seconds 10] [--patience 600] [--check]

The job tunes all weights of `cifar-resnet` on made pictures; between its turns it is cancelled, then resumed. With `--check`, a
median p99 above the bar of bars.py, a request that failed, or a job that did not move ends the program with 1.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable
from statistics import median

import bars
import httpx
import load
import numpy as np
from common import options, report, serving, settled, table
from inputs import ask
from PIL import Image

from app.catalogue import read_card, shipped_models

BASE = "cifar-resnet"
TEXT = "the harbour pilot brought the ship home again"
_REST_S = 2.0  # a cancelled job's process ends within a step

Turn = tuple[float, float, int]
"""p50 and p99 in ms, requests that failed."""


def pictures(count: int = 200) -> bytes:
    """Two classes of noise, dark and bright, as a zip."""
    chance, out = np.random.default_rng(0), io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number in range(count):
            label, low = (("dark", 0), ("bright", 128))[number % 2]
            raw = io.BytesIO()
            Image.fromarray(chance.integers(low, low + 128, (32, 32, 3), np.uint8)).save(raw, "PNG")
            archive.writestr(f"{label}/{number}.png", raw.getvalue())
    return out.getvalue()


class Job:
    """One that would go on for hours, in steps short enough to be seen in a turn: it gets a tenth of the time, or less."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._id = ""

    def step(self) -> int:
        """How far it has come."""
        return int(self._http.get(f"/finetune/{self._id}").raise_for_status().json()["progress"].get("step", 0))

    def go_on(self, patience_s: float) -> None:
        """Returns when it has done steps since."""
        if self._id:
            self._http.post(f"/finetune/{self._id}/resume").raise_for_status()
        else:
            spec = {"name": "beside", "base": BASE, "method": "full", "epochs": 10_000, "batch_size": 4}
            parts = {"spec": (None, json.dumps(spec)), "dataset": ("data.zip", pictures())}
            self._id = self._http.post("/finetune", files=parts).raise_for_status().json()["id"]
        before, until = self.step(), time.monotonic() + patience_s
        while self.step() < before + 3:
            if time.monotonic() > until:
                raise SystemExit(f"the job does not move: {self._http.get(f'/finetune/{self._id}').text[:1000]}")
            time.sleep(0.2)

    def pause(self) -> None:
        """Returns when its process is gone."""
        self._http.post(f"/finetune/{self._id}/cancel").raise_for_status()
        time.sleep(_REST_S)


def by_turns(measure: Callable[[], Turn], job: Job, turns: int, patience_s: float) -> dict[str, list[Turn]]:
    """`alone` and `beside` the job, so many of each; and how far the job came meanwhile must not be nothing."""
    found: dict[str, list[Turn]] = {"alone": [], "beside": []}
    for _ in range(turns):
        found["alone"].append(measure())
        job.go_on(patience_s)
        before = job.step()
        found["beside"].append(measure())
        if job.step() == before:
            raise SystemExit("the job did no step while requests came: nothing was measured")
        job.pause()
    return found


def figures(found: dict[str, list[Turn]]) -> dict[str, float]:
    """By the names of the bars."""
    alone, beside = (median(p99 for _, p99, _ in found[which]) for which in ("alone", "beside"))
    failed = sum(failed for turns in found.values() for _, _, failed in turns)
    return {"p99 beside a job over alone": beside / alone, "requests failed": failed}


def main() -> None:
    wanted = options(__doc__, model="all-minilm-l6-v2", turns=3, seconds=10.0, patience=600.0, check=False)
    with serving(models=f"{wanted.model},{BASE}") as url, httpx.Client(base_url=url, timeout=60) as http:
        for name in (wanted.model, BASE):
            settled(url, name, wanted.patience)
        raw = ask(read_card(shipped_models() / wanted.model), TEXT).raw(url)
        capacity = load.run(url, [raw], clients=64, seconds=wanted.seconds).rate()

        def measure() -> Turn:
            answers = load.run(url, [raw], rate=capacity / 2, seconds=wanted.seconds)
            p50, p99 = answers.ms(0.5, 0.99)
            return p50, p99, answers.failed()

        found = by_turns(measure, Job(http), wanted.turns, wanted.patience)
    told = figures(found)
    rows = [[which, f"{p50:.1f}", f"{p99:.1f}", str(failed)] for which, turns in found.items() for p50, p99, failed in turns]
    table(["half load", "p50, ms", "p99, ms", "failed"], rows)
    print(f"p99 beside a job: {told['p99 beside a job over alone']:.2f} of that alone, at {capacity / 2:.0f} requests/s")
    report("beside", model=wanted.model, capacity=capacity, turns=found, p99_ratio=told["p99 beside a job over alone"])
    if wanted.check:
        bars.hold(told, bars.BESIDE)


if __name__ == "__main__":
    main()
