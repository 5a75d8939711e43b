"""Tables that strangers send with pictures and recordings: however long they are, they take little memory and time."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from app.tasks import table
from app.tasks.findings import Findings
from app.tasks.image.folders import find

COLUMNS = {"file": "file", "label": "label"}


def test_rows_beyond_what_an_archive_can_hold_are_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table, "_MOST_ROWS", 1000)
    (tmp_path / "train.csv").write_text("file,label\n" + "a.png,cat\n" * 600)
    (tmp_path / "val.csv").write_text("file,label\n" + "a.png,cat\n" * 50_000)
    found = Findings()
    tracemalloc.start()
    try:
        assert not list(table.read(table.tables(tmp_path), COLUMNS, found))
        assert tracemalloc.get_traced_memory()[1] < 1 << 21
    finally:
        tracemalloc.stop()
    assert [problem.what for problem in found.problems] == ["there are more than 1,000 rows"]


@pytest.mark.parametrize("row", ["missing.png,cat", "a.png,cat,more", "a.png,cat,spilt"])
def test_where_thousands_of_rows_are_wrong_the_others_are_not_looked_at(tmp_path: Path, row: str):
    (tmp_path / "labels.csv").write_text(f"file,label{',split' * row.endswith('spilt')}\n" + f"{row}\n" * 12_000)
    found = find(tmp_path, 0.2, 0)
    assert 10_000 <= len(found.problems) + found.untold < 10_100
