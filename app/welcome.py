"""What `hearth serve` prints when everything stands: the address, the models, one curl for each endpoint."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.pool.roster import Roster
from app.settings import Settings

_EXAMPLES = (
    ("image-classification", "curl -F file=@photo.jpg {url}/predict/image"),
    ("image-classification", "curl -F file=@photo.jpg {url}/embed/image"),
    ("text-embedding", 'curl --json \'{{"inputs": "a warm hearth"}}\' {url}/embed/text'),
    ("text-classification", 'curl --json \'{{"inputs": "a warm hearth"}}\' {url}/predict/text'),
    ("speech-recognition", "curl -F file=@recording.wav {url}/transcribe"),
    ("", "curl {url}/models                      # and /models/NAME; POST /models/NAME/load, /models/NAME/unload"),
    ("", "curl {url}/health/ready                # and /health/live, /metrics"),
)
_COLOURS = {"ready": "green", "failed": "red", "loading": "yellow"}


def announce(settings: Settings, roster: Roster, port: int) -> None:
    """Print it. A server serves all the same where that can't be written: it has no output, its terminal was closed, the disk
    is full.
    """
    if sys.stdout is None or sys.stdout.closed:  # from the start
        return
    said = io.StringIO()
    console = Console(file=said, force_terminal=sys.stdout.isatty() or None, highlight=False, soft_wrap=True)
    _say(console, settings, roster, port)
    letters = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(said.getvalue().encode(letters, "replace").decode(letters))
        sys.stdout.flush()
    except OSError:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # it would be tried again, and fail, at the end


def _say(console: Console, settings: Settings, roster: Roster, port: int) -> None:
    host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host  # noqa: S104  compared, not bound
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    table = Table("model", "task", "state", "", box=None, header_style="dim", pad_edge=False)
    for name, served in roster.models.items():
        colour = _COLOURS.get(served.state, "dim")
        about = served.why or ("default; " if served.default else "") + (served.card.about.accuracy or served.card.about.title)
        table.add_row(name, served.card.task, f"[{colour}]{served.state}[/]", Text(about))
    ready = {served.card.task for served in roster.models.values() if served.default and served.state == "ready"}
    console.print(f"\n[bold]Hearth[/] is at [bold]{url}[/]   (docs: {url}/docs)\n")
    console.print(table)
    console.print()
    for task, example in _EXAMPLES:
        if not task or task in ready:
            console.print(f"  {example.format(url=url)}")
    console.print()
