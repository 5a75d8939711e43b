"""Tables of texts as callers send them: CSV, TSV or JSON lines → rows, and the line where each stands. Judges no text. No torch.

Understood: one table; or several that are called train, val (or dev) and test. A column `split` says the same of each row.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from app.tasks import TASKS
from app.tasks.findings import Findings
from app.tasks.table import SPLITS, no_part, not_read

Layout = tuple[str, ...]
"""Names of columns."""

LABELLED: Layout = ("text", "label")
SCORED: Layout = ("sentence1", "sentence2", "score")
TRIPLETS: Layout = ("anchor", "positive", "negative")
OF_TASK: dict[str, tuple[Layout, ...]] = {"text-classification": (LABELLED,), "text-embedding": (SCORED, TRIPLETS)}

_ALIASES = {"sentence": "text"}
_SUFFIXES = {".csv", ".tsv", ".jsonl", ".ndjson"}
_PARTS: dict[str, str] = {**SPLITS, "dev": "val"}
_MOST_ROWS = 1_000_000
_NO_TABLE = "give a header line and at least one row; CSV, TSV or JSON lines"


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `values` stand in the order of the layout; `part` is train, val, test, or empty where nothing says it."""

    where: str
    part: str
    values: tuple[str, ...]


def task_of(root: Path) -> str | None:
    """The task whose columns the first table has; None if they are no task's."""
    for path in _tables(root):
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            columns = _first(file)[1]
        for task, layouts in OF_TASK.items():
            if any(set(layout) <= set(columns) for layout in layouts):
                return task
    return None


def read(root: Path, task: str, found: Findings) -> tuple[Layout, list[Row]]:
    """All rows of the tables in `root`, which have one layout. What is wrong with them goes into `found`."""
    paths = _tables(root)
    if not paths:
        found.wrong(".", "no CSV, TSV or JSONL file was found", _NO_TABLE)
    not_read([path.name for path in root.iterdir() if path not in paths], found)
    rows: list[Row] = []
    layout: Layout = ()
    for path in paths:
        part = _PARTS.get(path.stem.lower(), "")
        if len(paths) > 1 and not part:
            no_part(path, found)
            continue
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            kind, columns = _first(file)
            fitting = [one for one in OF_TASK[task] if set(one) <= set(columns)]
            if not fitting or (layout and fitting[0] != layout):
                wanted = {task: (layout,)} if layout else {one: OF_TASK[one] for one in (task, *TASKS[task].becomes)}
                told = [f"for {one}, name them {', or '.join(map(', '.join, names))}" for one, names in wanted.items()]
                found.wrong(f"{path.name}:1", f"its columns are: {_shown(columns)}", "; ".join(told))
                continue
            layout = fitting[0]
            rows += _rows(_READERS[kind](file, columns), path.name, part, layout, found)
    if len(rows) > _MOST_ROWS:
        found.wrong(".", f"there are more than {_MOST_ROWS:,} rows", "give fewer")
    return layout, rows


def _tables(root: Path) -> list[Path]:
    files = [path for path in sorted(root.iterdir()) if path.is_file()]
    return [path for path in files if path.suffix.lower() in _SUFFIXES or path.name == "dataset"]


def _first(file: IO[str]) -> tuple[str, list[str]]:
    """What kind of table it is, by its first line, and its columns. The file then stands at its first row."""
    line = file.readline(1 << 20)
    if line.lstrip().startswith(("{", "[")):
        file.seek(0)
        try:
            first = json.loads(line)
        except (ValueError, RecursionError):
            first = {}
        return "jsonl", _names(first if isinstance(first, dict) else {})
    if "\t" in line:
        return "tsv", _names(line.rstrip("\r\n").split("\t"))
    try:
        return "csv", _names(next(csv.reader([line]), []))
    except csv.Error:  # a field longer than the reader takes, a lone quote: no columns, which is told by file and line
        return "csv", []


def _shown(columns: list[str]) -> str:
    return ", ".join(columns)[:200].encode("utf-8", "replace").decode() or "none"


def _names(columns: Any) -> list[str]:
    names = [str(column).strip().lower() for column in columns]
    return [_ALIASES.get(name, name) if _ALIASES.get(name) not in names else name for name in names]


Cells = tuple[int, Mapping[str, str] | str]
"""The line where a row begins, and its cells by column, or what is wrong with it."""


def _of_csv(file: IO[str], columns: list[str]) -> Iterator[Cells]:
    reader = csv.reader(file, strict=True)
    while True:
        line = 2 + reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"is no readable CSV ({error})"
            continue
        if cells:
            yield line, _by_column(cells, columns)


def _of_tsv(file: IO[str], columns: list[str]) -> Iterator[Cells]:
    for number, line in enumerate(file, 2):
        if line.strip():
            yield number, _by_column(line.rstrip("\r\n").split("\t"), columns)


def _of_jsonl(file: IO[str], columns: list[str]) -> Iterator[Cells]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"is no JSON ({error})"
            continue
        if isinstance(values, dict):
            names = _names(values)
            yield number, dict(zip(names, map(_told, values.values()), strict=True))
        else:
            yield number, "is no JSON object"


def _told(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


_READERS = {"csv": _of_csv, "tsv": _of_tsv, "jsonl": _of_jsonl}
_MEND = {
    "cells": "give one for each column; texts with commas, tabs or line breaks belong into a CSV with quotes, or into JSON lines",
    "CSV": "put texts that hold commas, quotes or line breaks into double quotes, and write quotes inside them twice",
    "JSON": 'write one object a line, such as {"text": "…", "label": "…"}',
}


def _by_column(cells: list[str], columns: list[str]) -> Mapping[str, str] | str:
    if len(cells) != len(columns):
        return f"has {len(cells)} cells, the header has {len(columns)}"
    return dict(zip(columns, cells, strict=True))


def _rows(cells: Iterator[Cells], name: str, part: str, layout: Layout, found: Findings) -> Iterator[Row]:
    empty = True
    for count, (line, values) in enumerate(cells):
        empty, where = False, f"{name}:{line}"
        if count > _MOST_ROWS:
            return
        if isinstance(values, str):
            found.wrong(where, values, next(remedy for word, remedy in _MEND.items() if word in values))
            continue
        said = part or (values.get("split") or "").strip().lower()
        got = tuple(values.get(column, "").strip() for column in layout)
        missing = [column for column, value in zip(layout, got, strict=True) if not value]
        if missing:
            found.wrong(where, f"has no {missing[0]}", "fill it in, or take the line out")
        elif said and said not in _PARTS:
            found.wrong(where, f"split {said!r} is unknown", "write train, val or test")
        elif not all(map(_is_text, got)):
            found.wrong(where, "is not UTF-8", "save the file as UTF-8")
        else:
            yield Row(where, _PARTS.get(said, ""), got)
    if empty:
        found.wrong(name, "holds no rows", _NO_TABLE)


def _is_text(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
