"""Start to ready, memory at rest, and what ten killed workers cost four callers.

    python benchmarks/recovery.py [--kills 10] [--check]

Recovery is the time from `kill -9` of the model's worker to the next answer that a new request gets. A request that was lost, or
answered wrong, ends the program with 1; with `--check`, so does a median above the bar of bars.py.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

import bars
import httpx
import numpy as np
import psutil
from common import STARTERS, memory, options, report, settled, started, table, total

MODEL = "all-minilm-l6-v2"
BODY = {"inputs": "A warm hearth on a cold evening.", "model": MODEL}


class Callers:
    """Threads that ask until the block ends. Nothing that they get ends one of them: it is counted, as right or as failed."""

    def __init__(self, client: Callable[[], httpx.Client], known: np.ndarray, count: int = 4) -> None:
        """`known`: the right answer, an embedding of length 1."""
        self.right = 0
        self.failed: list[str] = []
        self._client = client
        self._known = known
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def ask(self, http: httpx.Client) -> bool:
        """One request, counted: whether it was answered right."""
        try:
            answer = http.post("/embed/text", json=BODY)
            right = answer.status_code == 200 and self._is_right(answer)
            said = answer.text
        except Exception as error:  # noqa: BLE001  no answer, or one that is none: both are failures
            right, said = False, repr(error)
        with self._lock:
            self.right += right
            self.failed += [] if right else [said]
        return right

    def _is_right(self, answer: httpx.Response) -> bool:
        return float(self._known @ np.array(answer.json()["embeddings"][0])) > 0.9999

    def _run(self) -> None:
        with self._client() as mine:
            while not self._stop.is_set():
                self.ask(mine)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def killed(http: httpx.Client, load: Callers, kills: int) -> list[float]:
    """Seconds that each of the kills took to be recovered from; infinity where the next request failed."""
    recoveries = []
    for _ in range(kills):
        time.sleep(1)
        (worker,) = http.get(f"/models/{MODEL}").json()["workers"]
        os.kill(worker["pid"], signal.SIGKILL)
        start = time.monotonic()
        recoveries.append(time.monotonic() - start if load.ask(http) else float("inf"))
    return recoveries


def main() -> None:
    wanted = options(__doc__, kills=10, patience=600.0, check=False)
    with started() as (url, process, ready_s), httpx.Client(base_url=url, timeout=60) as http:
        for name in STARTERS.split(","):  # at rest means that nothing is compiled any more
            settled(url, name, wanted.patience)
        time.sleep(2)
        sizes = memory(psutil.Process(process.pid))
        known = np.array(http.post("/embed/text", json=BODY).raise_for_status().json()["embeddings"][0])
        with Callers(lambda: httpx.Client(base_url=url, timeout=60), known) as load:
            recoveries = killed(http, load, wanted.kills)
    median, failed = statistics.median(recoveries), len(load.failed)
    rows = [
        ["start to ready, s", f"{ready_s:.2f}"],
        ["memory at rest, MiB (PSS, all processes)", f"{total(sizes, 'pss'):.0f}"],
        *([f"  {name}", f"{size['pss']:.0f}"] for name, size in sizes.items()),
        [f"recovery, s: median of {wanted.kills}", f"{median:.2f}"],
        ["recovery, s: worst", f"{max(recoveries):.2f}"],
        ["requests answered right / failed", f"{load.right} / {failed}"],
    ]
    table(["", "measured"], rows)
    for said in load.failed[:3]:
        print(f"failed: {said[:300]}", file=sys.stderr)
    report("recovery", ready_s=ready_s, memory_mib=sizes, recovery_s=recoveries, answered=load.right, failed=failed)
    figures = {"requests failed": failed, "recovery, s: median": median}
    bars.hold(figures, bars.RECOVERY if wanted.check else bars.LOST)


if __name__ == "__main__":
    main()
