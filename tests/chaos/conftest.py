"""A server under faults, callers who compare every answer, and a table of what they felt.

The short form is part of every run of the tests: counts are strict, times are generous, because a machine on which other things
run may be late by seconds. `--long` (`make chaos`) repeats each fault for longer and holds the times that are promised.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import resource
import shutil
import socket
import statistics
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from callers import Callers, Counts, Outcome, Question, asked
from common import machine
from PIL import Image

from tests.chaos import toys
from tests.stack.conftest import Server, picture

PROMISED = {"median": 1.0, "longest": 3.0}  # seconds
GENEROUS = {"median": 20.0, "longest": 60.0}

_rows: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Chaos:
    """How much of it, and what came of it."""

    long: bool

    def times(self, short: int, long: int) -> int:
        """How often a fault is repeated."""
        return long if self.long else short

    def note(self, fault: str, counts: Counts, felt_s: Sequence[float] = (), *, stall_s: float = 0.0) -> None:
        """A row of the table. Nothing but right answers may have come; `stall_s`: after which the fault is noticed at all."""
        _rows.append({"fault": fault, **counts.figures()} | _times(felt_s))
        assert counts.right, "nobody was answered"
        assert not counts.bad, "\n".join([str(counts.figures()), *counts.told])  # pytest cuts a long repr
        self._hold(felt_s, stall_s)

    def _hold(self, felt_s: Sequence[float], stall_s: float) -> None:
        bars = PROMISED if self.long else GENEROUS
        if felt_s:
            assert statistics.median(felt_s) <= bars["median"] + stall_s, felt_s
            assert max(felt_s) <= bars["longest"] + stall_s, felt_s

    def figure(self, name: str, **values: float) -> None:
        """A row of other figures."""
        _rows.append({"fault": name, **values})


def _times(felt_s: Sequence[float]) -> dict[str, float]:
    return {"recovery_p50_s": statistics.median(felt_s), "recovery_max_s": max(felt_s)} if felt_s else {}


@pytest.fixture(scope="session")
def chaos(request: pytest.FixtureRequest) -> Chaos:
    return Chaos(request.config.getoption("--long"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long form takes minutes by design; the short one may, where the machine is busy."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(1800 if config.getoption("--long") else 300))


@pytest.fixture(scope="session")
def frail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with toys that can be made to fail."""
    return toys.write(tmp_path_factory.mktemp("frail"))


@pytest.fixture(scope="session")
def server(frail: Path) -> Iterator[Server]:
    with Server(frail, HEARTH_MODELS="toy,other", HEARTH_FRONTENDS="2") as server:
        yield server


@dataclass(frozen=True, slots=True)
class Refusable(Question):
    """Being refused, in one of these words, is all that may go wrong with it; all else is wrong."""

    words: tuple[str, ...] = ()

    def outcome(self, status: int, body: bytes) -> Outcome:
        found = Question.outcome(self, status, body)
        refused = status == 503 and any(words in "{code}: {detail}".format(**json.loads(body)) for words in self.words)
        return "wrong" if found == "failed" and not refused else found


def refusable(questions: Sequence[Question], *words: str) -> list[Question]:
    """The same, which may be refused."""
    return [Refusable(one.path, one.body, one.media, one.known, words=words) for one in questions]


def questions(server: Server, *models: str) -> list[Question]:
    """Pictures for these models (none: the default), with the answers that they get now."""
    paths = [f"/predict/image?model={model}" for model in models] or ["/predict/image"]
    found = [asked(server.url, path, picture(n * 9, n * 5, n * 3), "image/png") for n in range(12) for path in paths]
    assert {question.known[0]["model"] for question in found} == set(models or ["toy"])
    return found


def jpeg(side: int) -> bytes:
    """A picture that a process of its own reads; of 1000 pixels, it goes there in memory of its own."""
    out = io.BytesIO()
    Image.effect_noise((side, side), 100).save(out, "JPEG", quality=99)
    return out.getvalue()


@pytest.fixture
def clock(tmp_path: Path, chaos: Chaos) -> tuple[Path, dict[str, str]]:
    """A file that says by how many seconds the clock is wrong, and what makes a server believe it."""
    if shutil.which("cc") is None:
        (pytest.fail if chaos.long else pytest.skip)("there is no C compiler here")
    file, library = tmp_path / "ahead", tmp_path / "clock.so"
    file.write_bytes(struct.pack("l", 0))
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, Path(__file__).with_name("clock.c")], check=True)
    return file, {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(file)}


def set_ahead(file: Path, days: int) -> None:
    """Where it lies: what reads it may have mapped it."""
    with file.open("r+b") as ahead:
        ahead.write(struct.pack("l", days * 24 * 3600))


def strangers(server: Server, count: int) -> Iterator[socket.socket]:
    """So many connections without a word. Raises OSError where one cannot be opened: the kernel takes them, whoever is killed."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    for _ in range(count):
        yield socket.create_connection((host, int(port)), timeout=10)


@contextlib.contextmanager
def own_descriptors() -> Iterator[int]:
    """Meanwhile this process has as many as it may."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        yield most
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))


@pytest.fixture
def callers(server: Server) -> Iterator[Callers]:
    """Four who ask the default model while the test does its worst."""
    with Callers(server.url, questions(server)) as callers:
        callers.more(3)
        yield callers


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table for people, and one line for machines."""
    if not _rows:
        return
    write = terminalreporter.write_line
    terminalreporter.section("chaos")
    write(f"{'fault':<44}{'sent':>8}{'right':>8}{'wrong':>7}{'failed':>8}{'lost':>6}{'p50 s':>8}{'max s':>8}")
    for row in _rows:
        counts = [f"{row.get(name, ''):>{width}}" for name, width in _WIDTHS.items()]
        times = [f"{_told(row.get(name)):>8}" for name in ("recovery_p50_s", "recovery_max_s")]
        others = [f"  {name} {value:.4g}" for name, value in row.items() if name not in _SHOWN]
        write("".join([f"{row['fault']:<44}", *counts, *times, *others]))
    write(json.dumps({"benchmark": "chaos", **machine(), "faults": _rows}))


_WIDTHS = {"sent": 8, "right": 8, "wrong": 7, "failed": 8, "lost": 6}
_SHOWN = {"fault", "recovery_p50_s", "recovery_max_s", *_WIDTHS}


def _told(seconds: float | None) -> str:
    return "" if seconds is None else "never" if math.isinf(seconds) else f"{seconds:.2f}"
