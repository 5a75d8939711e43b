"""How long a start takes: to the first answer, to ready, and to the faster compute; with and without what was compiled before.

    python benchmarks/cold.py [--models cifar-resnet,all-minilm-l6-v2,spoken-digits] [--rounds 3] [--patience 600]
                              [--check]

Each round takes a new HEARTH_HOME (cards of the given one are seen) and starts the server in it twice: cold, then warm. From the
start on, a caller asks the first model every 20 ms, another asks /health/ready, a third asks each model whether it has exchanged,
or kept, what computes. Files are in the system's page cache: this is no measure of the disk. With `--check`, a median time to
ready, warm, above the bar of bars.py ends the program with 1.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bars
import httpx
from bare import find
from common import STARTERS, computed_by, home, options, report, table
from inputs import Call, ask, item

PAUSE_S = 0.02
MOMENTS = ("first answer", "ready", "compute exchanged")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Watch:
    """Asks a starting server until it gives the right answer."""

    process: subprocess.Popen[bytes]
    patience_s: float
    start: float
    moments: dict[str, float] = field(default_factory=dict)

    def thread(self, name: str, reached: Callable[[], bool], pause_s: float) -> threading.Thread:
        """Note the seconds from the start until `reached`; NaN if that did not come."""

        def watch() -> None:
            self.moments[name] = float("nan")
            while self.process.poll() is None and time.monotonic() - self.start < self.patience_s:
                with suppress(httpx.HTTPError, KeyError):
                    if reached():
                        self.moments[name] = time.monotonic() - self.start
                        return
                time.sleep(pause_s)

        return threading.Thread(target=watch)


def one_start(folder: Path, names: list[str], call: Call, patience_s: float) -> tuple[dict[str, float], dict[str, str]]:
    """Start a server, time all moments, stop it."""
    port = free_port()
    ours = {"HOME": str(folder), "PORT": str(port), "PROFILE": "starter", "MODELS": ",".join(names)}
    environment = os.environ | {f"HEARTH_{name}": value for name, value in ours.items()}
    with tempfile.TemporaryFile() as log, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:

        def known() -> list[dict[str, Any]]:
            return [http.get(f"/models/{name}").raise_for_status().json() for name in names]

        start = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "app", "serve"], env=environment, stdout=log, stderr=log)
        watch = Watch(process, patience_s, start)
        threads = [
            watch.thread(MOMENTS[0], lambda: http.post(call.path, content=call.body).status_code == 200, PAUSE_S),
            watch.thread(MOMENTS[1], lambda: http.get("/health/ready").status_code == 200, PAUSE_S),
            watch.thread(MOMENTS[2], lambda: all("why" in model["meta"]["compute"] for model in known()), 10 * PAUSE_S),
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return watch.moments, {model["name"]: computed_by(model) for model in known()}
        finally:
            process.terminate()
            process.wait(60)


def main() -> None:
    wanted = options(__doc__, models=STARTERS, rounds=3, patience=600.0, check=False)
    names = wanted.models.split(",")
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    with home() as cards:
        card, files = find(names[0], cards)
        call = ask(card, item(card, files))
        for _ in range(wanted.rounds):
            with tempfile.TemporaryDirectory() as folder:
                if (cards / "models").exists():
                    Path(folder, "models").symlink_to(cards / "models")
                for state, rounds in found.items():
                    moments, computes = one_start(Path(folder), names, call, wanted.patience)
                    rounds.append(moments)
                    print(state, {name: round(seconds, 2) for name, seconds in moments.items()}, computes, file=sys.stderr)
    told(found, names, computes, check=wanted.check)


def told(rounds: dict[str, list[dict[str, float]]], names: list[str], computes: dict[str, str], *, check: bool) -> None:
    """Table, line, and the bar. `rounds`: cache cold or warm → seconds by moment, of each start."""
    middle = {
        state: {name: statistics.median(one[name] for one in starts) for name in MOMENTS} for state, starts in rounds.items()
    }
    rows = [[name, *(f"{middle[state][name]:.2f}" for state in rounds)] for name in MOMENTS]
    table([f"seconds from the start, {len(names)} models", *(f"{state} compute cache" for state in rounds)], rows)
    report("cold", models=names, computes=computes, median_s=middle, rounds=rounds)
    if check:
        bars.hold({"seconds to ready, warm compute cache": middle["warm"]["ready"]}, bars.COLD)


if __name__ == "__main__":
    main()
