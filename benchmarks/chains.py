"""What `finetune.py` measures: for each data set the archive, the job, and the score of what the served model answers."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import time
import tomllib
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
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
    version = str(job["result"]["version"])
    while http.get(f"/models/{spec['name']}@{version}").json().get("state") != "ready":
        time.sleep(0.05)
    return {
        "live_s": time.monotonic() - began,
        "training_s": job["result"]["seconds"],
        "cpu_s": cpu_s,
        "memory_mib": memory / 2**20,
        "steps": job["progress"]["step"],
        "by_job": next(iter(job["result"]["metrics"].values())),
        "warnings": job["report"]["warnings"],
        "spec": job["result"]["spec"],
        "version": version,
    }


def busy(id: str) -> float:
    """Seconds of CPU time that the job's process has had: what its cores would have taken together without others on them."""
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == f"hearth tune {id}"[:15]:  # the kernel keeps so many letters
            with suppress(psutil.Error):
                return sum(process.cpu_times()[:2])
    return 0.0


def photos(http: httpx.Client, data: Path, method: str, seed: int) -> dict[str, Any]:
    """Submit, follow, give a quarter of the traffic to it if it is not the first version, then all, and ask."""
    val = [(path.parent.name, path.read_bytes()) for path in sorted((data / "val").rglob("*.*"))]
    spec = {"name": "photos", "base": "base", "method": method, "seed": seed, "traffic": 0.25}
    found = tuned(http, spec, packed(data))
    answers = [http.post("/predict/image?model=photos", content=raw).raise_for_status().json() for _, raw in val]
    http.put("/models/photos/traffic", json={"shares": {found["version"]: 1}}).raise_for_status()
    served = best_labels(http, f"photos@{found['version']}", val)
    return found | {"as_served": served, "canary": dict(Counter(answer["version"] for answer in answers))}


def sst2(http: httpx.Client, data: Path, method: str, seed: int) -> dict[str, Any]:
    """The same with labelled texts."""
    spec = {"name": f"sentiment-{method}", "base": MINILM, "method": method, "seed": seed}
    found = tuned(http, spec, packed(data))
    rows = lines(data / "dev.tsv")
    right = 0
    for chunk in batched(rows):
        body = {"inputs": [row["sentence"] for row in chunk], "model": spec["name"], "top_k": 1}
        results = http.post("/predict/text", json=body).raise_for_status().json()["results"]
        right += sum(result["predictions"][0]["label"] == row["label"] for result, row in zip(results, chunk, strict=True))
    return found | {"as_served": right / len(rows)}


def stsb(http: httpx.Client, data: Path, method: str, seed: int) -> dict[str, Any]:
    """The same with scored pairs. `test` is not sent."""
    spec = {"name": f"alike-{method}", "base": MINILM, "method": method, "seed": seed}
    before = {part: spearman_of(http, MINILM, data / f"{part}.tsv") for part in ("dev", "test")}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for part in ("train", "dev"):
            archive.write(data / f"{part}.tsv", f"{part}.tsv")
    found = tuned(http, spec, out.getvalue())
    after = {part: spearman_of(http, spec["name"], data / f"{part}.tsv") for part in ("dev", "test")}
    slower = time_over(http, spec["name"], MINILM, lines(data / "test.tsv")[0]["sentence1"])
    return found | {"as_served": after["dev"], "before": before, "after": after, "time_over_base": slower}


def mnist(http: httpx.Client, data: Path, method: str, seed: int) -> dict[str, Any]:
    """The idx files, and the 784-128-10 network from random weights."""
    pictures = np.frombuffer(gzip.decompress((data / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = gzip.decompress((data / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    kept = [(str(label), png(one)) for label, one in zip(labels, pictures.reshape(-1, 28, 28), strict=True)]
    spec = {"name": "mnist", "base": "digits", "start": method, "seed": seed}
    found = tuned(http, spec, packed(data))
    return found | {"as_served": best_labels(http, "mnist", kept)}


def digits_speech(http: httpx.Client, data: Path, method: str, seed: int) -> dict[str, Any]:
    """Spoken digits with a table of transcripts: `fresh` by the starter's own recipe, `weights` two epochs from the starter."""
    name = re.compile(r"(\d)_[a-z]+_(\d+)\.wav$")
    rows, kept, out = ["file,transcript,split"], [], io.BytesIO()
    with zipfile.ZipFile(data) as source, zipfile.ZipFile(out, "w") as archive:
        for path in sorted(source.namelist()):
            if match := name.search(path):
                said, held_out = WORDS[int(match[1])], int(match[2]) < 5
                rows.append(f"{path},{said},{'val' if held_out else 'train'}")
                archive.writestr(path, source.read(path))
                kept += [(said, source.read(path))] if held_out else []
        archive.writestr("transcripts.csv", "\n".join(rows))
    recipe = tomllib.loads((ROOT / "models" / "spoken-digits" / "tune.toml").read_text())
    spec = {"name": "spoken", "base": "spoken-digits", "start": method, "seed": seed}
    found = tuned(http, (recipe if method == "fresh" else {"epochs": 2}) | spec, out.getvalue())
    errors = 0
    for one, (said, _) in zip(asked(http, "/transcribe", {"model": "spoken"}, kept), kept, strict=True):
        heard = one["text"].split()
        errors += max(1, len(heard)) - (said in heard)
    return found | {"as_served": errors / len(kept)}


def best_labels(http: httpx.Client, model: str, kept: list[tuple[str, bytes]]) -> float:
    """Share of the pictures whose best label is the right one."""
    answers = asked(http, "/predict/image", {"model": model, "top_k": 1}, kept)
    return sum(one["predictions"][0]["label"] == label for one, (label, _) in zip(answers, kept, strict=True)) / len(kept)


def asked(http: httpx.Client, path: str, query: dict[str, Any], kept: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    """A result for each file."""
    answers: list[dict[str, Any]] = []
    for chunk in batched(kept):
        files = [("file", (str(number), raw)) for number, (_, raw) in enumerate(chunk)]
        answers += http.post(path, params=query, files=files).raise_for_status().json()["results"]
    return answers


def png(pixels: np.ndarray) -> bytes:
    """A gray picture."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


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


def time_over(http: httpx.Client, model: str, other: str, text: str) -> float:
    """Median time of an answer of `model` over that of `other`, by turns."""
    took: dict[str, list[float]] = {model: [], other: []}
    for _ in range(300):
        for name, times in took.items():
            began = time.perf_counter()
            http.post("/embed/text", json={"inputs": text, "model": name}).raise_for_status()
            times.append(time.perf_counter() - began)
    return median(took[model]) / median(took[other])


def lines(path: Path) -> list[dict[str, str]]:
    """Of a TSV without quotes."""
    head, *rows = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [dict(zip(head.split("\t"), row.split("\t"), strict=True)) for row in rows]


def batched(rows: list[Any]) -> list[list[Any]]:
    """Sixty-four at a time."""
    return [rows[start : start + 64] for start in range(0, len(rows), 64)]
