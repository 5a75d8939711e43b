"""Start to ready, memory at rest, and what ten killed workers cost four callers.

    python benchmarks/recovery.py [--kills 10]

Recovery is the time from `kill -9` of the model's worker to the next answer that a new request gets.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import threading
import time

import httpx
import psutil
from common import machine, started, table

MODEL = "all-minilm-l6-v2"
BODY = {"inputs": "A warm hearth on a cold evening.", "model": MODEL}


def resident(process: psutil.Process) -> dict[str, float]:
    """MiB per process: what is its own plus its share of what is shared (PSS)."""
    found = {}
    for one in (process, *process.children(recursive=True)):
        found[one.name()] = round(one.memory_full_info().pss / 2**20, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    with started() as (url, process, ready_s), httpx.Client(base_url=url, timeout=60) as http:
        time.sleep(2)
        memory = resident(psutil.Process(process.pid))
        stop, failed, answered = threading.Event(), [], []

        def load() -> None:
            with httpx.Client(base_url=url, timeout=60) as mine:
                while not stop.is_set():
                    answer = mine.post("/embed/text", json=BODY)
                    (answered if answer.status_code == 200 else failed).append(answer.text)

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        recoveries = []
        for _ in range(options.kills):
            time.sleep(1)
            (worker,) = http.get(f"/models/{MODEL}").json()["workers"]
            os.kill(worker["pid"], signal.SIGKILL)
            killed = time.monotonic()
            assert http.post("/embed/text", json=BODY).status_code == 200
            recoveries.append(time.monotonic() - killed)
        stop.set()
        for thread in threads:
            thread.join()
    total = sum(memory.values())
    rows = [
        ["start to ready, s", f"{ready_s:.2f}"],
        ["memory at rest, MiB (PSS, all processes)", f"{total:.0f}"],
        *([f"  {name}", f"{size:.0f}"] for name, size in memory.items()),
        [f"recovery, s: median of {options.kills}", f"{statistics.median(recoveries):.2f}"],
        ["recovery, s: worst", f"{max(recoveries):.2f}"],
        ["requests answered right / failed", f"{len(answered)} / {len(failed)}"],
    ]
    table(["", "measured"], rows)
    line = {"benchmark": "recovery", **machine(), "ready_s": ready_s, "memory_mib": memory, "recovery_s": recoveries}
    print(json.dumps(line | {"answered": len(answered), "failed": len(failed)}))


if __name__ == "__main__":
    main()
