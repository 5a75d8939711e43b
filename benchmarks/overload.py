"""More than there is room for: 1, 2 and 10 times the capacity, bursts, bulk beside interactive, one greedy caller among many.

    python benchmarks/overload.py [--model bench-bert-base@128] [--seconds 20] [--rounds 8] [--timeout-ms 2000] [--patience 600]
                                  [--check]

First the capacity, by a closed loop. Then open loops (Poisson) of twelve seconds, in turns that each begin with another one,
each request with a deadline; latency counts from when a request was due, that of a refusal from when the generator came to send
it: it sleeps too long by some milliseconds where others have the cores, which is told beside it. Goodput is answers 200 within
the deadline, a second, while a flood goes on and after its first two seconds, in three quarters of that time, which begin later
with each round (answers come in batches, at much the same moments of each flood); of the rounds, the mean. One in twenty of the
refused, in bursts one in ten, at twice the capacity one in five (of slow models more), asks again after just the time that it
was told; of those whose time comes when the overload is over, twenty at least of each kind of flood, 95 % must get in. (At ten
times the capacity they come half as fast as they are answered, once the flood has lasted longer than anyone may be told to
wait; one in ten would come as fast as they are answered, and now and then one find the queue full. If all came back, most
would.) Last, a server with keys: one caller sends ten times the capacity with a key that has a quarter of the queue, and
another must not feel it.

The load comes from the same cores, and costs goodput, whoever refuses it: at ten times the capacity, goodput is held to that at
once the capacity, and to that at twice the capacity while the eight others are refused elsewhere, by the smallest application
that uvicorn can run. What it is of the better of those at one and two times is told beside it. A request that is refused takes
0.18 ms of a core, 0.11 in the server and 0.07 in the generator (results/2026-11-30h.md): of BERT-base's 360 a second that is 3 %
of two cores, of 1,000 to MiniLM (`all-minilm-l6-v2@256`) 9 %, of its 2,250 (`@128`) 20 %; somewhat more is lost. Its 3,400 short
ones are more than two cores can read, whatever they answer. With `--check`, a missed bar ends it with 1.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import bars
import load
from bare import find
from common import computed_by, home, options, report, serving, settled, table
from inputs import Call, ask, item, named
from latency import SOCKETS
from refusing import refusing

from app import keys

TEN = "10 x"
ELSEWHERE = "2 x, 8 x elsewhere"
KINDS = {"1 x": 1, "2 x": 2, TEN: 2, ELSEWHERE: 2}  # times the capacity that are asked of our server
_OTHERS = 8  # times the capacity from a second generator, of the two last
_FEWEST = 20  # that came back: of fewer, a share says nothing
_BURSTS = 3
_BURST_S = 1.0
_BULK = 32  # inputs in a request
_GREEDY = 64  # sockets of one caller who sends again at once
_USUAL_MS = 30_000.0  # HEARTH_TIMEOUT_S: the deadline of who names none
_SHARES = {"greedy": 0.25, "modest": 1.0}  # name of a key → its share of the queue


def bursts(url: str, raw: bytes, rate: float, seconds: float, times: int) -> list[load.Answers]:
    """Floods, with a pause as long as each between them."""
    plan = {"rate": rate, "seconds": seconds, "connections": SOCKETS, "retry_every": max(1, min(10, round(rate / 15)))}
    found = []
    for turn in range(times):
        if turn:
            time.sleep(seconds)
        found.append(load.run(url, [raw], seed=turn, **plan))
    return found


def by_turns(url: str, raw: bytes, capacity: float, seconds: float, rounds: int, deadline_ms: float) -> dict[str, Any]:
    """Floods of 1, 2 and 10 times the capacity, and of twice that while eight times as many are refused elsewhere.

    Within four rounds each comes once after each other one. Eight of ten parts have a generator of their own, wherever they go.
    """
    found: dict[str, list[load.Answers]] = {kind: [] for kind in KINDS}
    comparable = True
    with refusing() as nobody:
        goals = {TEN: url, ELSEWHERE: nobody}
        for turn in range(rounds):
            for place in (0, 1, 3, 2):
                kind = list(KINDS)[(place + turn) % len(KINDS)]
                every = 20 if kind in goals else max(1, min(5, round(capacity / 3)))
                plan = {"seconds": seconds, "connections": SOCKETS, "retry_every": every}
                beside = kind in goals and load.begin(goals[kind], [raw], rate=_OTHERS * capacity, seed=100 + turn, **plan)
                found[kind].append(load.run(url, [raw], rate=KINDS[kind] * capacity, seed=turn, **plan))
                others = load.finish(beside) if beside else load.Answers([])
                if kind == TEN:
                    found[kind][-1] = load.Answers([*found[kind][-1].all, *others.all])
                elif kind == ELSEWHERE:
                    comparable &= _refused_elsewhere(others, _OTHERS * capacity * seconds)
    rates = {kind: (times + _OTHERS * (kind == TEN)) * capacity for kind, times in KINDS.items()}
    floods = {kind: told(each, rates[kind], seconds, deadline_ms) for kind, each in found.items()}
    if not comparable:
        floods[ELSEWHERE]["goodput_rps"] = math.nan
    return floods


def _refused_elsewhere(answers: load.Answers, about: float) -> bool:
    """Whether that flood was what ours is compared with; if not, what it was is printed."""
    refused, first = len(answers.of(503)), [one for one in answers.all if not one.retry]
    late_ms = load.quantile([1000 * (one.left - one.due) for one in first], 0.99)
    overslept = bars.OVERLOAD["the generator overslept, p99 in ms"].missed_by(late_ms)
    if 0.8 * about < len(first) < 1.2 * about and refused >= 0.99 * len(first) and not overslept:
        return True
    print(f"elsewhere {refused} of {len(first)} were refused, {about:.0f} planned, sent {late_ms:.0f} ms late (p99)")
    return False


def told(floods: Sequence[load.Answers], rate: float, seconds: float, deadline_ms: float) -> dict[str, Any]:
    """What came of floods of one kind, each of so many seconds.

    Accepted is what was not refused (503): one that timed out (504), failed or got no answer was never in time. Goodput counts
    what was answered in three quarters of the time in which the flood went on, after its first deadline: neither the queue's
    filling nor its emptying. They begin later with each flood.
    """
    warm = min(deadline_ms / 1000, seconds / 2)
    counted, later = 0.75 * (seconds - warm), 0.25 * (seconds - warm) / len(floods)
    every = [one for answers in floods for one in answers.all]
    asked = [one for one in every if not one.retry]
    again = {late: [one.status == 200 for one in every if one.retry and (one.due >= seconds) is late] for late in (False, True)}
    accepted_ms = [1000 * (one.done - one.due) if one.status == 200 else math.inf for one in asked if one.status != 503]
    refused = [one for one in asked if one.status == 503]
    refused_ms = [1000 * (one.done - one.left) for one in refused]
    in_time = [[a for a in answers.all if a.status == 200 and 1000 * (a.done - a.due) <= deadline_ms] for answers in floods]
    goodput = [sum(0 <= one.done - warm - n * later < counted for one in each) / counted for n, each in enumerate(in_time)]
    return {
        "offered_rps": rate,
        "goodput_rps": statistics.mean(goodput),
        "each_rps": goodput,
        "accepted_p99_ms": load.quantile(accepted_ms, 0.99),
        "refused": len(refused),
        "refused_p50_ms": load.quantile(refused_ms, 0.5),
        "refused_p99_ms": load.quantile(refused_ms, 0.99),
        "overslept_p99_ms": load.quantile([1000 * (one.left - one.due) for one in refused], 0.99),
        "no_retry_after": sum(one.retry_after is None for one in refused),
        "late": sum(one.status == 504 or (one.status == 200 and 1000 * (one.done - one.due) > deadline_ms) for one in every),
        "lost": sum(one.status not in (200, 503, 504) for one in every),
        "came_back": len(again[True]),
        "let_in": sum(again[True]),
        "came_back_meanwhile": len(again[False]),
        "let_in_meanwhile": sum(again[False]),
    }


def beside(url: str, calls: list[Call], capacity: float, seconds: float) -> dict[str, Any]:
    """Single texts at a tenth of the capacity: alone, beside callers who send many at once, and beside one who never stops."""
    single, bulk = (call.raw(url) for call in calls)
    others = {"alone": None, "bulk": (bulk, 4), "greedy": (single, _GREEDY)}
    found = {name: _single(url, single, 0.1 * capacity, seconds, other) for name, other in others.items()}
    return {name: one | {"deadline_ms": _USUAL_MS} for name, one in found.items()}


def shared(url: str, call: Call, keys: dict[str, str], capacity: float, seconds: float, deadline_ms: float) -> dict[str, Any]:
    """One caller sends ten times the capacity, with a key whose share is a quarter of the queue; another, with a key of no
    bounds, a tenth of the capacity.
    """
    raw = {name: call.raw(url, key) for name, key in keys.items()}
    greedy = load.begin(url, [raw["greedy"]], rate=10 * capacity, seconds=seconds, connections=SOCKETS)
    found = _single(url, raw["modest"], 0.1 * capacity, seconds, None)
    answers = load.finish(greedy)
    refused = answers.of(429)
    return found | {
        "other_rps": answers.rate(),
        "other_refused": len(refused),
        "refused_p99_ms": load.quantile([1000 * (one.done - one.left) for one in refused], 0.99),
        "no_retry_after": sum(one.retry_after is None for one in refused),
        "deadline_ms": deadline_ms,
    }


def _single(url: str, raw: bytes, rate: float, seconds: float, other: tuple[bytes, int] | None) -> dict[str, Any]:
    beside = load.begin(url, [other[0]], seconds=seconds, clients=other[1]) if other else None
    answers = load.run(url, [raw], rate=rate, seconds=seconds)
    p50, p99 = answers.ms(0.5, 0.99)
    failed = [answer.status for answer in answers.all if answer.status != 200]
    found = {"p50_ms": p50, "p99_ms": p99, "answered": 1 - len(failed) / max(1, len(answers.all)), "failed": failed}
    if not beside:
        return found
    others = load.finish(beside)
    return found | {"other_rps": others.rate(), "other_late": len(others.of(504))}


def bulk_of(call: Call) -> Call:
    """The same text many times in one request."""
    body = json.loads(call.body)
    return Call(call.path, json.dumps(body | {"inputs": [body["inputs"]] * _BULK}).encode(), call.item)


def main() -> None:
    wanted = options(__doc__, model="bench-bert-base@128", seconds=20.0, rounds=8, timeout_ms=2000, patience=600.0, check=False)
    with home() as folder, tempfile.TemporaryDirectory() as private:
        name, size = named(wanted.model)
        with serving(home=str(folder), models=name) as url:
            compute = computed_by(settled(url, name, wanted.patience))
            card, files = find(name, folder)
            what = item(card, files, size)
            plain, bounded = ask(card, what), ask(card, what, wanted.timeout_ms)
            load.run(url, [plain.raw(url)], clients=64, seconds=2)
            capacity = load.run(url, [plain.raw(url)], clients=64, seconds=wanted.seconds).rate()
            raw = bounded.raw(url)
            floods = by_turns(url, raw, capacity, 0.6 * wanted.seconds, wanted.rounds, wanted.timeout_ms)
            most = 10 * capacity
            floods["bursts"] = told(bursts(url, raw, most, _BURST_S, _BURSTS), most, _BURST_S, wanted.timeout_ms)
            neighbours = beside(url, [plain, bulk_of(plain)], capacity, wanted.seconds)
        file = Path(private) / "keys"
        made = {name: keys.add(file, name, "infer", share=share)[1] for name, share in _SHARES.items()}
        with serving(home=str(folder), models=name, keys_file=str(file)) as url:
            load.run(url, [plain.raw(url, made["modest"])], clients=8, seconds=2)  # the same home: what computes is known
            neighbours["greedy, with a share"] = shared(url, bounded, made, capacity, wanted.seconds, wanted.timeout_ms)
    show(f"{wanted.model} ({compute}): capacity {capacity:.0f} requests/s", floods, neighbours)
    found = figures(floods, neighbours, wanted.timeout_ms)
    table(["", "measured"], [[name, f"{value:.3g}"] for name, value in found.items()])
    told_of = {"model": wanted.model, "compute": compute, "capacity_rps": capacity}
    report("overload", **told_of, figures=found, floods=floods, beside=neighbours)
    if wanted.check:
        bars.hold(found, bars.OVERLOAD)


def figures(floods: dict[str, Any], neighbours: dict[str, Any], deadline_ms: float) -> dict[str, float]:
    """What bars.py holds. NaN, which holds nothing, where something was not measured."""
    over = [floods[name] for name in ("2 x", "10 x", "bursts")]
    refusing = [*over, neighbours["greedy, with a share"]]
    back = [one["let_in"] / one["came_back"] if one["came_back"] >= _FEWEST else math.nan for one in over]
    usual, double, most, beside = (floods[kind]["goodput_rps"] for kind in KINDS)
    return {
        "accepted p99 over the deadline": _worst(one["accepted_p99_ms"] / deadline_ms for one in floods.values()),
        "accepted, but too late": sum(one["late"] for one in floods.values()),
        "without an answer, or with an error": sum(one["lost"] for one in floods.values()),
        "refused, p99 in ms": _worst(one["refused_p99_ms"] for one in refusing),
        "refused without Retry-After": sum(one["no_retry_after"] for one in refusing),
        "let in of those who came back": -_worst(-share for share in back),
        "the generator overslept, p99 in ms": _worst(one["overslept_p99_ms"] for one in over),
        "goodput at 10 x over that at 1 x": most / usual if usual else math.nan,
        "goodput at 10 x over the better of 1 x and 2 x": most / max(usual, double) if usual else math.nan,
        f"goodput at 10 x over that at {ELSEWHERE}": most / beside if beside else math.nan,
        "single texts answered beside others": min(one["answered"] for one in neighbours.values()),
        "others too late that were let in": sum(one.get("other_late", 0) for one in neighbours.values()),
        "their p99 over the deadline": _worst(one["p99_ms"] / one["deadline_ms"] for one in neighbours.values()),
        "refused of the greedy one with a share": neighbours["greedy, with a share"]["other_refused"],
    }


def _worst(values: Iterable[float]) -> float:
    """The largest; NaN if one of them is."""
    return max(values, key=lambda value: math.inf if math.isnan(value) else value)


def show(title: str, floods: dict[str, Any], neighbours: dict[str, Any]) -> None:
    print(title)
    keys = (
        "offered_rps",
        "goodput_rps",
        "accepted_p99_ms",
        "refused_p50_ms",
        "refused_p99_ms",
        "overslept_p99_ms",
        "late",
        "lost",
    )
    rows = [
        [
            name,
            *(f"{one[key]:.1f}" for key in keys),
            *(f"{one[f'let_in{at}']}/{one[f'came_back{at}']}" for at in ("", "_meanwhile")),
        ]
        for name, one in floods.items()
    ]
    waits = ["p99 of accepted", "p50 of 503", "p99 of 503", "overslept, p99"]
    heads = ["", "offered/s", "goodput/s", *waits, "late", "lost", "let in of those who came back", "while it lasted"]
    table(heads, rows)
    rows = [
        [name, f"{one['p50_ms']:.1f}", f"{one['p99_ms']:.1f}", f"{one['answered']:.1%}", f"{one.get('other_rps', 0):.0f}"]
        for name, one in neighbours.items()
    ]
    table(["single texts at 0.1 x capacity", "p50, ms", "p99, ms", "answered", "the others' requests/s"], rows)


if __name__ == "__main__":
    main()
