"""A CSV that came with a data set → its rows, each with the line where it stands. Problems are noted, not raised. No torch."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.tasks.findings import Findings

Part = Literal["train", "val"]
Split = Part | Literal["test"]
SPLITS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


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
            heads = [head.strip().lower() for head in reader.fieldnames or ()]
    except (UnicodeDecodeError, csv.Error) as error:
        found.wrong(table.name, f"is no readable CSV ({error})", "save it as CSV in UTF-8")
        return []
    names = {columns[theirs]: theirs for theirs in reversed(list(columns)) if theirs in heads}
    wanted = dict.fromkeys(columns.values())
    if missing := [name for name in wanted if name not in names]:
        told = f"its columns are {', '.join(heads)}" if heads else "it is empty"
        remedy = f"name them {', '.join(wanted)} and, if wanted, split"
        found.wrong(f"{table.name}:1", f"{told}; {' and '.join(missing)} cannot be found", remedy)
        return []
    said = [one for where, fields in rows if (one := _said(where, fields, names, found))]
    tests = sum(split == "test" for _, split, _ in said)
    role = role_of_test({split for _, split, _ in said}, f"{tests} rows of test are", found)
    return [Row(where, part, values) for where, split, values in said if (part := role if split == "test" else split)]


def role_of_test(splits: Collection[str], what: str, found: Findings) -> Part | None:
    """`test` is val where there is none. Beside one it is left alone (None), to measure what that has chosen. A warning says so:
    `what`, with its verb.
    """
    if not {"val", "test"} <= set(splits):
        return "val"
    found.warnings.append(f"{what} left alone: val chooses the best weights")
    return None


def _said(
    where: str, fields: Mapping[str | None, object], names: Mapping[str, str], found: Findings
) -> tuple[str, Split, dict[str, str]] | None:
    if None in fields:
        found.wrong(where, "has more fields than there are columns", "put quotes around a field that has commas in it")
        return None
    values = {str(head).strip().lower(): str(value or "").strip() for head, value in fields.items()}
    split = SPLITS.get(values.get("split", "").lower() or "train")
    if split is None:
        found.wrong(where, f"split {values['split']!r} is unknown", "write train or val")
        return None
    return where, split, {name: values[theirs] for name, theirs in names.items()}


def tables(root: Path) -> list[Path]:
    """The CSV files that lie in the folder itself, by name."""
    return sorted(path for path in root.iterdir() if path.suffix.lower() == ".csv" and path.is_file())


def not_read(names: Collection[str], found: Findings) -> None:
    """Warn of files that are passed over."""
    if names:
        found.warnings.append(f"not read: {', '.join(sorted(names)[:5])}{', …' if len(names) > 5 else ''}")


def inside(root: Path, name: str) -> Path | None:
    """The file of this name in the resolved folder `root`; None if there is none, or it lies elsewhere."""
    try:
        path = (root / name).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None
    except (ValueError, OSError):  # a NUL, a name that is too long
        return None
