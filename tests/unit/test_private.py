"""The private folder: ours alone, gone at the end, and swept up by the next one if we could not do that ourselves."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app import private
from app.private import private_folder
from tests.conftest import ROOT

HOLD = """
from app.private import private_folder
with private_folder() as folder:
    print(folder, flush=True)
    input()
"""


def test_it_lies_in_memory_where_there_is_room_and_nobody_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir()
    disk.mkdir()
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    monkeypatch.setattr(private, "_MEMORY", memory)
    with private_folder() as folder:
        assert folder.parent == memory
    with monkeypatch.context() as patch:
        patch.setattr("os.getuid", lambda: 1000)
        patch.setattr(private, "_LOGIND", tmp_path)
        with private_folder() as folder:
            assert folder.parent == disk, "it would be emptied when that user logs out"
        patch.setattr(private, "_LOGIND", tmp_path / "none")
        with private_folder() as folder:
            assert folder.parent == memory
    monkeypatch.setattr(private, "_ROOM", 1 << 60)
    with private_folder() as folder:
        assert folder.parent == disk
    monkeypatch.setattr(private, "_ROOM", 0)
    monkeypatch.setenv("TMPDIR", str(disk))
    with private_folder() as folder:
        assert folder.parent == disk
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setattr(private, "_MEMORY", tmp_path / "none")
    with private_folder() as folder:
        assert folder.parent == disk


def test_what_a_killed_server_left_is_swept_up_and_those_that_live_keep_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    stranger = tmp_path / "hearth-bench-x"
    stranger.mkdir()
    start = {"cwd": ROOT, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen([sys.executable, "-c", HOLD], **start) as killed,
        subprocess.Popen([sys.executable, "-c", HOLD], **start) as other,
    ):
        left, kept = (Path(process.stdout.readline().strip()) for process in (killed, other))  # type: ignore[union-attr]
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.exists()
        with private_folder() as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
            assert not left.exists() and kept.exists() and stranger.exists()
        assert not folder.exists()
        other.communicate("")
    assert not kept.exists()
