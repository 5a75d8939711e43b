"""The short form of the fuzzers: everything that was ever found, and a few hundred new inputs for each decoder."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from app.wire import parcels
from tests.fuzz.__main__ import CORPUS, outcome, watched, ways
from tests.fuzz.targets import TARGETS, Target

FOUND = sorted(CORPUS.glob("*/found-*"))


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name} {path.name}")
def test_what_was_found_once_is_mended(path: Path):
    assert outcome(TARGETS[path.parent.name], path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_answered_in_a_way_of_its_own_is_answered(name: str):
    assert all(outcome(TARGETS[name], data) for data in ways(name))


def test_inputs_that_are_answered_in_new_ways_are_kept_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("tests.fuzz.__main__.CORPUS", tmp_path)
    assert ways("json") == []
    for _ in range(2):
        watched("json", 300, seed=1, keeping=True)
    found = ways("json")
    assert len(set(found)) == len(found) > 5
    assert len({outcome(TARGETS["json"], data) for data in found}) > 5


@pytest.mark.parametrize("name", TARGETS)
def test_good_files_are_taken_and_damaged_ones_refused_in_words(name: str):
    counts = watched(name, 3 * TARGETS[name].share, seed=2)
    assert not [what for what in counts if what.startswith("FAILED")]
    assert counts["ways"] > 1


@pytest.mark.skipif(sys.platform != "linux", reason="memory is handed over on Linux")
def test_what_comes_in_memory_is_fuzzed_too(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(parcels, "_the_one", lambda envelope: seen.append(bytes(envelope)))
    TARGETS["parcels"].run(b"x" * 31)
    assert seen == [b"x" * 31]


def hang(_: bytes) -> None:
    while True:
        pass


def fill(_: bytes) -> None:
    bytes(1 << 34)


def crash(_: bytes) -> None:
    os.kill(os.getpid(), signal.SIGTRAP)


@pytest.mark.parametrize(("fault", "told"), [(hang, "status -9"), (fill, "MemoryError"), (crash, "status -5"), (len, "")])
def test_the_fuzzer_sees_a_hang_a_burst_and_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault, told: str):
    monkeypatch.setattr("tests.fuzz.__main__.CORPUS", tmp_path)
    monkeypatch.setitem(TARGETS, "card", Target(fault, lambda: [b"x"], (), seconds=0.3))
    counts = watched("card", 1, seed=1)
    wrong = [what for what in counts if what.startswith("FAILED")]
    assert (told in wrong[0] and list((tmp_path / "card").iterdir())) if told else not wrong
