"""A CSV that came with a data set → its rows, each with the line where it stands. Problems are noted, not raised. No torch."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.tasks.findings import Findings

Part = Literal["train", "val"]
SPLITS: dict[str, Part] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "val"}
TEST = {"test"}
"""What is left alone where there is another part to choose the best weights by."""


@dataclass(frozen=True, slots=True)
class Row:
    """`where` is file:line; `part` is train where the table has no column `split`; `fields` are trimmed."""

    where: str
    part: Part
    fields: dict[str, str]


def read(table: Path, columns: Mapping[str, str], found: Findings) -> list[Row]:
    """The rows that can be understood. `columns`: what the table may call it → what we call it; each of ours is needed."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [(f"{table.name}:{reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        found.wrong(table.name, f"is no readable CSV ({error})", "save it as CSV in UTF-8")
        return []
    heads = [head.strip().lower() for head in reader.fieldnames or ()]
    names = {columns[theirs]: theirs for theirs in reversed(list(columns)) if theirs in heads}
    wanted = dict.fromkeys(columns.values())
    if missing := [name for name in wanted if name not in names]:
        told = f"its columns are {', '.join(heads)}" if heads else "it is empty"
        remedy = f"name them {', '.join(wanted)} and, if wanted, split"
        found.wrong(f"{table.name}:1", f"{told}; {' and '.join(missing)} cannot be found", remedy)
        return []
    parted = [(_split(fields), row) for where, fields in rows if (row := _row(where, fields, names, found))]
    if any(row.part == "val" and name not in TEST for name, row in parted) and (left := sum(name in TEST for name, _ in parted)):
        found.warnings.append(f"{left} rows of test are left alone: val chooses the best weights")
        parted = [(name, row) for name, row in parted if name not in TEST]
    return [row for _, row in parted]


def _split(fields: Mapping[str | None, object]) -> str:
    return next((str(value or "").strip().lower() for head, value in fields.items() if str(head).strip().lower() == "split"), "")


def _row(where: str, fields: Mapping[str | None, object], names: Mapping[str, str], found: Findings) -> Row | None:
    if None in fields:
        found.wrong(where, "has more fields than there are columns", "put quotes around a field that has commas in it")
        return None
    values = {str(head).strip().lower(): str(value or "").strip() for head, value in fields.items()}
    part = SPLITS.get(values.get("split", "").lower() or "train")
    if part is None:
        found.wrong(where, f"split {values['split']!r} is unknown", "write train or val")
        return None
    return Row(where, part, {name: values[theirs] for name, theirs in names.items()})


def inside(root: Path, name: str) -> Path | None:
    """The file of this name in the resolved folder `root`; None if there is none, or it lies elsewhere."""
    try:
        path = (root / name).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None
    except (ValueError, OSError):  # a NUL, a name that is too long
        return None
