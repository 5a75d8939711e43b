"""The whole chain over HTTP on real photographs: upload, watch, predict with the model that it became.

    python benchmarks/finetune.py [--data ../shared/data/finetune_photos] [--weights FILE.safetensors] [--methods head,full]

ResNet-18 with ImageNet's weights, five classes, `train` and `val` folders as they come. Aims: 97 % on `val` in four minutes.
Told for each method: accuracy by the job, accuracy of what the served model answers to the same pictures, seconds from upload to
the first answer of the new model, seconds of training, peak memory.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
from common import options, report, running, table

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
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


def one(http: httpx.Client, method: str, archive: bytes, val: list[tuple[str, bytes]]) -> dict[str, Any]:
    """Submit, follow, ask."""
    began = time.monotonic()
    spec = {"name": f"photos-{method}", "base": "base", "method": method}
    parts = {"spec": (None, json.dumps(spec)), "dataset": ("photos.zip", archive)}
    id = http.post("/finetune", files=parts).raise_for_status().json()["id"]
    memory = 0
    with http.stream("GET", f"/finetune/{id}/events", timeout=900) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                memory = max(memory, json.loads(line.removeprefix("data: ")).get("memory_bytes", 0))
    job = http.get(f"/finetune/{id}").json()
    if job["state"] != "succeeded":
        raise SystemExit(f"the job {job['state']}: {job['reason']}")
    while http.post("/predict/image", params={"model": spec["name"]}, content=val[0][1]).status_code != 200:
        time.sleep(0.05)
    live_s = time.monotonic() - began
    right = 0
    for label, raw in val:
        answer = http.post("/predict/image", params={"model": spec["name"], "top_k": 1}, content=raw).raise_for_status().json()
        right += answer["results"][0]["predictions"][0]["label"] == label
    return {
        "accuracy": job["result"]["metrics"]["accuracy"],
        "served_accuracy": right / len(val),
        "live_s": live_s,
        "training_s": job["result"]["seconds"],
        "memory_mib": memory / 2**20,
        "steps": job["progress"]["step"],
        "spec": job["result"]["spec"],
    }


def main() -> None:
    wanted = options(
        __doc__,
        data=str(_SHARED / "finetune_photos"),
        weights=str(_SHARED / "weights" / "noncommercial" / "resnet18_imagenet1k_pq.safetensors"),
        methods="head,full",
    )
    data = Path(wanted.data)
    val = [(path.parent.name, path.read_bytes()) for path in sorted((data / "val").rglob("*.*"))]
    archive = packed(data)
    with tempfile.TemporaryDirectory(prefix="hearth-bench-") as folder:
        lay(Path(folder), Path(wanted.weights))
        settings = {"HOME": folder, "PORT": "0", "MODELS": "base", "COMPUTE": "eager", "PRECISION": "fp32"}
        environment = {f"HEARTH_{name}": value for name, value in settings.items()} | {"COLUMNS": "200"}
        command = [sys.executable, "-P", "-m", "app", "serve"]
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
        with (
            running(command, r"Hearth is at (http://\S+)", environment) as (url, _),
            httpx.Client(base_url=url, timeout=60) as http,
        ):
            found = {method: one(http, method, archive, val) for method in wanted.methods.split(",")}
    rows = [
        [
            method,
            f"{100 * one['accuracy']:.1f} %",
            f"{100 * one['served_accuracy']:.1f} %",
            *(f"{one[key]:.0f}" for key in ("live_s", "training_s", "steps", "memory_mib")),
        ]
        for method, one in found.items()
    ]
    table(["method", "val, by the job", "val, as served", "upload to live, s", "training, s", "steps", "peak, MiB"], rows)
    report("finetune", pictures=len(val), methods=found)


if __name__ == "__main__":
    main()
