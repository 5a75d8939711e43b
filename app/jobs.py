"""`hearth jobs` and `hearth jobs watch ID`: what a running server says of its jobs, for people."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress

from app.errors import Invalid
from app.listing import listing
from app.tuning.job import headline
from app.tuning.show import bar as progress_bar, move

_PATIENCE_S = 60.0  # a stream says something every ten seconds


def show(base: str, out: Console) -> None:
    """A table of all jobs, newest first."""
    answer = httpx.get(f"{base}/finetune", timeout=30)
    table = listing("job", "model", "from", "state", "progress", "metrics", "reason")
    for job in answer.json()["jobs"]:
        done = job["progress"]
        how_far = f"{done['step']} of {done['steps']}" if done else ""
        metrics = headline(job["result"].get("metrics") or (done.get("best") or {}).get("metrics") or {})
        table.add_row(job["id"], job["model"], job["spec"]["base"], job["state"], how_far, metrics, job["reason"])
    out.print(table)


def watch(base: str, id: str, out: Console) -> bool:
    """A bar that follows a job to its end, through restarts of the server. True if it succeeded. Raises Invalid if unknown."""
    last = "0"
    with progress_bar(out) as bar:
        row = bar.add_task("waiting", total=None)
        while True:
            try:
                with httpx.stream(
                    "GET", f"{base}/finetune/{id}/events", headers={"Last-Event-ID": last}, timeout=_PATIENCE_S
                ) as stream:
                    if stream.status_code == 404:
                        raise Invalid(f"there is no job {id} at {base}; hearth jobs lists them")
                    kind = ""
                    for line in stream.iter_lines():
                        name, _, value = line.partition(": ")
                        if name == "id":
                            last = value
                        elif name == "event":
                            kind = value
                        elif name == "data" and (state := _told(kind, json.loads(value), bar, row)):
                            return state == "succeeded"
            except httpx.TransportError:  # the server is being restarted; the job goes on with it
                time.sleep(1)


def _told(kind: str, data: dict[str, Any], bar: Progress, row: Any) -> str:
    """Show an event; the state that ends the job, or nothing."""
    if kind == "progress":
        move(bar, row, data)
        return ""
    if kind == "stage":
        bar.update(row, description=data["stage"])
        return ""
    state = str(data.get("state", ""))
    bar.console.print(f"{state}{': ' + data['reason'] if data.get('reason') else ''}")
    return state if state in ("succeeded", "failed", "cancelled") else ""
