"""What the server costs one caller: a request through HTTP beside the same model's bare forward plus decode.

    python benchmarks/overhead.py [--rounds 8] [--models all-minilm-l6-v2,digits]

Starts its own server. Each round asks it twelve times, one request after another, then runs decode, collate and forward twelve
times in this process; medians over all rounds. The first of each dozen does not count: it starts while the other side's OpenMP
threads still spin on both cores. The bare side uses the same codec, program and thread count.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from common import machine, serving, table

from app.catalogue import Catalogue
from app.engine.compute import eager
from app.engine.loader import load
from app.engine.runner import Runner
from app.settings import Settings
from app.tasks import TASKS, make_codec, resolve
from app.weights import locate

BLOCK = 13


def requests_of(name: str, task: str, folder: Path) -> dict[str, Any]:
    """How to send the card's sample."""
    sample = next(folder.glob("sample.*"))
    if task == "text-embedding":
        return {"url": "/embed/text", "body": json.dumps(json.loads(sample.read_text()) | {"model": name}).encode()}
    path = "/predict/image" if task == "image-classification" else "/transcribe"
    return {"url": f"{path}?model={name}", "body": sample.read_bytes()}


def bare(name: str, settings: Settings) -> Any:
    """Decode plus forward of the same sample, in this process."""
    card = Catalogue.read(settings.home).named(name)
    files = locate(card, settings) or {}
    module = load(card, files)
    program = resolve(TASKS[card.task].program)(card, files)
    codec = make_codec(card, files, program.describe(module))
    runner = Runner(eager(program, module), program, lambda *_: None)
    sample = next(card.folder.glob("sample.*"))
    item = json.loads(sample.read_text())["inputs"] if sample.suffix == ".json" else sample.read_bytes()

    def run() -> None:
        runner.run([one.arrays for one in codec.decode(item).samples])

    return run, requests_of(name, card.task, card.folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--models", default="cifar-resnet,all-minilm-l6-v2,spoken-digits,digits")
    options = parser.parse_args()
    names = options.models.split(",")
    settings = Settings()
    rows, line = [], {"benchmark": "overhead", **machine(), "models": {}}
    with serving(models=options.models) as url:
        http = HTTPConnection(url.removeprefix("http://"), timeout=60)  # the leanest caller: its own time counts too
        http.connect()
        http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name in names:
            run, request = bare(name, settings)
            ours, alone, server = [], [], []
            for _ in range(options.rounds):
                for turn in range(BLOCK):
                    start = time.perf_counter()
                    http.request("POST", **request)
                    answer = http.getresponse()
                    body = answer.read()
                    if turn:
                        ours.append(1000 * (time.perf_counter() - start))
                    assert answer.status == 200, body
                    server.append(answer.headers["server-timing"])
                for turn in range(BLOCK):
                    start = time.perf_counter()
                    run()
                    if turn:
                        alone.append(1000 * (time.perf_counter() - start))
            through, without = statistics.median(ours), statistics.median(alone)
            rows.append([name, f"{through:.2f}", f"{without:.2f}", f"{through - without:+.2f}"])
            line["models"][name] = {
                "http_ms": through,
                "bare_ms": without,
                "over_ms": through - without,
                "server_timing": server[-1],
            }
    table(["model", "through HTTP, ms", "bare decode + forward, ms", "the server costs, ms"], rows)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
