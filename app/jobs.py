"""`hearth jobs` and `hearth jobs watch ID`: what a running server says of its jobs, for people."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress

from app.errors import HearthError, Invalid, Unavailable
from app.listing import listing
from app.tuning.job import DONE, headline
from app.tuning.show import bar as progress_bar, move

_PATIENCE_S = 60.0  # a stream says something every ten seconds
_AGAIN_S = 1.0  # between a stream that ended before the job did, and the next
_WORDS = 200  # characters of an answer that is none of ours


def show(http: httpx.Client, out: Console) -> None:
    """A table of all jobs, newest first. Raises HearthError for an answer that is none, httpx.ConnectError without a server."""
    table = listing("job", "model", "from", "state", "progress", "metrics", "reason")
    for job in _ask(http, "")["jobs"]:
        done = job["progress"]
        how_far = f"{done['step']} of {done['steps']}" if done else ""
        metrics = headline(job["result"].get("metrics") or (done.get("best") or {}).get("metrics") or {})
        table.add_row(job["id"], job["model"], job["spec"]["base"], job["state"], how_far, metrics, job["reason"])
    out.print(table)


def watch(http: httpx.Client, id: str, out: Console) -> bool:
    """A bar that follows a job to its end, through restarts of the server and of its database. True if it succeeded.

    Raises Invalid if it is unknown, HearthError for an answer that is none, httpx.ConnectError if no server answers at first.
    """
    _ask(http, f"/{id}")
    last, told = "0", False
    with progress_bar(out) as bar:
        row = bar.add_task("waiting", total=None)
        while True:
            try:
                for number in _follow(http, id, last, bar, row):
                    last, told = number, False
                state = str(_ask(http, f"/{id}")["state"])  # a resumed job's history holds ends that were none
                if state in DONE:
                    return state == "succeeded"
            except (httpx.TransportError, Unavailable) as error:  # server or database is being restarted; the job goes on
                if not told:
                    why = error.detail if isinstance(error, Unavailable) else f"{_base(http)} does not answer"
                    bar.console.print(f"{why}; waiting until that is over")
                told = True
            time.sleep(_AGAIN_S)


def _follow(http: httpx.Client, id: str, last: str, bar: Progress, row: Any) -> Iterator[str]:
    """Show what happens after event `last`, until the stream ends; the number of each event that was shown."""
    kind = number = ""
    with http.stream("GET", f"/finetune/{id}/events", headers={"Last-Event-ID": last}, timeout=_PATIENCE_S) as stream:
        if not stream.is_success:
            stream.read()
            raise _refusal(http, stream)
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                number = value
            elif name == "event":
                kind = value
            elif name == "data":
                _tell(kind, json.loads(value), bar, row)
                yield number


def _tell(kind: str, data: dict[str, Any], bar: Progress, row: Any) -> None:
    if kind == "progress":
        move(bar, row, data)
    elif kind == "stage":
        bar.update(row, description=data["stage"])
    else:
        bar.console.print(f"{data.get('state', '')}{': ' + data['reason'] if data.get('reason') else ''}")


def _ask(http: httpx.Client, path: str) -> dict[str, Any]:
    answer = http.get(f"/finetune{path}")
    try:
        told: dict[str, Any] = answer.json()
    except ValueError:
        told = {}
    if not answer.is_success or not told:
        raise _refusal(http, answer)
    return told


def _refusal(http: httpx.Client, answer: httpx.Response) -> HearthError:
    base = _base(http)
    try:
        told = answer.json()
        code, detail = str(told["code"]), str(told["detail"])
    except (ValueError, KeyError, TypeError):  # somebody else's server
        code, detail = "", " ".join(answer.text.split())[:_WORDS]
    if code == "unknown_job":
        return Invalid(f"{base}: {detail}; hearth jobs lists them")
    kind = Unavailable if code == Unavailable.code else HearthError
    return kind(f"{base} answered {answer.status_code}: {detail or 'nothing'}")


def _base(http: httpx.Client) -> str:
    return str(http.base_url).rstrip("/")
