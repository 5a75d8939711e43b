"""Latency under honest load, and manners under too much of it.

    python benchmarks/latency.py [--models all-minilm-l6-v2] [--seconds 20] [--clients 64] [--shares 0.6,0.9]
        [--over 2] [--timeout-ms 2000] [--precision fp32] [--patience 600]

First the capacity: a closed loop. Then an open loop: Poisson arrivals at shares of that capacity; latency counts from the time a
request was due, not from when it could be sent. Aim: a small p99/p50. Then overload: arrivals at twice the capacity, each with a
deadline. Aims: what is accepted (200) keeps its deadline, a refusal (503) takes 20 ms at the 99th percentile, from when the
generator came to send it, and Retry-After is true: one in ten of the refused asks again after just that time, once. While the
overload lasts no server can let all of them in; those that come when it is over must get in.
"""

from __future__ import annotations

from typing import Any

import load
from bare import find
from common import computed_by, home, options, report, serving, settled, table
from inputs import ask, item, named

QUANTILES = (0.50, 0.95, 0.99)
SOCKETS = 8000  # in overload everything that waits holds one


def open_loop(url: str, raw: bytes, capacity: float, wanted: Any) -> dict[str, Any]:
    """Latency at each share of the capacity."""
    found = {}
    for share in (float(one) for one in wanted.shares.split(",")):
        answers = load.run(url, [raw], rate=share * capacity, seconds=wanted.seconds)
        p50, p95, p99 = answers.ms(*QUANTILES)
        late = load.quantile([1000 * (one.sent - one.due) for one in answers.all], 0.99)
        found[str(share)] = {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "p99_over_p50": p99 / p50} | {
            "rate": share * capacity,
            "answers": len(answers.all),
            "failed": answers.failed(),
            "sent_late_p99_ms": late,  # the generator's own lateness, which the latencies hold too
        }
    return found


def overload(url: str, raw: bytes, capacity: float, wanted: Any) -> dict[str, Any]:
    """Accepted, refused and late at a multiple of the capacity."""
    plan = {"rate": wanted.over * capacity, "seconds": wanted.seconds, "connections": SOCKETS, "retry_every": 10}
    answers = load.run(url, [raw], **plan)
    asked = [answer for answer in answers.all if not answer.retry]
    again = [answer for answer in answers.all if answer.retry]
    during = [answer.status == 200 for answer in again if answer.due < wanted.seconds]
    after = [answer.status == 200 for answer in again if answer.due >= wanted.seconds]
    statuses = {str(status): sum(one.status == status for one in asked) for status in sorted({one.status for one in asked})}
    given = [answer.retry_after for answer in answers.of(503) if answer.retry_after is not None]
    return {
        "rate": wanted.over * capacity,
        "good_rps": len(answers.of(200)) / wanted.seconds,
        "deadline_ms": wanted.timeout_ms,
        "accepted_p99_ms": answers.ms(0.99)[0],
        "statuses": statuses,
        "share_503": statuses.get("503", 0) / max(1, len(asked)),
        "late": statuses.get("504", 0),
        "refused_p99_ms": load.quantile([1000 * (one.done - one.left) for one in answers.of(503)], 0.99),
        "refused_with_retry_after": len(given) / max(1, statuses.get("503", 0)),
        "retry_after_s": sorted(set(given)),
        "retries_during": [sum(during), len(during)],
        "retries_after": [sum(after), len(after)],
    }


def show(model: str, found: dict[str, Any], wanted: Any) -> None:
    print(f"{model} ({found['compute']}): capacity {found['capacity_rps']:.1f} requests/s at {wanted.clients} clients")
    keys = ("rate", "p50_ms", "p95_ms", "p99_ms", "p99_over_p50", "failed")
    rows = [[f"{100 * float(share):.0f} %", *(f"{one[key]:.1f}" for key in keys)] for share, one in found["open"].items()]
    table(["of capacity", "requests/s", "p50, ms", "p95, ms", "p99, ms", "p99/p50", "failed"], rows)
    over = found["overload"]
    rows = [
        ["requests/s offered / answered 200", f"{over['rate']:.0f} / {over['good_rps']:.0f}"],
        ["answers by status", ", ".join(f"{status}: {count}" for status, count in over["statuses"].items())],
        ["p99 of 200, ms / deadline", f"{over['accepted_p99_ms']:.0f} / {over['deadline_ms']}"],
        ["accepted, but its deadline passed (504)", str(over["late"])],
        ["refused with 503", f"{100 * over['share_503']:.0f} %"],
        ["p99 of a 503, ms (aim 20)", f"{over['refused_p99_ms']:.1f}"],
        ["Retry-After, s", ", ".join(f"{seconds:g}" for seconds in over["retry_after_s"]) or "none"],
        [
            "retries answered 200, overload going on / over",
            " · ".join("{}/{}".format(*over[f"retries_{w}"]) for w in ("during", "after")),
        ],
    ]
    table([f"{wanted.over:g} x capacity", "measured"], rows)


def main() -> None:
    wanted = options(
        __doc__,
        models="all-minilm-l6-v2",
        seconds=20.0,
        clients=64,
        shares="0.6,0.9",
        over=2.0,
        timeout_ms=2000,
        precision="",
        patience=600.0,
    )
    found = {}
    for model in wanted.models.split(","):
        name, size = named(model)
        with home() as folder, serving(home=str(folder), models=name, precision=wanted.precision) as url:
            compute = computed_by(settled(url, name, wanted.patience))
            card, files = find(name, folder)
            what = item(card, files, size)
            plain, bounded = (ask(card, what, timeout_ms).raw(url) for timeout_ms in (0, wanted.timeout_ms))
            load.run(url, [plain], clients=wanted.clients, seconds=min(2.0, wanted.seconds))
            capacity = load.run(url, [plain], clients=wanted.clients, seconds=wanted.seconds).rate()
            parts = {"open": open_loop(url, plain, capacity, wanted), "overload": overload(url, bounded, capacity, wanted)}
            found[model] = {"compute": compute, "capacity_rps": capacity, **parts}
        show(model, found[model], wanted)
    report("latency", models=found)


if __name__ == "__main__":
    main()
