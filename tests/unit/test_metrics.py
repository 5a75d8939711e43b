"""Counts outlive the processes that made them, and leave no files behind."""

from __future__ import annotations

import errno
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.parser import text_string_to_metric_families

from app import metrics
from app.web import exposition
from tests.conftest import ROOT

CHILD = "from app import metrics; w = metrics.for_worker('m', 'm.1'); w.waiting(3); w.batch(2, 8.0, [0.1, 0.2]); import os; print(os.getpid())"
OPENED = "import os, sys; from pathlib import Path; from app import metrics"
READER = "import sys; from app.web.exposition import render; sys.stdout.buffer.write(render([('m', 'm.1', 5)]))"
BURIAL = "import sys; from pathlib import Path; from app import metrics; s = metrics.for_supervisor(Path(sys.argv[1]))\nfor pid in sys.argv[2:]: s.process_gone(int(pid))"


def python(code: str, folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=True
    ).stdout


def read(folder: Path) -> dict[str, float]:
    families = text_string_to_metric_families(python(READER, folder))
    return {sample.name: sample.value for family in families for sample in family.samples if "le" not in sample.labels}


def test_dead_processes_are_added_up_in_one_file(tmp_path: Path):
    pids = [python(CHILD, tmp_path).strip() for _ in range(3)]
    before = read(tmp_path)
    assert before["hearth_batch_size_count"] == 3
    assert before["hearth_queue_seconds_sum"] > 0.89
    python(BURIAL, tmp_path, str(tmp_path), *pids)
    after = read(tmp_path)
    assert after.pop("hearth_requests_in_flight") == 0, "the supervisor's own"
    assert not [file for file in tmp_path.iterdir() for pid in pids if pid in file.name]
    assert {name: value for name, value in before.items() if not name.endswith(("depth", "in_flight"))} == after
    assert "hearth_queue_depth" not in after, "a dead worker has no queue"


def test_a_process_that_was_killed_as_it_made_its_files_counted_nothing(tmp_path: Path):
    """That ended the supervisor, and the server with it; and whoever asked for the metrics meanwhile got 500."""
    pid = python(CHILD, tmp_path).strip()
    before = read(tmp_path)
    for kind in ("counter", "histogram"):
        (tmp_path / f"{kind}_1.db").touch()
    assert read(tmp_path) == before
    python(BURIAL, tmp_path, str(tmp_path), "1", pid)
    assert not [*tmp_path.glob("*_1.db"), *tmp_path.glob(f"*_{pid}.db")]
    assert read(tmp_path)["hearth_batch_size_count"] == 1


@pytest.mark.parametrize(
    "process", ["for_worker('m', 'm.1')", "for_supervisor(Path(sys.argv[1]))", "for_frontend(Path(sys.argv[1]))"]
)
def test_the_files_of_a_process_lie_on_the_disk_before_they_are_written(tmp_path: Path, process: str):
    """A page that the disk has no room for would be a SIGBUS."""
    use = "metrics.tally().request('/x', 'm', 200, 0.1); metrics.tally().in_flight = 1; metrics.tally().flush()"
    python(f"{OPENED}; metrics.{process}; {use}", tmp_path, str(tmp_path))
    files = {path.name.rpartition("_")[0]: path.stat() for path in tmp_path.iterdir()}
    assert files.keys() == {"counter", "histogram", "gauge_livesum"}
    assert all(file.st_blocks * 512 >= file.st_size >= 1 << 16 for file in files.values())


def test_a_frontend_counts_when_there_is_no_descriptor_left(tmp_path: Path):
    """It failed its first request, and never wrote again."""
    none = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))"
    use = "t.request('/x', 'm', 200, 0.1, 'code'); t.stage('run', 'm', 0.1); t.shadow('m', 'agreed'); t.in_flight = 1; t.flush()"
    python(f"{OPENED}; t = metrics.for_frontend(Path(sys.argv[1])); {none}; {use}", tmp_path, str(tmp_path))
    assert read(tmp_path)["hearth_requests_total"] == 1


