"""Inputs of many sizes, and three models at once.

    python benchmarks/mixed.py [--parts texts,pictures,together] [--seconds 5] [--rounds 3] [--clients 64] [--batch 32]
        [--text-model all-minilm-l6-v2] [--picture-model bench-resnet50] [--models cifar-resnet,all-minilm-l6-v2,spoken-digits]

texts: 60 % of about 12 tokens, 25 % of 40, 10 % of 120, 5 % of 256, in one shuffled order. In this process, with the very compute
that the server chose: batches of the first comers, packed as the worker packs them, beside the same batches padded to their
longest. Then over HTTP. Aim: 2.5 times the padded batches' texts/s.
pictures: 0.05 to 12 megapixels, one caller, then eight. Aim: 12 megapixels take at most 3 times as long as 0.2. That is meant of
a model of ResNet-50's size (random weights, benchmarks/cards.py); behind a small one the decoder stands alone.
together: each model's requests/s alone, and beside the two others. The shares should add up to 1 or more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import load
import numpy as np
from bare import Bare, find
from common import STARTERS, computed_by, home, options, report, serving, settled, table
from inputs import ask, item, mixed_texts, picture, tokens_of

from app.engine.lane import lane_of
from app.tasks.base import Arrays

MEGAPIXELS = (0.05, 0.2, 0.2, 0.2, 1.0, 2.0, 12.0, 0.2)  # of eight pictures in turn
SMALL, LARGE = MEGAPIXELS.index(0.2), MEGAPIXELS.index(12.0)
CALLERS = 8


def padded(samples: Sequence[Arrays]) -> Arrays:
    """What `TextProgram.collate` would make if each text had a row of its own, as long as the longest."""
    lengths = np.array([len(sample["input_ids"]) for sample in samples])
    ids = np.zeros((len(samples), lengths.max()), np.int64)
    for row, sample in enumerate(samples):
        ids[row, : lengths[row]] = sample["input_ids"]
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    real = places < lengths[:, None]
    rows = np.arange(len(samples))
    texts = np.where(real, rows[:, None], len(samples))
    pooling = np.zeros((len(samples), *ids.shape), np.float32)
    pooling[rows, rows] = real / lengths[:, None]
    return {"input_ids": ids, "positions": places * real, "texts": texts, "pooling": pooling.reshape(len(samples), -1)}


def texts_rate(bare: Bare, texts: Sequence[str], batch: int, seconds: float, collate: Callable[..., Any]) -> float:
    """Texts per second of decode, collate and forward, batches in order of arrival."""
    done, spent, start = 0, 0.0, time.perf_counter()
    lane = lane_of(bare.compute)
    with lane.mode():
        while spent < seconds or done < len(texts):
            turn = [texts[(done + number) % len(texts)] for number in range(batch)]
            collated = collate([sample for text in turn for sample in bare.decode(text)])
            found = lane.back(bare.program.forward(bare.compute.networks, lane.there(lane.pinned(collated))))
            lane.mark().synchronize()
            lane.arrays(found)
            done, spent = done + batch, time.perf_counter() - start
    return done / spent


def texts(wanted: Any) -> dict[str, Any]:
    """Packed, padded and over HTTP, in turns."""
    name = wanted.text_model
    with home() as folder, serving(home=str(folder), models=name, precision=wanted.precision) as url:
        known = settled(url, name, wanted.patience)
        bare = Bare(name, folder, known)
        several = mixed_texts(bare.files)
        raws = [ask(bare.card, text).raw(url) for text in several]
        rounds = []
        for number in range(wanted.rounds + 1):  # round 0 warms up
            answers = load.run(url, raws, clients=wanted.clients, seconds=wanted.seconds)
            assert not answers.failed(), "an answer was not 200"
            both = [texts_rate(bare, several, wanted.batch, wanted.seconds, how) for how in (bare.program.collate, padded)]
            rounds += [[*both, answers.rate()]] if number else []
    packed, naive, served = (statistics.median(side) for side in zip(*rounds, strict=True))
    tokens = statistics.mean(tokens_of(bare.files, several))
    rows = [
        [f"padded batches of {wanted.batch}, first come", f"{naive:.0f}", f"{naive * tokens:.0f}", "1.00"],
        ["the same, packed", f"{packed:.0f}", f"{packed * tokens:.0f}", f"{packed / naive:.2f}"],
        [f"over HTTP, {wanted.clients} clients", f"{served:.0f}", f"{served * tokens:.0f}", f"{served / naive:.2f}"],
    ]
    table([f"{name} ({computed_by(known)})", "texts/s", "tokens/s", "times padded (aim 2.5)"], rows)
    rates = {"padded_rps": naive, "packed_rps": packed, "served_rps": served, "rounds": rounds}
    return rates | {"compute": computed_by(known), "packed_gain": packed / naive, "served_gain": served / naive}


def pictures(wanted: Any) -> dict[str, Any]:
    """Latency by size: one caller, and eight."""
    name = wanted.picture_model
    found: dict[str, Any] = {}
    with home() as folder, serving(home=str(folder), models=name, precision=wanted.precision) as url:
        found["compute"] = computed_by(settled(url, name, wanted.patience))
        card, _ = find(name, folder)
        raws = [ask(card, picture(size, seed)).raw(url) for seed, size in enumerate(MEGAPIXELS)]
        load.run(url, raws, clients=1, seconds=1.0)
        for clients in (1, CALLERS):
            answers = load.run(url, raws, clients=clients, seconds=wanted.rounds * wanted.seconds)
            assert not answers.failed(), "an answer was not 200"
            found[str(clients)] = {
                str(size): dict(zip(("p50_ms", "p99_ms"), answers.ms(0.50, 0.99, request=request), strict=True))
                for request, size in enumerate(MEGAPIXELS)
                if request == MEGAPIXELS.index(size)
            }
    rows = [
        [size, *(f"{found[clients][size][key]:.1f}" for clients in ("1", str(CALLERS)) for key in ("p50_ms", "p99_ms"))]
        for size in found["1"]
    ]
    heads = [
        f"{name} ({found['compute']}): megapixels",
        "p50, ms",
        "p99, ms",
        f"p50, {CALLERS} callers",
        f"p99, {CALLERS} callers",
    ]
    table(heads, rows)
    ratio = found["1"][str(MEGAPIXELS[LARGE])]["p50_ms"] / found["1"][str(MEGAPIXELS[SMALL])]["p50_ms"]
    print(f"12 megapixels over 0.2: {ratio:.2f} (aim: at most 3)\n")
    return found | {"large_over_small": ratio}


def together(wanted: Any) -> dict[str, Any]:
    """Each model alone, then all of them, in turns."""
    names = wanted.models.split(",")
    alone: dict[str, list[float]] = {name: [] for name in names}
    beside: dict[str, list[float]] = {name: [] for name in names}
    with home() as folder, serving(home=str(folder), models=wanted.models, precision=wanted.precision) as url:
        computes = {name: computed_by(settled(url, name, wanted.patience)) for name in names}
        raws = {name: ask(card, item(card, files)).raw(url) for name in names for card, files in [find(name, folder)]}
        for number in range(wanted.rounds + 1):  # round 0 warms up
            plan = {"clients": CALLERS, "seconds": wanted.seconds}
            rates = {name: load.run(url, [raw], **plan).rate() for name, raw in raws.items()}
            generators = {name: load.begin(url, [raw], **plan) for name, raw in raws.items()}
            for name, generator in generators.items():
                answers = load.finish(generator)
                assert not answers.failed(), f"{name}: an answer was not 200"
                if number:
                    alone[name].append(rates[name])
                    beside[name].append(answers.rate())
    middle = {name: (statistics.median(alone[name]), statistics.median(beside[name])) for name in names}
    shares = {name: b / a for name, (a, b) in middle.items()}
    rows = [[f"{n} ({computes[n]})", f"{a:.0f}", f"{b:.0f}", f"{100 * shares[n]:.0f} %"] for n, (a, b) in middle.items()]
    table([f"{CALLERS} clients each", "requests/s alone", "beside the others", "share"], rows)
    print(f"shares together: {100 * sum(shares.values()):.0f} %\n")
    return {"alone_rps": alone, "together_rps": beside, "shares": shares, "computes": computes}


def main() -> None:
    wanted = options(
        __doc__,
        parts="texts,pictures,together",
        seconds=5.0,
        rounds=3,
        clients=64,
        batch=32,
        text_model="all-minilm-l6-v2",
        picture_model="bench-resnet50",
        models=STARTERS,
        precision="",
        patience=600.0,
    )
    parts = {"texts": texts, "pictures": pictures, "together": together}
    report("mixed", **{part: parts[part](wanted) for part in wanted.parts.split(",")})


if __name__ == "__main__":
    main()
