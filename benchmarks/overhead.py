"""What the server costs, part by part, and how many requests it carries beside a bare FastAPI route.

    python benchmarks/overhead.py [--rounds 8] [--models cifar-resnet,all-minilm-l6-v2,spoken-digits,digits] [--precision fp32]
                                  [--check]
    python benchmarks/overhead.py --null [--seconds 3] [--rounds 5] [--clients 32]

Without `--null`: one caller. Each round asks the server twelve times, one request after another, then decodes and runs the same
sample twelve times in this process with the very compute that the server chose; medians over all rounds. The first of each dozen
does not count: it starts while the other side's threads still spin. Then the parts: decode, queue, run and interpret as
`Server-Timing` tells them; HTTP, what a bare route takes for the same body and answer; wire, the rest: sockets between the
processes, and waking up. With `--check`, a model for which the server costs more than the bar of bars.py ends the program with 1.
With `--null`: a model that costs nothing, one HTTP process, many callers, beside the bare route, in turns. Aims: +1.5 ms; 0.60.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import bars
import load
import null
from bare import Bare, find
from common import STARTERS, computed_by, home, options, report, serving, settled, table, told
from inputs import Call, ask, item, named

BLOCK = 13
PARTS = ("HTTP", "decode", "wire", "queue", "run", "interpret")
EAGER = {"compute": "eager", "precision": "fp32"}  # for the null model there is nothing to find


@contextmanager
def caller(url: str) -> Any:
    """The leanest caller of the standard library: its own time counts too."""
    http = HTTPConnection(url.removeprefix("http://"), timeout=60)
    http.connect()
    http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    yield http
    http.close()


def block(http: HTTPConnection, call: Call) -> tuple[list[float], list[dict[str, float]], bytes]:
    """Milliseconds of each request but the first, what `Server-Timing` said, and the last answer."""
    spent, timings = [], []
    for _ in range(BLOCK):
        start = time.perf_counter()
        http.request("POST", call.path, call.body)
        answer = http.getresponse()
        body = answer.read()
        spent.append(1000 * (time.perf_counter() - start))
        assert answer.status == 200, body
        timings.append(timing(answer.headers["server-timing"] or ""))
    return spent[1:], timings[1:], body


def timing(header: str) -> dict[str, float]:
    """`decode;dur=0.52, run;dur=1.20` → milliseconds by part."""
    pairs = (part.partition(";dur=") for part in header.split(", ") if part)
    return {name: float(ms) for name, _, ms in pairs}


def one_model(url: str, bare: Bare, call: Call, rounds: int) -> dict[str, Any]:
    """The server, this process and the bare route, in turns."""
    ours, alone, route, parts = [], [], [], defaultdict(list)
    with caller(url) as http:
        answer = json.loads(block(http, call)[2])
        with null.routing(answer) as bare_url, caller(bare_url) as bare_http:
            for _ in range(rounds):
                spent, timings, _ = block(http, call)
                ours += spent
                for known in timings:
                    for part, ms in known.items():
                        parts[part].append(ms)
                for turn in range(BLOCK):
                    start = time.perf_counter()
                    bare.run(bare.decode(call.item))
                    alone += [1000 * (time.perf_counter() - start)] if turn else []
                route += block(bare_http, call)[0]
    told = {part: statistics.median(ms) for part, ms in parts.items()}
    through, without, bare_route = (statistics.median(ms) for ms in (ours, alone, route))
    told |= {"HTTP": bare_route, "wire": through - bare_route - sum(told.values())}
    return {
        "http_ms": through,
        "bare_ms": without,
        "over_ms": through - without,
        "parts_us": {k: 1000 * v for k, v in told.items()},
    }


def one_caller(wanted: Any) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        null.put_picture(Path(folder))
        with serving(home=folder, models=null.NAME, **EAGER) as url:
            bare = Bare(null.NAME, Path(folder), told(url, null.NAME))
            call = ask(bare.card, item(bare.card, bare.files))
            found[null.NAME] = one_model(url, bare, call, wanted.rounds) | {"compute": "eager fp32"}
    names = {model: named(model) for model in wanted.models.split(",")}
    served = ",".join(dict.fromkeys(name for name, _ in names.values()))
    with home() as folder, serving(home=str(folder), models=served, precision=wanted.precision) as url:
        for model, (name, size) in names.items():
            known = settled(url, name, wanted.patience)
            bare = Bare(name, folder, known)
            call = ask(bare.card, item(bare.card, bare.files, size))
            found[model] = one_model(url, bare, call, wanted.rounds) | {"compute": computed_by(known)}
    heads = ["model", "compute", "through HTTP, ms", "bare decode + run, ms", "the server costs, ms"]
    keys = ("http_ms", "bare_ms")
    table(heads, [[m, f["compute"], *(f"{f[k]:.2f}" for k in keys), f"{f['over_ms']:+.2f}"] for m, f in found.items()])
    table(["µs", *PARTS], [[m, *(f"{f['parts_us'].get(part, 0):.0f}" for part in PARTS)] for m, f in found.items()])
    report("overhead", models=found)
    if wanted.check:
        hold(found)


def hold(found: dict[str, dict[str, Any]]) -> None:
    """Exit with 1 where the server costs one caller of a model too much."""
    costs = {f"{model}: ms over bare": figures["over_ms"] for model, figures in found.items()}
    bars.hold(costs, dict.fromkeys(costs, bars.OVER_BARE_MS))


def many_callers(wanted: Any) -> None:
    """Of the null models."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, put in ((null.NAME, null.put_picture), (null.TEXT, null.put_text)):
            put(Path(folder))
            found[name] = beside_a_route(name, folder, wanted)
    rows = [
        [name, *(f"{one[key]:.0f}" for key in ("server_rps", "route_rps")), f"{one['share']:.2f}"] for name, one in found.items()
    ]
    table([f"requests/s at {wanted.clients} clients", "one frontend", "bare FastAPI route", "share (aim 0.60)"], rows)
    report("overhead-null", clients=wanted.clients, models=found)


def beside_a_route(name: str, folder: str, wanted: Any) -> dict[str, Any]:
    """Requests per second with one frontend, and of the bare route in one process."""
    rounds = []
    with serving(home=folder, models=name, frontends="1", **EAGER) as url:
        card, files = find(name, Path(folder))
        call = ask(card, item(card, files))
        with caller(url) as http:
            answer = json.loads(block(http, call)[2])
        with null.routing(answer) as bare_url:
            for number in range(wanted.rounds + 1):
                pair = []
                for address in (url, bare_url):
                    plan = {"clients": wanted.clients, "seconds": wanted.seconds if number else 1.0}  # round 0 warms up
                    answers = load.run(address, [call.raw(address)], **plan)
                    assert not answers.failed(), "an answer was not 200"
                    pair.append(answers.rate())
                rounds += [pair] if number else []
    ours, route = (statistics.median(side) for side in zip(*rounds, strict=True))
    return {"rounds": rounds, "server_rps": ours, "route_rps": route, "share": statistics.median(a / b for a, b in rounds)}


def main() -> None:
    wanted = options(
        __doc__,
        models=f"{STARTERS},digits",
        rounds=8,
        precision="",
        patience=600.0,
        null=False,
        seconds=3.0,
        clients=32,
        check=False,
    )
    if wanted.null and wanted.check:
        sys.exit("--check holds the cost for one caller; leave out --null")
    (many_callers if wanted.null else one_caller)(wanted)


if __name__ == "__main__":
    main()