def test_a_process_that_is_buried_while_the_files_are_read_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pids = [python(CHILD, tmp_path).strip() for _ in range(2)]
    undertaker = metrics.ForSupervisor(tmp_path)
    undertaker.process_gone(int(pids[0]))
    read_file, reads = MmapedDict.read_all_values_from_file, list[str]()

    def read_and_bury(path: str) -> Any:
        found = list(read_file(path))
        if path.endswith(f"histogram_{pids[1]}.db") and not reads:  # it has just been read, and dies
            reads.append(path)
            undertaker.process_gone(int(pids[1]))
        return found

    def dead_last(folder: Path, _: str) -> list[Path]:
        return sorted(folder.iterdir(), key=lambda path: (path.stem.endswith("_dead"), path.stem.startswith("histogram")))

    monkeypatch.setattr(Path, "glob", dead_last)  # a folder has no order of its own
    monkeypatch.setattr(MmapedDict, "read_all_values_from_file", staticmethod(read_and_bury))
    begun = begun_in(tmp_path, monkeypatch)
    try:
        families = list(begun.collect())
    except FileNotFoundError:  # as `render` does
        families = list(begun.collect())
    found = {sample.name: sample.value for family in families for sample in family.samples}
    assert reads and found["hearth_batch_size_count"] == 2


def begun_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> exposition._Begun:
    monkeypatch.setattr(exposition._Begun, "__init__", lambda self, _: setattr(self, "_path", str(folder)))
    return exposition._Begun(None)


def test_nobody_is_among_the_dead_by_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The count fell, and rose again: a restart, for whoever adds up what it grew by."""
    begun, write, looked = begun_in(tmp_path, monkeypatch), MmapedDict.write_value, list[str]()

    def write_and_look(*values: Any) -> None:
        with pytest.raises(FileNotFoundError, match="being moved"):
            list(begun.collect())
        write(*values)
        looked.append(values[1])

    pid = int(python(CHILD, tmp_path))
    monkeypatch.setattr(MmapedDict, "write_value", write_and_look)
    metrics.ForSupervisor(tmp_path).process_gone(pid)
    assert looked and not list(tmp_path.glob(f"*{pid}*"))
    assert read(tmp_path)["hearth_batch_size_count"] == 1


@pytest.mark.parametrize("moved", [True, False])
def test_who_reads_waits_for_a_burial_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool):
    begun_in(tmp_path, monkeypatch)
    monkeypatch.setattr(exposition, "CollectorRegistry", lambda: None)
    monkeypatch.setattr(exposition, "generate_latest", lambda _: list(begun.collect()) and b"counted\n")
    begun = exposition._Begun(None)
    monkeypatch.setattr(exposition, "_Begun", lambda _: begun)
    pid = python(CHILD, tmp_path).strip()
    file, waited = tmp_path / f"counter_{pid}.moving", list[float]()
    file.touch()

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if moved and len(waited) == 3:
            file.unlink()

    monkeypatch.setattr(exposition.time, "sleep", wait)
    assert exposition.render([]).startswith(b"counted\n")
    assert len(waited) == (3 if moved else exposition._LOOKS - 1)


def entry(key: str, value: float = 1.0, *, length: int | None = None) -> bytes:
    """As prometheus_client's files have it."""
    padding = b" " * (8 - (len(key) + 4) % 8)
    return struct.pack("i", len(key) if length is None else length) + key.encode() + padding + struct.pack("dd", value, 0.0)


