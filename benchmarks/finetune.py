"""The whole chain over HTTP on real data: upload, watch, ask the model that it became.

    python benchmarks/finetune.py [photos|mnist|digits-speech] [--data PATH] [--spec JSON] [options]

photos         ResNet-18 with ImageNet's weights (`--weights`), five classes, each of `--methods`. Aims: 97 % in four minutes.
mnist          The 784-128-10 network of `digits` from random weights on the idx files. Aim: 97.5 %.
digits-speech  `spoken-digits` from random weights by its own recipe, recordings 0 to 4 of each speaker in `val`; `--spec
               '{"start": "weights", "epochs": 2}'` goes on from what is shipped. `hearth tune` comes to 5.0 %.

`--spec` is laid over the spec that is sent. Told: the metric by the job, the same metric of what the served model answers to what
was kept out, seconds from upload to the first answer of the new model, seconds of training, peak memory.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from common import options, report, running, table
from PIL import Image

_ROOT = Path(__file__).resolve().parents[1]
_SHARED = _ROOT.parent / "shared" / "data"
_CARD = """\
task   = "image-classification"
source = { kind = "file", path = "weights.safetensors", architecture = "torchvision:resnet18" }
input  = { resize = 256, crop = 224, interpolation = "bilinear", mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }
limits = { max_batch = 32, max_cost = 32, max_queue = 512 }
[about]
licence = "see where the weights come from"
"""
_WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
_TOGETHER = 64  # files in one request

Kept = list[tuple[str, bytes]]
"""What was kept out: the truth and the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """One data set and the jobs that are made of it."""

    archive: bytes
    kept: Kept
    specs: dict[str, dict[str, Any]]
    """Name of a row → spec."""
    score: Callable[[httpx.Client, str, Kept], float]
    """Of the served model."""
    lay: Callable[[Path], None] = field(default=lambda home: None)
    """Puts the base model into a home."""


