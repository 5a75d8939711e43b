"""Start to ready, memory at rest, and what ten killed workers cost four callers.

    python benchmarks/recovery.py [--kills 10] [--check]

Recovery is the time from `kill -9` of the model's worker until each caller has a right answer to a request that it sent after
it. A request that was lost, or answered wrong, ends the program with 1; with `--check`, so does a median above the bar of
bars.py.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import bars
import faults
import psutil
from callers import Callers, asked
from common import STARTERS, memory, options, report, settled, started, table, total

MODEL = "all-minilm-l6-v2"
BODY = {"inputs": "A warm hearth on a cold evening.", "model": MODEL}


def killed(server: int, load: Callers, kills: int) -> list[float]:
    """Seconds that each of the kills took to be recovered from."""
    recoveries = []
    for _ in range(kills):
        time.sleep(1)
        recoveries.append(load.felt(lambda: faults.kill(server, MODEL)))
    return recoveries


def main() -> None:
    wanted = options(__doc__, kills=10, patience=600.0, check=False)
    with started() as (url, process, ready_s):
        for name in STARTERS.split(","):  # at rest means that nothing is compiled any more
            settled(url, name, wanted.patience)
        time.sleep(2)
        sizes = memory(psutil.Process(process.pid))
        with Callers(url, [asked(url, "/embed/text", json.dumps(BODY).encode(), "application/json")]) as load:
            recoveries = killed(process.pid, load, wanted.kills)
    counts, median = load.counts, statistics.median(recoveries)
    rows = [
        ["start to ready, s", f"{ready_s:.2f}"],
        ["memory at rest, MiB (PSS, all processes)", f"{total(sizes, 'pss'):.0f}"],
        *([f"  {name}", f"{size['pss']:.0f}"] for name, size in sizes.items()),
        [f"recovery, s: median of {wanted.kills}", f"{median:.2f}"],
        ["recovery, s: worst", f"{max(recoveries):.2f}"],
        ["requests answered right / failed", f"{counts.right} / {counts.bad}"],
    ]
    table(["", "measured"], rows)
    for told in counts.told[:3]:
        print(f"failed: {told[:300]}", file=sys.stderr)
    report("recovery", ready_s=ready_s, memory_mib=sizes, recovery_s=recoveries, answered=counts.right, failed=counts.bad)
    figures = {"requests failed": counts.bad, "recovery, s: median": median}
    bars.hold(figures, bars.RECOVERY if wanted.check else bars.LOST)


if __name__ == "__main__":
    main()
