"""Start to ready, memory at rest, and what ten killed workers cost four callers.

    python benchmarks/recovery.py [--kills 10]

Recovery is the time from `kill -9` of the model's worker to the next answer that a new request gets.
"""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time

import httpx
import numpy as np
import psutil
from common import STARTERS, memory, options, report, settled, started, table, total

MODEL = "all-minilm-l6-v2"
BODY = {"inputs": "A warm hearth on a cold evening.", "model": MODEL}


def main() -> None:
    wanted = options(__doc__, kills=10, patience=600.0)
    with started() as (url, process, ready_s), httpx.Client(base_url=url, timeout=60) as http:
        for name in STARTERS.split(","):  # at rest means that nothing is compiled any more
            settled(url, name, wanted.patience)
        time.sleep(2)
        sizes = memory(psutil.Process(process.pid))
        stop, failed, answered = threading.Event(), [], []

        def load() -> None:
            with httpx.Client(base_url=url, timeout=60) as mine:
                while not stop.is_set():
                    answer = mine.post("/embed/text", json=BODY)
                    (answered if right(answer) else failed).append(answer.text)

        known = np.array(http.post("/embed/text", json=BODY).json()["embeddings"][0])

        def right(answer: httpx.Response) -> bool:
            return answer.status_code == 200 and float(known @ np.array(answer.json()["embeddings"][0])) > 0.9999

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        recoveries = []
        for _ in range(wanted.kills):
            time.sleep(1)
            (worker,) = http.get(f"/models/{MODEL}").json()["workers"]
            os.kill(worker["pid"], signal.SIGKILL)
            killed = time.monotonic()
            assert right(http.post("/embed/text", json=BODY))
            recoveries.append(time.monotonic() - killed)
        stop.set()
        for thread in threads:
            thread.join()
    rows = [
        ["start to ready, s", f"{ready_s:.2f}"],
        ["memory at rest, MiB (PSS, all processes)", f"{total(sizes, 'pss'):.0f}"],
        *([f"  {name}", f"{size['pss']:.0f}"] for name, size in sizes.items()),
        [f"recovery, s: median of {wanted.kills}", f"{statistics.median(recoveries):.2f}"],
        ["recovery, s: worst", f"{max(recoveries):.2f}"],
        ["requests answered right / failed", f"{len(answered)} / {len(failed)}"],
    ]
    table(["", "measured"], rows)
    counts = {"answered": len(answered), "failed": len(failed)}
    report("recovery", ready_s=ready_s, memory_mib=sizes, recovery_s=recoveries, **counts)


if __name__ == "__main__":
    main()
