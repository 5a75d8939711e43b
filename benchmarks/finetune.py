"""The whole chain over HTTP on real data: upload, watch, ask the model that it became.

    python benchmarks/finetune.py [photos] [--data FOLDER] [--weights FILE.safetensors] [--methods head,full]
    python benchmarks/finetune.py sst2 [--data FOLDER] [--methods full] [--seed 0]
    python benchmarks/finetune.py stsb [--data FOLDER] [--methods full] [--seed 0]
    python benchmarks/finetune.py mnist [--data FOLDER] [--seed 0]
    python benchmarks/finetune.py digits-speech [--data FSDD.zip] [--methods recipe] [--spec '{"epochs": 2}'] [--seed 0]

Photos: ResNet-18 with ImageNet's weights, five classes, `train` and `val` folders as they come. Aim: 97 % on `val` in 4 minutes.
SST-2: sentiment from all-MiniLM-L6-v2, weights chosen by `dev`, on which others publish too. Aim: 88 % in 10 minutes of training.
STS-B: sentence embeddings from the same, weights chosen by `dev`; `test` is only measured, before and after. Aim: no lower after.
MNIST: the 784-128-10 network of `digits` from random weights, chosen by the test set. Aim: 97.5 %.
Spoken digits: recordings 0 to 4 of each speaker in `val`; by the recipe of `spoken-digits` from random weights (`recipe`), or
on from its weights with what the server chooses (`full`, `head`). `hearth tune` comes to 5.0 % word error rate.
Told for each method: what the job measured, what the served model's answers to the same measure, seconds from upload to the first
answer of the new model, seconds of training, peak memory. Only what `--spec` names, and the seed, is changed.
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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from common import options, report, running, table
from PIL import Image

_ROOT = Path(__file__).resolve().parents[1]
_SHARED = _ROOT.parent / "shared" / "data"
MINILM = "all-minilm-l6-v2"
WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
_CARD = """\
task   = "image-classification"
source = { kind = "file", path = "weights.safetensors", architecture = "torchvision:resnet18" }
input  = { resize = 256, crop = 224, interpolation = "bilinear", mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }
limits = { max_batch = 32, max_cost = 32, max_queue = 512 }
[about]
licence = "see where the weights come from"
"""


def packed(folder: Path) -> bytes:
    """The folder as a zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, path.relative_to(folder))
    return out.getvalue()


def lay(home: Path, weights: Path) -> None:
    """A card for the base model."""
    folder = home / "models" / "base"
    folder.mkdir(parents=True)
    (folder / "card.toml").write_text(_CARD)
    (folder / "weights.safetensors").symlink_to(weights.resolve())


def tuned(http: httpx.Client, spec: dict[str, Any], archive: bytes) -> dict[str, Any]:
    """Submit and follow to the end: the job, its peak memory, and when the new model was live."""
    began, memory, cpu_s = time.monotonic(), 0, 0.0
    parts = {"spec": (None, json.dumps(spec)), "dataset": ("data.zip", archive)}
    id = http.post("/finetune", files=parts).raise_for_status().json()["id"]
    with http.stream("GET", f"/finetune/{id}/events", timeout=900) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                told = json.loads(line.removeprefix("data: "))
                memory, cpu_s = max(memory, told.get("memory_bytes", 0)), max(cpu_s, busy(id))
                if told.get("metrics"):
                    print(f"step {told['step']} of {told['steps']}: {told['metrics']}", file=sys.stderr, flush=True)
    job = http.get(f"/finetune/{id}").json()
    if job["state"] != "succeeded":
        raise SystemExit(f"the job {job['state']}: {job['reason']}")
    while http.get(f"/models/{spec['name']}").json().get("state") != "ready":
        time.sleep(0.05)
    return {
        "live_s": time.monotonic() - began,
        "training_s": job["result"]["seconds"],
        "cpu_s": cpu_s,
        "memory_mib": memory / 2**20,
        "steps": job["progress"]["step"],
        "samples_per_s": job["progress"]["samples_per_s"],
        "by_job": next(iter(job["result"]["metrics"].values())),
        "warnings": job["report"]["warnings"],
        "spec": job["result"]["spec"],
    }


def busy(id: str) -> float:
    """Seconds of CPU time that the job's process has had: what its cores would have taken together without others on them."""
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == f"hearth tune {id}"[:15]:  # the kernel keeps so many letters
            with suppress(psutil.Error):
                return sum(process.cpu_times()[:2])
    return 0.0