def packed(files: Iterator[tuple[str, bytes]]) -> bytes:
    """A zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, raw in files:
            archive.writestr(name, raw)
    return out.getvalue()


def of_folder(folder: Path) -> bytes:
    """The folder as a zip."""
    return packed((str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.rglob("*.*")))


def photos(wanted: Any) -> Chain:
    data = Path(wanted.data or _SHARED / "finetune_photos")

    def lay(home: Path) -> None:
        folder = home / "models" / "base"
        folder.mkdir(parents=True)
        (folder / "card.toml").write_text(_CARD)
        (folder / "weights.safetensors").symlink_to(Path(wanted.weights).resolve())

    return Chain(
        archive=of_folder(data),
        kept=[(path.parent.name, path.read_bytes()) for path in sorted((data / "val").rglob("*.*"))],
        specs={method: {"base": "base", "method": method} for method in wanted.methods.split(",")},
        score=accuracy,
        lay=lay,
    )


def mnist(wanted: Any) -> Chain:
    data = Path(wanted.data or _SHARED / "mnist")
    pictures = np.frombuffer(gzip.decompress((data / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = gzip.decompress((data / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    return Chain(
        archive=of_folder(data),
        kept=[(str(label), _png(one)) for label, one in zip(labels, pictures.reshape(-1, 28, 28), strict=True)],
        specs={"fresh": {"base": "digits", "start": "fresh"}},
        score=accuracy,
    )


def digits_speech(wanted: Any) -> Chain:
    name = re.compile(r"(\d)_[a-z]+_(\d+)\.wav$")
    with zipfile.ZipFile(Path(wanted.data or _SHARED / "speech" / "fsdd.zip")) as archive:
        recordings = {path: archive.read(path) for path in sorted(archive.namelist()) if name.search(path)}
    rows, kept = io.StringIO(), []
    writer = csv.writer(rows)
    writer.writerow(["file", "transcript", "split"])
    for path, raw in recordings.items():
        digit, index = (int(part) for part in name.search(path).groups())  # type: ignore[union-attr]
        writer.writerow([path, _WORDS[digit], "val" if index < 5 else "train"])
        if index < 5:
            kept.append((_WORDS[digit], raw))
    recipe = tomllib.loads((_ROOT / "models" / "spoken-digits" / "tune.toml").read_text())
    spec = {"base": "spoken-digits", **({} if json.loads(wanted.spec).get("start") == "weights" else {"start": "fresh"} | recipe)}
    files = packed(iter([("transcripts.csv", rows.getvalue().encode()), *recordings.items()]))
    return Chain(archive=files, kept=kept, specs={spec.get("start", "weights"): spec}, score=word_error_rate)


CHAINS: dict[str, Callable[[Any], Chain]] = {"photos": photos, "mnist": mnist, "digits-speech": digits_speech}


def accuracy(http: httpx.Client, model: str, kept: Kept) -> float:
    """Share of the pictures whose best label is the right one."""
    answers = _asked(http, "/predict/image", {"model": model, "top_k": 1}, kept)
    return sum(one["predictions"][0]["label"] == label for one, (label, _) in zip(answers, kept, strict=True)) / len(kept)


def word_error_rate(http: httpx.Client, model: str, kept: Kept) -> float:
    """Of recordings of one word each: nothing heard, or another, is one error; each word more another one."""
    errors = 0
    for one, (said, _) in zip(_asked(http, "/transcribe", {"model": model}, kept), kept, strict=True):
        heard = one["text"].split()
        errors += max(1, len(heard)) - (said in heard)
    return errors / len(kept)


def _asked(http: httpx.Client, path: str, query: dict[str, Any], kept: Kept) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    for start in range(0, len(kept), _TOGETHER):
        files = [("file", (str(number), raw)) for number, (_, raw) in enumerate(kept[start : start + _TOGETHER])]
        answers += http.post(path, params=query, files=files).raise_for_status().json()["results"]
    return answers


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def one(http: httpx.Client, spec: dict[str, Any], chain: Chain) -> dict[str, Any]:
    """Submit, follow, ask."""
    began = time.monotonic()
    parts = {"spec": (None, json.dumps(spec)), "dataset": ("data.zip", chain.archive)}
    answer = http.post("/finetune", files=parts)
    if answer.status_code != 202:
        raise SystemExit(answer.text)
    id, memory = answer.json()["id"], 0
    with http.stream("GET", f"/finetune/{id}/events", timeout=900) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                memory = max(memory, data.get("memory_bytes", 0))
                if data.get("metrics"):
                    print(
                        "epoch {epoch}, step {step} of {steps}: {metrics}, {samples_per_s:.1f} samples/s".format(**data),
                        flush=True,
                    )
    job = http.get(f"/finetune/{id}").json()
    if job["state"] != "succeeded":
        raise SystemExit(f"the job {job['state']}: {job['reason']}")
    path = "/transcribe" if chain.score is word_error_rate else "/predict/image"
    while http.post(path, params={"model": spec["name"]}, content=chain.kept[0][1]).status_code != 200:
        time.sleep(0.05)
    live_s = time.monotonic() - began
    metric, value = next(iter(job["result"]["metrics"].items()))
    return {
        metric: value,
        f"served_{metric}": chain.score(http, spec["name"], chain.kept),
        "live_s": live_s,
        "training_s": job["result"]["seconds"],
        "memory_mib": memory / 2**20,
        "steps": job["progress"]["step"],
        "samples_per_s": job["progress"]["samples_per_s"],
        "spec": job["result"]["spec"],
    }


def main() -> None:
    what = sys.argv.pop(1) if sys.argv[1:] and not sys.argv[1].startswith("-") else "photos"
    wanted = options(
        __doc__,
        data="",
        weights=str(_SHARED / "weights" / "noncommercial" / "resnet18_imagenet1k_pq.safetensors"),
        methods="head,full",
        spec="{}",
    )
    if what not in CHAINS:
        raise SystemExit(f"{what!r} is unknown; one of: {', '.join(CHAINS)}")
    chain = CHAINS[what](wanted)
    specs = {row: spec | json.loads(wanted.spec) | {"name": f"{what}-{row}"} for row, spec in chain.specs.items()}
    with tempfile.TemporaryDirectory(prefix="hearth-bench-") as folder:
        chain.lay(Path(folder))
        models = ",".join({spec["base"] for spec in specs.values()})
        settings = {"HOME": folder, "PORT": "0", "MODELS": models, "COMPUTE": "eager", "PRECISION": "fp32"}
        environment = {f"HEARTH_{name}": value for name, value in settings.items()} | {"COLUMNS": "200"}
        command = [sys.executable, "-P", "-m", "app", "serve"]
        environment["PYTHONPATH"] = str(_ROOT)
        with (
            running(command, r"Hearth is at (http://\S+)", environment) as (url, _),
            httpx.Client(base_url=url, timeout=60) as http,
        ):
            found = {row: one(http, spec, chain) for row, spec in specs.items()}
    tell(found)
    report("finetune", data=what, kept_out=len(chain.kept), methods=found)


def tell(found: dict[str, dict[str, Any]]) -> None:
    """The table."""
    metric = next(iter(next(iter(found.values()))))
    keys: Sequence[str] = ("live_s", "training_s", "steps", "samples_per_s", "memory_mib")
    rows = [
        [row, f"{100 * one[metric]:.2f} %", f"{100 * one[f'served_{metric}']:.2f} %", *(f"{one[key]:.0f}" for key in keys)]
        for row, one in found.items()
    ]
    heads = [
        "job",
        f"{metric.replace('_', ' ')}",
        "as served",
        "upload to live, s",
        "training, s",
        "steps",
        "samples/s",
        "peak, MiB",
    ]
    table(heads, rows)


if __name__ == "__main__":
    main()
