"""What it costs that fp32 decides between classes that are close in bf16: pictures a second, and memory.

    HEARTH_HOME=FOLDER python benchmarks/deciding.py --models mobilenet --photos FOLDER [--batch 8] [--rounds 12]

The model's card lies in FOLDER/models; its weights must be real, or nothing is close. All photographs, decoded before, go through
the worker's Runner in batches: bf16 alone, bf16 with fp32 behind it, fp32 alone, in turns that each begin with another one.
The photographs decide: of pictures of things that the network knows few are close, of others many.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
from bare import find
from common import home, options, report, table

from app.engine import device as devices
from app.engine.agreement import close
from app.engine.choosing import chosen
from app.engine.compute import Compute, compiled
from app.engine.order import Order
from app.engine.runner import Runner
from app.errors import HearthError
from app.settings import Settings
from app.tasks import TASKS, make_codec, resolve
from app.tasks.base import Arrays, Program

_WAYS = ("bf16", "bf16, decided", "fp32")


def pictures(folder: Path, codec: Any) -> list[Arrays]:
    """Of all files there that are pictures."""
    found: list[Arrays] = []
    for path in sorted(folder.rglob("*.*")):
        try:
            found += [sample.arrays for sample in codec.decode(path.read_bytes()).samples]
        except HearthError:
            continue
    return found


def ways(order: Order, program: Program, names: Sequence[str], threads: int, warm: list[Arrays]) -> tuple[Any, list[float]]:
    """A Runner for each of the three, and the MiB that bf16 took with its first batch, and fp32 with one picture beside it."""
    sizes = []

    def read(precision: Any, samples: list[Arrays]) -> Compute:
        before = psutil.Process().memory_info().rss
        compute = compiled("openvino", precision, order.folder(), names, threads)
        Runner(compute, program, lambda *_: None).run(samples)
        devices.forget_files(order.folder())  # as a worker does
        sizes.append((psutil.Process().memory_info().rss - before) / 2**20)
        return compute

    half, full = read("bf16", warm), read("fp32", warm[:1])
    computes = (half, replace(half, exact=full.networks), full)
    return {way: Runner(compute, program, lambda *_: None) for way, compute in zip(_WAYS, computes, strict=True)}, sizes


def measure(name: str, folder: Path, photos: Path, batch: int, rounds: int) -> dict[str, Any]:
    """One model's figures."""
    card, files = find(name, folder)
    threads = devices.thread_count("cpu", Settings.from_environment({"home": folder}).thread_count())
    order = Order(
        card.model_dump_json(), {key: str(path) for key, path in files.items()}, threads, "auto", "openvino", str(folder)
    )
    choice = chosen(order)
    about = msgspec.json.decode((order.folder() / "module.json").read_bytes())
    program = resolve(TASKS[card.task].program)(card, files)
    samples = pictures(photos, make_codec(card, files, about["meta"]))
    batches = [samples[first : first + batch] for first in range(0, len(samples), batch)]
    runners, sizes = ways(order, program, about["networks"], threads, batches[0])
    near = sum(close(output) for part in batches for output in runners["bf16"].run(part))  # type: ignore[arg-type]
    spent: dict[str, list[float]] = {way: [] for way in _WAYS}
    for turn in range(-1, rounds):  # the first is to warm up
        for number in range(len(_WAYS)):
            way = _WAYS[(turn + number) % len(_WAYS)]
            begin = time.perf_counter()
            for part in batches:
                runners[way].run(part)
            if turn >= 0:
                spent[way].append(time.perf_counter() - begin)
    rates = {way: len(samples) / statistics.median(seconds) for way, seconds in spent.items()}
    told = {"model": name, "pictures": len(samples), "close": near, "chosen": f"{choice.engine} {choice.precision}"}
    return told | {"rates": rates, "mib": dict(zip(("bf16", "fp32"), sizes, strict=True))}


def main() -> None:
    given = options(__doc__, models="", photos="", batch=8, rounds=12)
    devices.keep_memory()
    with home() as folder:
        found = [
            measure(name, folder, Path(given.photos), given.batch, given.rounds) for name in filter(None, given.models.split(","))
        ]
    rows = [
        (
            each["model"],
            f"{each['close']} of {each['pictures']}",
            *(f"{each['rates'][way]:.1f}" for way in _WAYS),
            f"{each['rates'][_WAYS[1]] / each['rates'][_WAYS[0]]:.3f}",
            f"{each['mib']['bf16']:.0f} + {each['mib']['fp32']:.0f}",
        )
        for each in found
    ]
    table(("model", "close", *(f"{way}, pictures/s" for way in _WAYS), "kept", "MiB, bf16 + fp32"), rows)
    report("deciding", batch=given.batch, models=found)


if __name__ == "__main__":
    main()