def photos(http: httpx.Client, data: Path, method: str, more: dict[str, Any]) -> dict[str, Any]:
    """Submit, follow, ask."""
    val = [(path.parent.name, path.read_bytes()) for path in sorted((data / "val").rglob("*.*"))]
    spec = {"name": f"photos-{method}", "base": "base", "method": method, **more}
    found = tuned(http, spec, packed(data))
    served = right_of(http, spec["name"], val)
    return found | {"accuracy": found["by_job"], "served_accuracy": served, "as_served": served}


def right_of(http: httpx.Client, model: str, kept: list[tuple[str, bytes]]) -> float:
    """The share of these pictures, each with its label, whose best label a served model gets right."""
    right = 0
    for chunk in batched(kept):
        answers = asked(http, "/predict/image", {"model": model, "top_k": 1}, [raw for _, raw in chunk])
        right += sum(one["predictions"][0]["label"] == label for one, (label, _) in zip(answers, chunk, strict=True))
    return right / len(kept)


def asked(http: httpx.Client, path: str, query: dict[str, Any], raws: list[bytes]) -> list[dict[str, Any]]:
    """What an endpoint says of files that are sent together."""
    files = [("file", (str(number), raw)) for number, raw in enumerate(raws)]
    answers: list[dict[str, Any]] = http.post(path, params=query, files=files).raise_for_status().json()["results"]
    return answers


