"""`hearth pull`: download with progress bars."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from app.catalogue import Catalogue
from app.settings import Settings
from app.weights import fetch


def pull(catalogue: Catalogue, names: Sequence[str], settings: Settings, console: Console) -> None:
    """Fetch the weights of `names` (none: the pretrained defaults). Raises WeightsError, UnknownModel."""
    wanted = names or tuple(catalogue.defaults("pretrained", lambda _: True).values())
    cards = [catalogue.named(name) for name in wanted]
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        for card in cards:
            rows: dict[str, object] = {}

            def report(name: str, done: int, total: int, *, of: str = card.name, rows: dict[str, object] = rows) -> None:
                if name not in rows:
                    rows[name] = bars.add_task(f"{of} · {name}")
                bars.update(rows[name], completed=done, total=total or None)  # type: ignore[arg-type]

            fetch(card, settings, report)
            bars.console.print(f"{card.name}: here")
