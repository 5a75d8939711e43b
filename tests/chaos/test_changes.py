"""Models come, go and share their traffic anew as fast as one can ask, and callers notice nothing."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
from callers import Callers, Line, asked

from app import keys
from tests.chaos import toys
from tests.chaos.conftest import Chaos, questions, refusable
from tests.stack.conftest import Server, picture, wait_for

PNG = picture(1, 2, 3)


def test_hangups_that_bring_and_take_cards_and_keys(tmp_path: Path, chaos: Chaos):
    home = toys.write(tmp_path)
    file = home / "keys.jsonl"
    admin = {"Authorization": f"Bearer {keys.add(file, 'admin', 'admin')[1]}"}

    def line(url: str) -> Line:
        return Line(url, admin)

    with Server(home, HEARTH_MODELS="toy", HEARTH_FRONTENDS="2", HEARTH_KEYS_FILE=str(file)) as server:
        server.http.headers.update(admin)
        known = [asked(server.url, "/predict/image", picture(n * 9, n * 5, n * 3), "image/png", line) for n in range(8)]
        with Callers(server.url, known, line=line) as callers:
            for number in range(chaos.times(2, 30)):
                name = f"guest{number}"
                shutil.copytree(home / "models" / "other", home / "models" / name)
                _, secret = keys.add(file, name, "infer")
                for wanted in (200, 404):
                    server.process.send_signal(signal.SIGHUP)
                    wait_for(lambda name=name, wanted=wanted: server.http.get(f"/models/{name}").status_code == wanted)
                    callers.more(3)
                    opened = 200 if wanted == 200 else 401
                    wait_for(lambda secret=secret, opened=opened: asks(server, secret) == opened)
                    shutil.rmtree(home / "models" / name, ignore_errors=True)
                    keys.revoke(file, name) if wanted == 200 else None
    chaos.note("SIGHUP, with new and removed cards and keys", callers.counts)


def asks(server: Server, secret: str) -> int:
    return httpx.post(f"{server.url}/predict/image", content=PNG, headers={"Authorization": f"Bearer {secret}"}).status_code


@contextmanager
def storm(*changes: Callable[[httpx.Client], httpx.Response], url: str) -> Iterator[list[httpx.Response]]:
    """Threads that ask for changes without a pause; what each was told."""
    told: list[httpx.Response] = []
    over = threading.Event()

    def run(change: Callable[[httpx.Client], httpx.Response]) -> None:
        with httpx.Client(base_url=url, timeout=60) as http:
            while not over.is_set():
                told.append(change(http))

    threads = [threading.Thread(target=run, args=(change,)) for change in changes]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_storm_of_loads_and_unloads(server: Server, callers: Callers, chaos: Chaos):
    """Who asks for what comes and goes is answered right, or told that it is not there; and does not wait for long."""
    changes = [lambda http, verb=verb: http.post(f"/models/other/{verb}") for verb in ("load", "unload", "load", "unload")]
    coming = refusable(questions(server, "other"), "loading")
    with storm(*changes, url=server.url) as told, Callers(server.url, coming, count=2) as others:
        wait_for(lambda: len(told) > chaos.times(20, 2000), 600)
        wait_for(lambda: others.counts.right > chaos.times(1, 100) and others.counts.failed, 600)
    chaos.figure("what is loaded and unloaded", **others.counts.figures())
    assert not others.counts.wrong and not others.counts.lost, others.counts
    assert {answer.status_code for answer in told} <= {200, 409}, {answer.text for answer in told}
    callers.more(3)
    assert server.http.post("/models/other/load").json()["state"] == "ready"
    wait_for(lambda: len(server.model("other")["workers"]) == 1)
    chaos.note("a storm of loads and unloads", callers.counts)


def test_a_storm_of_changes_of_traffic(tmp_path: Path, chaos: Chaos):
    home = toys.write(tmp_path)
    shutil.copytree(home / "models" / "other", home / "models" / "toy@2")
    card = home / "models" / "toy@2" / "card.toml"
    card.write_text(card.read_text().replace("default = false", "default = false\nversion = '2'"))
    with Server(home, HEARTH_MODELS="toy", HEARTH_FRONTENDS="2") as server:
        pictures = [picture(n * 9, n * 5, n * 3) for n in range(8)]
        server.http.put("/models/toy/traffic", json={"shares": {"1": 1, "2": 1}}).raise_for_status()
        one, other = (
            [asked(server.url, f"/predict/image?model=toy@{version}", raw, "image/png") for raw in pictures] for version in (1, 2)
        )
        both = [
            replace(first, path="/predict/image", known=[first.known[0], second.known[0]])
            for first, second in zip(one, other, strict=True)
        ]
        changes = [
            lambda http, shares=shares: http.put("/models/toy/traffic", json={"shares": shares})
            for shares in ({"1": 1}, {"2": 1}, {"1": 1, "2": 3})
        ]
        with Callers(server.url, both) as callers, storm(*changes, url=server.url) as told:
            callers.more()
            wait_for(lambda: len(told) > chaos.times(20, 2000), 600)
            callers.more()
    assert {answer.status_code for answer in told} <= {200, 409}, {answer.text for answer in told}
    chaos.note("a storm of changes of traffic", callers.counts)
