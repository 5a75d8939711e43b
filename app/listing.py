"""Tables on a terminal, however narrow: nothing is cut, because what is listed is there to be copied."""

from __future__ import annotations

from rich import box
from rich.table import Column, Table


def listing(name: str, *columns: str) -> Table:
    """An empty table, with little frame. What is too long goes on below, but for `name`, by which the rest is found."""
    return Table(
        Column(name, no_wrap=True),
        *(Column(column, overflow="fold") for column in columns),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
