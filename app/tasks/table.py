"""The CSVs that came with a data set → their rows, each with the line where it stands. Problems are noted, not raised. No torch.

Of several each is the part that its name says: train, val or test.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.tasks.findings import Findings

Part = Literal["train", "val"]
Split = Part | Literal["test"]
SPLITS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


_Said = tuple[str, Split, dict[str, str]]
"""Where, and what the row says."""


@dataclass(frozen=True, slots=True)
class Row:
    """`where` is file:line; `part` is train where nothing says it, None where the row is left alone; `fields` are trimmed."""

    where: str
    part: Part | None
    fields: dict[str, str]


def read(tables: Sequence[Path], columns: Mapping[str, str], found: Findings) -> list[Row]:
    """The rows that can be understood. `columns`: what a table may call it → what we call it; each of ours is needed."""
    said: list[_Said] = []
    for table in tables:
        split = SPLITS.get(table.stem.lower()) if len(tables) > 1 else None
        if len(tables) > 1 and split is None:
            no_part(table, found)
        else:
            said += _read(table, columns, split, found)
    tests = sum(split == "test" for _, split, _ in said)
    role = role_of_test({split for _, split, _ in said}, f"{tests} rows of test are", found)
    return [Row(where, role if split == "test" else split, values) for where, split, values in said]


def no_part(table: Path, found: Findings) -> None:
    """Note that one of several tables is called otherwise than any part."""
    what = "there are several tables, and its name does not say what it is for"
    found.wrong(table.name, what, "call it train, val or test")


def _read(table: Path, columns: Mapping[str, str], split: Split | None, found: Findings) -> list[_Said]:
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
    return [one for where, fields in rows if (one := _said(where, fields, names, split, found))]


def role_of_test(splits: Collection[str], what: str, found: Findings) -> Part | None:
    """`test` is val where there is none. Beside one it is left alone (None), to measure what that has chosen. A warning says so:
    `what`, with its verb.
    """
    if not {"val", "test"} <= set(splits):
        return "val"
    found.warnings.append(f"{what} left alone: val chooses the best weights")
    return None


def _said(
    where: str, fields: Mapping[str | None, object], names: Mapping[str, str], split: Split | None, found: Findings
) -> _Said | None:
    if None in fields:
        found.wrong(where, "has more fields than there are columns", "put quotes around a field that has commas in it")
        return None
    values = {str(head).strip().lower(): str(value or "").strip() for head, value in fields.items()}
    split = split or SPLITS.get(values.get("split", "").lower() or "train")
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


def unnamed(files: Collection[str], told: str, found: Findings) -> None:
    """Warn of files that no row names: `told`, what they are and lack."""
    if files:
        found.warnings.append(f"{len(files)} {told} and are not used: {some(sorted(files))}")


def some(names: Sequence[str], most: int = 5) -> str:
    """Of many, so many by name."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def inside(root: Path, name: str) -> Path | None:
    """The file of this name in the resolved folder `root`; None if there is none, or it lies elsewhere."""
    try:
        path = (root / name).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None
    except (ValueError, OSError):  # a NUL, a name that is too long
        return None
