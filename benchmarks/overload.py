"""More than there is room for: 1, 2 and 10 times the capacity, bursts, bulk beside interactive, one greedy caller among many.

    python benchmarks/overload.py [--model all-minilm-l6-v2] [--seconds 20] [--timeout-ms 2000] [--patience 600] [--check]

First the capacity, by a closed loop. Then open loops (Poisson), each request with a deadline; latency counts from when a request
was due. Goodput is answers 200 within the deadline, a second. One in ten of the refused asks again after just the time that it
was told; those whose time comes when the overload is over must get in. With `--check`, a bar that is missed ends it with 1.
"""

from __future__ import annotations

import json
import time
from typing import Any

import bars
import load
from bare import find
from common import computed_by, home, options, report, serving, settled, table
from inputs import Call, ask, item
from latency import SOCKETS

TIMES = (1, 2, 10)
_BURSTS = 3
_BURST_S = 1.0
_BULK = 32  # inputs in a request
_GREEDY = 64  # sockets of one caller, beside eight callers with one each


def flood(url: str, raw: bytes, rate: float, seconds: float, deadline_ms: float) -> dict[str, Any]:
    """What came of an open loop."""
    answers = load.run(url, [raw], rate=rate, seconds=seconds, connections=SOCKETS, retry_every=10)
    in_time = [one for one in answers.of(200) if 1000 * (one.done - one.due) <= deadline_ms]
    later = [one.status == 200 for one in answers.all if one.retry and one.due >= seconds]
    refused = answers.of(503)
    (p99,), (no_p50, no_p99) = answers.ms(0.99), answers.ms(0.5, 0.99, statuses=(503,))
    return {
        "offered_rps": rate,
        "goodput_rps": len(in_time) / seconds,
        "accepted_p99_ms": p99,
        "refused": len(refused),
        "refused_p50_ms": no_p50,
        "refused_p99_ms": no_p99,
        "no_retry_after": sum(one.retry_after is None for one in refused),
        "late": len(answers.of(504)),
        "no_answer": len(answers.of(0)),
        "came_back": len(later),
        "let_in": sum(later),
    }


def bursts(url: str, raw: bytes, capacity: float, deadline_ms: float) -> dict[str, Any]:
    """A second at ten times the capacity, then as long nothing."""
    found = []
    for _ in range(_BURSTS):
        found.append(flood(url, raw, 10 * capacity, _BURST_S, deadline_ms))
        time.sleep(_BURST_S)
    return max(found, key=lambda one: one["accepted_p99_ms"])


def beside(url: str, calls: list[Call], capacity: float, seconds: float) -> dict[str, Any]:
    """Single texts at a tenth of the capacity: alone, beside callers who send many at once, and beside one who never stops."""
    single, bulk = (call.raw(url) for call in calls)
    found = {}
    for name, plan in {"alone": None, "bulk": {"clients": 4}, "greedy": {"clients": _GREEDY}}.items():
        other = load.begin(url, [bulk if name == "bulk" else single], seconds=seconds, **plan) if plan else None
        answers = load.run(url, [single], rate=0.1 * capacity, seconds=seconds)
        p50, p99 = answers.ms(0.5, 0.99)
        found[name] = {"p50_ms": p50, "p99_ms": p99, "answered": 1 - answers.failed() / max(1, len(answers.all))}
        if other is not None:
            found[name]["other_rps"] = load.finish(other).rate()
    return found


def bulk_of(call: Call) -> Call:
    """The same text many times in one request."""
    body = json.loads(call.body)
    return Call(call.path, json.dumps(body | {"inputs": [body["inputs"]] * _BULK}).encode(), call.item)


def main() -> None:
    wanted = options(__doc__, model="all-minilm-l6-v2", seconds=20.0, timeout_ms=2000, patience=600.0, check=False)
    with home() as folder, serving(home=str(folder), models=wanted.model) as url:
        compute = computed_by(settled(url, wanted.model, wanted.patience))
        card, files = find(wanted.model, folder)
        what = item(card, files)
        plain, bounded = ask(card, what), ask(card, what, wanted.timeout_ms).raw(url)
        load.run(url, [plain.raw(url)], clients=64, seconds=2)
        capacity = load.run(url, [plain.raw(url)], clients=64, seconds=wanted.seconds).rate()
        floods = {f"{n} x": flood(url, bounded, n * capacity, wanted.seconds, wanted.timeout_ms) for n in TIMES}
        floods["bursts"] = bursts(url, bounded, capacity, wanted.timeout_ms)
        neighbours = beside(url, [plain, bulk_of(plain)], capacity, wanted.seconds)
    show(f"{wanted.model} ({compute}): capacity {capacity:.0f} requests/s", floods, neighbours)
    report("overload", model=wanted.model, compute=compute, capacity_rps=capacity, floods=floods, beside=neighbours)
    if wanted.check:
        bars.hold(figures(floods, wanted.timeout_ms), bars.OVERLOAD)


def figures(floods: dict[str, Any], deadline_ms: float) -> dict[str, float]:
    """What bars.py holds."""
    over = [floods[name] for name in ("2 x", "10 x", "bursts")]
    came = sum(one["came_back"] for one in over)
    return {
        "accepted p99 over the deadline": max(one["accepted_p99_ms"] for one in over) / deadline_ms,
        "refused, p99 in ms": max(one["refused_p99_ms"] for one in over if one["refused"]),
        "refused without Retry-After": sum(one["no_retry_after"] for one in over),
        "let in of those who came back": sum(one["let_in"] for one in over) / came if came else 1.0,
        "goodput at 10 x over that at 1 x": floods["10 x"]["goodput_rps"] / floods["1 x"]["goodput_rps"],
    }


def show(title: str, floods: dict[str, Any], neighbours: dict[str, Any]) -> None:
    print(title)
    keys = ("offered_rps", "goodput_rps", "accepted_p99_ms", "refused_p50_ms", "refused_p99_ms", "late", "no_answer")
    rows = [[name, *(f"{one[key]:.1f}" for key in keys), f"{one['let_in']}/{one['came_back']}"] for name, one in floods.items()]
    heads = ["", "offered/s", "goodput/s", "p99 of 200", "p50 of 503", "p99 of 503", "504", "none", "came back, let in"]
    table(heads, rows)
    rows = [
        [name, f"{one['p50_ms']:.1f}", f"{one['p99_ms']:.1f}", f"{one['answered']:.1%}", f"{one.get('other_rps', 0):.0f}"]
        for name, one in neighbours.items()
    ]
    table(["single texts at 0.1 x capacity", "p50, ms", "p99, ms", "answered", "the others' requests/s"], rows)


if __name__ == "__main__":
    main()
