"""What the server holds in memory: at rest, under load, and after many models came and went.

    python benchmarks/memory.py [--models cifar-resnet,all-minilm-l6-v2,spoken-digits] [--cycles 50] [--cycled digits]

PSS counts a page that N processes share as 1/N in each; the sum over all processes is what the machine has given. RSS counts it
in each. Aim: after 50 times load and unload no more than 5 % above after the first time.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import load
import psutil
from bare import find
from common import STARTERS, home, memory, options, report, settled, started, table, total
from inputs import ask, item

REST_S = 3.0  # allocators and reapers come to rest
CLIENTS = 8


def measured(process: psutil.Process, found: dict[str, Any], state: str) -> None:
    sizes = memory(process)
    found[state] = {"pss_mib": total(sizes, "pss"), "rss_mib": total(sizes, "rss"), "processes": sizes}


def loaded(url: str, names: list[str], folder: Path, seconds: float) -> list[Any]:
    """Generators that ask every model."""
    calls = [ask(card, item(card, files)) for card, files in (find(name, folder) for name in names)]
    return [load.begin(url, [call.raw(url)], clients=CLIENTS, seconds=seconds) for call in calls]


def resting(url: str, names: list[str], wanted: Any) -> None:
    for name in names:
        settled(url, name, wanted.patience)
    time.sleep(REST_S)


def cycle(url: str, process: psutil.Process, found: dict[str, Any], wanted: Any) -> None:
    """Load, wait until it has settled the first time, unload; again and again."""
    with httpx.Client(base_url=url, timeout=120) as http:
        for number in range(1, wanted.cycles + 1):
            http.post(f"/models/{wanted.cycled}/load").raise_for_status()
            if number == 1:
                settled(url, wanted.cycled, wanted.patience)
            http.post(f"/models/{wanted.cycled}/unload").raise_for_status()
            if number in (1, wanted.cycles) or number % 10 == 0:
                time.sleep(REST_S)
                measured(process, found, f"after {number} x load and unload {wanted.cycled}")


def main() -> None:
    wanted = options(__doc__, models=STARTERS, cycles=50, cycled="digits", seconds=10.0, patience=600.0)
    names = wanted.models.split(",")
    found: dict[str, Any] = {}
    with home() as folder:
        with started(home=str(folder), models=names[0]) as (url, process, _):
            resting(url, names[:1], wanted)
            measured(psutil.Process(process.pid), found, f"at rest, {names[0]}")
        with started(home=str(folder), models=wanted.models) as (url, process, _):
            resting(url, names, wanted)
            server = psutil.Process(process.pid)
            measured(server, found, f"at rest, {len(names)} models")
            generators = loaded(url, names, folder, wanted.seconds)
            time.sleep(wanted.seconds * 0.8)
            measured(server, found, f"under load, {CLIENTS} clients each")
            for generator in generators:
                load.finish(generator)
            time.sleep(REST_S)
            measured(server, found, "at rest after the load")
            cycle(url, server, found, wanted)
    show(found, wanted)


def show(found: dict[str, Any], wanted: Any) -> None:
    rows = []
    for state, one in found.items():
        parts = ", ".join(f"{name.removeprefix('hearth ')} {size['pss']:.0f}" for name, size in one["processes"].items())
        rows.append([state, f"{one['pss_mib']:.0f}", f"{one['rss_mib']:.0f}", parts])
    table(["MiB", "PSS", "RSS", "PSS by process"], rows)
    first, *_, last = (one["pss_mib"] for state, one in found.items() if state.startswith("after"))
    growth = last / first - 1
    print(f"growth from the first to the last of {wanted.cycles} cycles: {100 * growth:+.1f} % (aim: at most +5 %)\n")
    report("memory", states=found, growth=growth)


if __name__ == "__main__":
    main()