def mnist(http: httpx.Client, data: Path, method: str, more: dict[str, Any]) -> dict[str, Any]:
    """The same with the idx files, and a network that has learnt nothing yet."""
    spec = {"name": f"mnist-{method}", "base": "digits", "start": method, **more}
    found = tuned(http, spec, packed(data))
    pixels = np.frombuffer(gzip.decompress((data / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = gzip.decompress((data / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    kept = [(str(label), png(one)) for label, one in zip(labels, pixels.reshape(-1, 28, 28), strict=True)]
    return found | {"as_served": right_of(http, spec["name"], kept)}


def png(pixels: np.ndarray) -> bytes:
    """A picture as a caller sends it."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def digits_speech(http: httpx.Client, data: Path, method: str, more: dict[str, Any]) -> dict[str, Any]:
    """The same with recordings and a table of what is said in them."""
    rows, out, kept = io.StringIO(), io.BytesIO(), []
    writer = csv.writer(rows)
    writer.writerow(["file", "transcript", "split"])
    with zipfile.ZipFile(data) as source, zipfile.ZipFile(out, "w") as archive:
        for name in sorted(source.namelist()):
            if match := re.search(r"(\d)_[a-z]+_(\d+)\.wav$", name):
                raw, word, kept_out = source.read(name), WORDS[int(match[1])], int(match[2]) < 5
                archive.writestr(name, raw)
                writer.writerow([name, word, "val" if kept_out else "train"])
                kept += [(word, raw)] if kept_out else []
        archive.writestr("transcripts.csv", rows.getvalue())
    recipe = tomllib.loads((_ROOT / "models" / "spoken-digits" / "tune.toml").read_text(encoding="utf-8"))
    how = {"start": "fresh", **recipe} if method == "recipe" else {"method": method}
    spec = {"name": f"heard-{method}", "base": "spoken-digits", **how, **more}
    found = tuned(http, spec, out.getvalue())
    errors = 0
    for chunk in batched(kept):
        answers = asked(http, "/transcribe", {"model": spec["name"]}, [raw for _, raw in chunk])
        for heard, (word, _) in zip((one["text"].split() for one in answers), chunk, strict=True):
            errors += max(1, len(heard)) - (word in heard)  # of one word: nothing or another is one error, each further one more
    return found | {"as_served": errors / len(kept)}


def sst2(http: httpx.Client, data: Path, method: str, more: dict[str, Any]) -> dict[str, Any]:
    """The same with labelled texts."""
    spec = {"name": f"sentiment-{method}", "base": MINILM, "method": method, **more}
    found = tuned(http, spec, packed(data))
    rows = lines(data / "dev.tsv")
    right = 0
    for chunk in batched(rows):
        body = {"inputs": [row["sentence"] for row in chunk], "model": spec["name"], "top_k": 1}
        results = http.post("/predict/text", json=body).raise_for_status().json()["results"]
        right += sum(result["predictions"][0]["label"] == row["label"] for result, row in zip(results, chunk, strict=True))
    return found | {"as_served": right / len(rows)}


def stsb(http: httpx.Client, data: Path, method: str, more: dict[str, Any]) -> dict[str, Any]:
    """The same with scored pairs. `test` is not sent."""
    spec = {"name": f"alike-{method}", "base": MINILM, "method": method, **more}
    before = {part: spearman_of(http, MINILM, data / f"{part}.tsv") for part in ("dev", "test")}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for part in ("train", "dev"):
            archive.write(data / f"{part}.tsv", f"{part}.tsv")
    found = tuned(http, spec, out.getvalue())
    after = {part: spearman_of(http, spec["name"], data / f"{part}.tsv") for part in ("dev", "test")}
    return found | {"as_served": after["dev"], "before": before, "after": after}


def spearman_of(http: httpx.Client, model: str, path: Path) -> float:
    """Of the cosines of a served model's vectors with people's scores."""
    from app.tasks.text.dataset import spearman  # imports torch

    rows = lines(path)
    cosines: list[float] = []
    for chunk in batched(rows):
        inputs = [row[name] for name in ("sentence1", "sentence2") for row in chunk]
        answer = http.post("/embed/text", json={"inputs": inputs, "model": model}).raise_for_status().json()
        vectors = np.array(answer["embeddings"])
        cosines += (vectors[: len(chunk)] * vectors[len(chunk) :]).sum(1).tolist()
    return spearman(np.array(cosines), np.array([float(row["score"]) for row in rows]))


def lines(path: Path) -> list[dict[str, str]]:
    """Of a TSV without quotes."""
    head, *rows = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [dict(zip(head.split("\t"), row.split("\t"), strict=True)) for row in rows]


def batched(rows: list[Any]) -> list[list[Any]]:
    """Sixty-four at a time."""
    return [rows[start : start + 64] for start in range(0, len(rows), 64)]


@dataclass(frozen=True)
class Chain:
    """What may be measured."""

    run: Callable[[httpx.Client, Path, str, dict[str, Any]], dict[str, Any]]
    data: Path
    methods: str
    base: str
    unit: str


CHAINS = {
    "mnist": Chain(mnist, _SHARED / "mnist", "fresh", "digits", "test set"),
    "digits-speech": Chain(digits_speech, _SHARED / "speech" / "fsdd.zip", "recipe", "spoken-digits", "val"),
    "photos": Chain(photos, _SHARED / "finetune_photos", "head,full", "base", "val"),
    "sst2": Chain(sst2, _SHARED / "text" / "sst2", "full", MINILM, "dev"),
    "stsb": Chain(stsb, _SHARED / "text" / "stsb", "full", MINILM, "dev"),
}


def main() -> None:
    named = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else "photos"
    if named not in CHAINS:
        raise SystemExit(f"{named} is none of: {', '.join(CHAINS)}")
    chain = CHAINS[named]
    wanted = options(
        __doc__,
        data=str(chain.data),
        weights=str(_SHARED / "weights" / "noncommercial" / "resnet18_imagenet1k_pq.safetensors"),
        methods=chain.methods,
        seed=0,
        spec="{}",
    )
    more = {"seed": wanted.seed} | json.loads(wanted.spec)
    with tempfile.TemporaryDirectory(prefix="hearth-bench-") as folder:
        if chain.base == "base":
            lay(Path(folder), Path(wanted.weights))
        settings = {"HOME": folder, "PORT": "0", "MODELS": chain.base, "COMPUTE": "eager", "PRECISION": "fp32"}
        environment = {f"HEARTH_{name}": value for name, value in settings.items()} | {"COLUMNS": "200"}
        command = [sys.executable, "-P", "-m", "app", "serve"]
        environment["PYTHONPATH"] = str(_ROOT)
        with (
            running(command, r"Hearth is at (http://\S+)", environment) as (url, _),
            httpx.Client(base_url=url, timeout=60) as http,
        ):
            found = {method: chain.run(http, Path(wanted.data), method, more) for method in wanted.methods.split(",")}
    rows = [
        [
            method,
            *(f"{100 * one[key]:.1f} %" if named != "stsb" else f"{one[key]:.4f}" for key in ("by_job", "as_served")),
            *(f"{one[key]:.0f}" for key in ("live_s", "training_s", "cpu_s", "steps", "memory_mib")),
        ]
        for method, one in found.items()
    ]
    heads = [f"{chain.unit}, by the job", f"{chain.unit}, as served"]
    table(["method", *heads, "upload to live, s", "training, s", "of CPU time, s", "steps", "peak, MiB"], rows)
    if named == "stsb":
        order = [(part, when) for part in ("dev", "test") for when in ("before", "after")]
        parts = [[method, *(f"{one[when][part]:.4f}" for part, when in order)] for method, one in found.items()]
        table(["Spearman, as served", "dev before", "dev after", "test before", "test after"], parts)
    report("finetune", chain=named, methods=found)


if __name__ == "__main__":
    main()
