"""How much of the bare model's throughput survives HTTP, decoding and batching: the kept share.

    python benchmarks/throughput.py [--models cifar-resnet,all-minilm-l6-v2,spoken-digits] [--seconds 3] [--rounds 3]
        [--clients 1,8,32,64] [--batches 1,8,16,32] [--precision fp32] [--patience 600]

Closed loop: each of N clients sends its next request when the last one was answered. Beside it, never at the same time, a bare
loop in this process decodes and runs batches of the same input with the very compute that the server chose, on as many threads.
The rounds go in turns through all of it; medians. Kept share: the server's requests/s over the best bare loop's. Speech has few
clients and small batches: 1, 4, 8. A model may be named with a size (benchmarks/inputs.py), for example `bench-bert-base@384`.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

import load
from bare import Bare
from common import STARTERS, computed_by, home, options, report, serving, settled, table
from inputs import Call, ask, item, named

SPEECH = (1, 4, 8)


def measure(url: str, bare: Bare, call: Call, wanted: Any) -> dict[str, Any]:
    """Rounds of all clients and all batch sizes, in turns."""
    speech = bare.card.task == "speech-recognition"
    clients = SPEECH if speech else [int(n) for n in wanted.clients.split(",")]
    batches = SPEECH if speech else [int(n) for n in wanted.batches.split(",")]
    served, alone, p50, p99 = (defaultdict(list) for _ in range(4))
    for number in range(wanted.rounds + 1):
        seconds = wanted.seconds if number else min(1.0, wanted.seconds)  # round 0 warms up: kernels for each shape, sockets
        for count in clients:
            answers = load.run(url, [call.raw(url)], clients=count, seconds=seconds)
            assert not answers.failed(), f"{answers.failed()} of {len(answers.all)} answers were not 200"
            if number:
                served[count].append(answers.rate())
                for kept, ms in zip((p50, p99), answers.ms(0.50, 0.99), strict=True):
                    kept[count].append(ms)
        for batch in batches:
            rate = bare.rate([call.item], batch, seconds)
            if number:
                alone[batch].append(rate)
    middle = [{n: statistics.median(values) for n, values in one.items()} for one in (served, alone, p50, p99)]
    best = max(middle[1].values())
    figures = dict(zip(("served_rps", "bare_rps", "p50_ms", "p99_ms"), middle, strict=True))
    return figures | {
        "kept": {count: rate / best for count, rate in middle[0].items()},
        "rounds": {"served": served, "bare": alone},
    }


def show(model: str, found: dict[str, Any]) -> None:
    best = max(found["bare_rps"], key=found["bare_rps"].get)
    rows = [
        [
            str(count),
            f"{rate:.1f}",
            f"{found['p50_ms'][count]:.1f}",
            f"{found['p99_ms'][count]:.1f}",
            f"{100 * found['kept'][count]:.0f} %",
        ]
        for count, rate in found["served_rps"].items()
    ]
    print(f"{model} ({found['compute']}): bare loop, items/s by batch size, best at {best}:", end=" ")
    print(" · ".join(f"{batch}: {rate:.1f}" for batch, rate in found["bare_rps"].items()))
    table(["clients", "requests/s", "p50, ms", "p99, ms", "kept"], rows)


def main() -> None:
    wanted = options(
        __doc__,
        models=STARTERS,
        seconds=3.0,
        rounds=3,
        clients="1,8,32,64",
        batches="1,8,16,32",
        precision="",
        patience=600.0,
    )
    found = {}
    for model in wanted.models.split(","):
        name, size = named(model)
        with home() as folder, serving(home=str(folder), models=name, precision=wanted.precision) as url:
            known = settled(url, name, wanted.patience)
            bare = Bare(name, folder, known)
            call = ask(bare.card, item(bare.card, bare.files, size))
            found[model] = measure(url, bare, call, wanted) | {"compute": computed_by(known), "device": bare.device}
        show(model, found[model])
    report("throughput", models=found)


if __name__ == "__main__":
    main()
