"""Models come, go and share their traffic anew as fast as one can ask, and callers notice nothing."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
from callers import Callers, asked

from tests.chaos import toys
from tests.chaos.conftest import Chaos
from tests.stack.conftest import Server, picture, wait_for


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
    changes = [lambda http, verb=verb: http.post(f"/models/other/{verb}") for verb in ("load", "unload", "load", "unload")]
    with storm(*changes, url=server.url) as told:
        wait_for(lambda: len(told) > chaos.times(40, 2000), 600)
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
            wait_for(lambda: len(told) > chaos.times(40, 2000), 600)
            callers.more()
    assert {answer.status_code for answer in told} <= {200, 409}, {answer.text for answer in told}
    chaos.note("a storm of changes of traffic", callers.counts)