KEY = mmap_key("family", "sample", [], [], "help")
DAMAGES = {
    "beyond the file": entry(KEY, length=1 << 30),
    "for ever": entry(KEY) + struct.pack("i", -28) + bytes(60),
    "none": b"",
    "no JSON": entry("what is it"),
    "other JSON": entry("7"),
    "no text": entry(KEY).replace(b"sample", b"\xff" * 6),
    "no number": entry(KEY, math.nan),
    "less than nothing": entry(KEY, -1.0),
    "no name": entry('["", "sample", {}, "help"]'),
    "no sample": entry('["family", "", {}, "help"]'),
    "half a surrogate": entry('["family", "sample", {"model": "\\ud800"}, "help"]'),
    "no labels": entry('["family", "sample", 7, "help"]'),
    "a label that is none": entry('["family", "sample", {"model": []}, "help"]'),
    "no bound": entry(mmap_key("family", "sample", ["le"], ["0.0x5"], "help")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_counts_of_a_dead_process_are_left_out(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture):
    """They ended the supervisor; or none could be read, ever."""
    pids = [python(CHILD, tmp_path).strip() for _ in range(2)]
    with (tmp_path / f"histogram_{pids[0]}.db").open("r+b") as file:
        file.write(struct.pack("ii", 8 + len(damage), 0) + damage)
    undertaker = metrics.ForSupervisor(tmp_path)
    for pid in pids:
        undertaker.process_gone(int(pid))
    assert not [file for file in tmp_path.iterdir() for pid in pids if pid in file.name] and not undertaker.unsettled
    assert ("are damaged" in caplog.text) == (damage != b"")
    assert read(tmp_path)["hearth_batch_size_count"] == 1


def test_counts_that_cannot_be_added_up_stay_until_the_next_death(tmp_path: Path):
    pids = [python(CHILD, tmp_path).strip() for _ in range(2)]
    dead = tmp_path / "histogram_dead.db"
    dead.mkdir()
    undertaker = metrics.ForSupervisor(tmp_path)
    undertaker.process_gone(int(pids[0]))
    assert not [*tmp_path.glob(f"gauge*_{pids[0]}.db")]
    dead.rmdir()
    assert read(tmp_path)["hearth_batch_size_count"] == 2, "nothing is lost meanwhile"
    undertaker.process_gone(int(pids[1]))
    assert not [file for file in tmp_path.iterdir() for pid in pids if pid in file.name]
    assert read(tmp_path)["hearth_batch_size_count"] == 2


def test_the_counts_of_all_the_dead_lie_on_the_disk_before_they_are_written(tmp_path: Path):
    """A page that the disk has no room for would be a SIGBUS, which ended the supervisor."""
    undertaker = metrics.ForSupervisor(tmp_path)
    for number in range(1, 4):
        counted = MmapedDict(str(tmp_path / f"counter_{10**9 + number}.db"))
        for key in range(800):
            counted.write_value(mmap_key("family", f"{key:0100} {number}", [], [], "help"), 1.0, 0.0)
        counted.close()
        undertaker.process_gone(10**9 + number)
        told = (tmp_path / "counter_dead.db").stat()
        assert told.st_blocks * 512 >= told.st_size >= number * 800 * 120
    assert len(list(MmapedDict.read_all_values_from_file(str(tmp_path / "counter_dead.db")))) == 2400


def test_a_disk_without_room_leaves_counts_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pid = int(python(CHILD, tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        undertaker = metrics.ForSupervisor(tmp_path)
        undertaker.process_gone(pid)
    assert read(tmp_path)["hearth_batch_size_count"] == 1
    undertaker.process_gone(10**9)
    assert not list(tmp_path.glob(f"*_{pid}.db")) and read(tmp_path)["hearth_batch_size_count"] == 1


def test_files_are_open_before_anything_is_counted(tmp_path: Path):
    """By then there may be no descriptor left, and a count that could not be made would end the supervisor, or a worker."""
    supervisor = python(
        f"{OPENED}; metrics.for_supervisor(Path(sys.argv[1])); print(os.getpid())", tmp_path, str(tmp_path)
    ).strip()
    worker = python(f"{OPENED}; metrics.for_worker('m', 'm.1'); print(os.getpid())", tmp_path).strip()
    names = {file.name for file in tmp_path.iterdir()}
    assert names >= {f"counter_{supervisor}.db", f"gauge_livesum_{worker}.db", f"histogram_{worker}.db"}
