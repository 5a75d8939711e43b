"""A training on a terminal: a bar that follows it, a line for each measurement, a table at the end. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from app.tuning.job import in_words, number

if TYPE_CHECKING:
    from app.tuning.progress import Progress


def bar(console: Console) -> Bar:
    """Steps done of how many, and the time that is left."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bar(*columns, console=console, refresh_per_second=4)


def move(bar: Bar, row: TaskID, told: Mapping[str, Any]) -> None:
    """Show one progress, by the names of `tuning/progress.py: Progress`."""
    loss = f"loss {number(told['loss']):.3f}"
    bar.update(row, total=told["steps"], completed=told["step"], description=loss)
    if told["metrics"]:
        bar.console.print(f"epoch {told['epoch']:3d}  {loss}  {in_words(told['metrics'])}")


def follow(training: Iterable[Progress], console: Console) -> float:
    """Train with a bar; returns the samples that were learnt from per second."""
    speed = 0.0
    with bar(console) as shown:
        row = shown.add_task("training", total=None)
        for progress in training:
            speed = progress.samples_per_s
            move(shown, row, {name: getattr(progress, name) for name in progress.__slots__})
    return speed


def table(console: Console, title: str, result: Mapping[str, Any], samples_per_s: float, where: str) -> None:
    """What came out. `result`: as a job's."""
    best = result["best"] or {}
    rows = {
        "held-out part": in_words(result["metrics"]),
        "best measured": f"{in_words(best['metrics'])} at step {best['step']:,}, epoch {best['epoch']}" if best else "",
        "time": f"{result['seconds']:.0f} s, {samples_per_s:,.0f} samples/s",
        "device": f"{result['device']} ({result['device_name']}), {result['threads']} threads",
        "seed": str(result["recipe"]["seed"]),
        "written to": where,
    }
    out = Table("", title, show_edge=False)
    for name, value in rows.items():
        if value:
            out.add_row(name, value)
    console.print(out)
