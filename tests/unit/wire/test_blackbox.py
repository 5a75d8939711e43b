"""What a worker writes, the supervisor reads."""

from __future__ import annotations

from pathlib import Path

from app.wire.blackbox import BlackBox


def test_the_reader_sees_what_runs_and_what_waits(tmp_path: Path):
    reader = BlackBox(tmp_path / "box", create=True)
    writer = BlackBox(tmp_path / "box")
    assert reader.read().running == ()
    writer.start(5.0, 3, [7, 1 << 45])
    assert reader.read().running == (7, 1 << 45)
    assert reader.read().busy_since == 5.0
    writer.beat(6.0, 2)
    reading = reader.read()
    assert (reading.beat, reading.busy_since, reading.waiting, reading.running) == (6.0, 0.0, 2, ())
