"""Tables and code blocks of README.md."""

from __future__ import annotations

import re
from pathlib import Path

from tests.rules.source import ROOT


def text(path: Path = ROOT / "README.md") -> str:
    """A missing README is a failure of its own, never a reason to skip."""
    assert path.is_file(), f"{path.name} is missing: the documented tables and commands cannot be checked"
    return path.read_text(encoding="utf-8")


def rows(markdown: str, first_column: str) -> list[dict[str, str]]:
    """The rows of every table whose first heading is `first_column`, by heading, code marks taken off; case is ignored."""
    found: list[dict[str, str]] = []
    heads: list[str] | None = None
    for line in markdown.splitlines():
        if not line.lstrip().startswith("|"):
            heads = None
            continue
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if heads is None:
            heads = [cell.lower() for cell in cells]
        elif heads[0] == first_column.lower() and not set("".join(cells)) <= set("-: "):
            found.append(dict(zip(heads, (cell.strip("`") for cell in cells), strict=True)))
    return found


def code_blocks(markdown: str) -> list[str]:
    """The text of every fenced block."""
    return re.findall(r"^```[^\n]*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
