"""The CSVs that came with a data set → their rows, each with the line where it stands. Problems are noted, not raised. No torch.

Of several each is the part that its name says: train, val or test.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from app.tasks.findings import Findings

Part = Literal["train", "val"]
Split = Part | Literal["test"]
SPLITS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_MOST_ROWS = 200_000  # as many as an archive may hold files

_Said = tuple[str, Split, dict[str, str]]
"""Where, and what the row says."""


@dataclass(frozen=True, slots=True)
class Row:
    """`where` is file:line; `part` is train where nothing says it, None where the row is left alone; `fields` are trimmed."""

    where: str
    part: Part | None
    fields: dict[str, str]


def read(tables: Sequence[Path], columns: Mapping[str, str], found: Findings) -> Iterator[Row]:
    """The rows that can be understood. `columns`: what a table may call it → what we call it; each of ours is needed."""
    said = list(islice(_of_all(tables, columns, found), _MOST_ROWS + 1))
    if len(said) > _MOST_ROWS:
        found.wrong(".", f"there are more than {_MOST_ROWS:,} rows", "give fewer")
        return
    tests = sum(split == "test" for _, split, _ in said)
    role = role_of_test({split for _, split, _ in said}, f"{tests} rows of test are", found)
    for where, split, values in said:
        if found.enough:
            return
        yield Row(where, role if split == "test" else split, values)


def _of_all(tables: Sequence[Path], columns: Mapping[str, str], found: Findings) -> Iterator[_Said]:
    for table in tables:
        split = SPLITS.get(table.stem.lower()) if len(tables) > 1 else None
        if len(tables) > 1 and split is None:
            no_part(table, found)
        else:
            yield from _read(table, columns, split, found)


def no_part(table: Path, found: Findings) -> None:
    """Note that one of several tables is called otherwise than any part."""
    what = "there are several tables, and its name does not say what it is for"
    found.wrong(table.name, what, "call it train, val or test")


def _read(table: Path, columns: Mapping[str, str], split: Split | None, found: Findings) -> Iterator[_Said]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            heads = [head.strip().lower() for head in next(filter(None, reader), ())]
            if not (places := _places(heads, columns, f"{table.name}:1", found)):
                return
            for cells in filter(None, reader):
                if found.enough:
                    return
                where = f"{table.name}:{reader.line_num}"
                if len(cells) > len(heads):
                    found.wrong(
                        where, "has more fields than there are columns", "put quotes around a field that has commas in it"
                    )
                elif one := _said(where, cells, places, split, found):
                    yield one
    except (UnicodeDecodeError, csv.Error) as error:
        found.wrong(table.name, f"is no readable CSV ({error})", "save it as CSV in UTF-8")


def _places(heads: Sequence[str], columns: Mapping[str, str], where: str, found: Findings) -> dict[str, int]:
    """Our columns and the split → where in a row they stand; empty if one is missing."""
    at = {head: place for place, head in enumerate(heads)}
    places = {columns[theirs]: at[theirs] for theirs in reversed(list(columns)) if theirs in at}
    wanted = dict.fromkeys(columns.values())
    if missing := [name for name in wanted if name not in places]:
        told = f"its columns are {some(heads, 20)}" if heads else "it is empty"
        remedy = f"name them {', '.join(wanted)} and, if wanted, split"
        found.wrong(where, f"{told}; {' and '.join(missing)} cannot be found", remedy)
        return {}
    return places | ({"split": at["split"]} if "split" in at else {})


def role_of_test(splits: Collection[str], what: str, found: Findings) -> Part | None:
    """`test` is val where there is none. Beside one it is left alone (None), to measure what that has chosen. A warning says so:
    `what`, with its verb.
    """
    if not {"val", "test"} <= set(splits):
        return "val"
    found.warnings.append(f"{what} left alone: val chooses the best weights")
    return None


def _said(where: str, cells: Sequence[str], places: Mapping[str, int], split: Split | None, found: Findings) -> _Said | None:
    values = {name: cells[place].strip() if place < len(cells) else "" for name, place in places.items()}
    named = values.pop("split", "")
    split = split or SPLITS.get(named.lower() or "train")
    if split is None:
        found.wrong(where, f"split {named!r} is unknown", "write train or val")
        return None
    return where, split, values


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
