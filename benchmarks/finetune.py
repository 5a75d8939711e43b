"""The whole chain over HTTP on real data: upload, watch, ask the model that it became.

    python benchmarks/finetune.py [photos] [--data FOLDER] [--weights FILE.safetensors] [--methods head,full] [--check]
    python benchmarks/finetune.py sst2|stsb [--data FOLDER] [--methods full] [--seed 0]
    python benchmarks/finetune.py mnist [--data FOLDER]
    python benchmarks/finetune.py digits-speech [--data ZIP] [--methods fresh,weights]

photos         ResNet-18 with ImageNet's weights, five classes, `train` and `val` as they come. Aim: 97 % on `val` in 4 minutes.
sst2           Sentiment from all-MiniLM-L6-v2, weights chosen by `dev`, on which others publish too. Aim: 88 % in 10 minutes.
stsb           Sentence embeddings from the same, chosen by `dev`; `test` is only measured, before and after. Aim: no lower after.
mnist          The 784-128-10 network of `digits` from random weights on the idx files. Aim: 97.5 %.
digits-speech  `spoken-digits` by its own recipe, recordings 0 to 4 of each speaker kept out. Aim: 5 % word errors.

Told: what the job measured, what the served model's answers to the same measure, seconds from upload to the first answer of the
new model, seconds of training, peak memory. No other setting than the seed is changed. With `--check`, a method that misses its
aim (bars.py) ends the program with 1.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bars
import httpx
from chains import MINILM, ROOT, digits_speech, lay, mnist, photos, sst2, stsb
from common import options, report, running, table

_SHARED = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Chain:
    """What may be measured."""

    run: Callable[[httpx.Client, Path, str, int], dict[str, Any]]
    data: Path
    methods: str
    base: str
    unit: str


CHAINS = {
    "photos": Chain(photos, _SHARED / "finetune_photos", "head,full", "base", "val"),
    "sst2": Chain(sst2, _SHARED / "text" / "sst2", "full", MINILM, "dev"),
    "mnist": Chain(mnist, _SHARED / "mnist", "fresh", "digits", "test"),
    "digits-speech": Chain(digits_speech, _SHARED / "speech" / "fsdd.zip", "fresh", "spoken-digits", "kept out, errors"),
    "stsb": Chain(stsb, _SHARED / "text" / "stsb", "full", MINILM, "dev"),
}


def hold(named: str, found: dict[str, dict[str, Any]]) -> None:
    """Every method to the bars of its chain: exit with status 1 where one is missed."""
    missed = [
        f"{method}: {sentence}" for method, one in found.items() for sentence in bars.missed(figures(one), bars.TUNED[named])
    ]
    if missed:
        sys.exit("\n".join(missed))


def figures(one: dict[str, Any]) -> dict[str, float]:
    """What was measured of a method, by the names of the bars."""
    told = {"as served": one["as_served"], "upload to live, s": one["live_s"], "training, s": one["training_s"]}
    if "before" in one:
        told["test: after less before"] = one["after"]["test"] - one["before"]["test"]
        told["an answer's time over the base's"] = one["time_over_base"]
    return told


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
        check=False,
    )
    with tempfile.TemporaryDirectory(prefix="hearth-bench-") as folder:
        if chain.base == "base":
            lay(Path(folder), Path(wanted.weights))
        settings = {"HOME": folder, "PORT": "0", "MODELS": chain.base, "COMPUTE": "eager", "PRECISION": "fp32"}
        environment = {f"HEARTH_{name}": value for name, value in settings.items()} | {"COLUMNS": "200"}
        command = [sys.executable, "-P", "-m", "app", "serve"]
        environment["PYTHONPATH"] = str(ROOT)
        with (
            running(command, r"Hearth is at (http://\S+)", environment) as (url, _),
            httpx.Client(base_url=url, timeout=60) as http,
        ):
            found = {method: chain.run(http, Path(wanted.data), method, wanted.seed) for method in wanted.methods.split(",")}
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
        parts = [
            [method, *(f"{one[when][part]:.4f}" for part, when in order), f"{one['time_over_base']:.2f}"]
            for method, one in found.items()
        ]
        table(
            ["Spearman, as served", "dev before", "dev after", "test before", "test after", "answer's time over the base's"],
            parts,
        )
    if named == "photos":
        for method, one in found.items():
            print(f"{method}: with a quarter of the traffic, if it was not the first, these versions answered: {one['canary']}")
    report("finetune", chain=named, methods=found)
    if wanted.check:
        hold(named, found)


if __name__ == "__main__":
    main()
