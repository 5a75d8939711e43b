"""Load on a server, made by `generator.py` in a process of its own: the plan, and what came of it.

    answers = load.run(url, [raw], clients=8, seconds=3)          begin … finish: several generators side by side

Closed loop (`clients`): each client sends its next request when the last one was answered. Open loop (`rate`): requests leave at
times drawn beforehand (Poisson), whether or not the server answers, and latency counts from the drawn time, so that a server that
stalls cannot hide it (no coordinated omission).
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

_GENERATOR = Path(__file__).with_name("generator.py")
PRECISE = 500  # sockets that select() may watch: it sleeps for microseconds where epoll sleeps for whole milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to send."""

    address: str
    requests: Sequence[str]
    seconds: float
    clients: int = 0
    rate: float = 0.0
    connections: int = PRECISE
    """The open loop opens no more; what finds none free waits, and its latency counts on."""
    retry_every: int = 0
    """Of the answers 503 with Retry-After, every so many is asked again, once, after just that time."""
    grace_s: float = 60.0
    seed: int = 1


class Answer(NamedTuple):
    """One answer. Seconds since the start; status 0: none came.

    `due` ≤ `left` ≤ `sent`: when it was to be sent, when the generator came to send it, when a socket was free.
    """

    request: int
    due: float
    left: float
    sent: float
    done: float
    status: int
    retry_after: float | None
    retry: bool


@dataclass(frozen=True, slots=True)
class Answers:
    """All answers to one plan."""

    all: Sequence[Answer]

    def of(self, *statuses: int, retry: bool = False) -> list[Answer]:
        """Those with one of the statuses."""
        return [answer for answer in self.all if answer.status in statuses and answer.retry == retry]

    def rate(self) -> float:
        """Answers 200 per second, until the last one came."""
        good = self.of(200)
        return len(good) / max(answer.done for answer in good) if good else 0.0

    def ms(self, *shares: float, statuses: Sequence[int] = (200,), request: int | None = None) -> list[float]:
        """Quantiles of latency from the time when it was due."""
        spent = [1000 * (a.done - a.due) for a in self.of(*statuses) if request is None or a.request == request]
        return [quantile(spent, share) for share in shares]

    def failed(self) -> int:
        """Answers other than 200."""
        return sum(answer.status != 200 for answer in self.all)


def quantile(values: Sequence[float], share: float) -> float:
    """Nearest rank; NaN of nothing."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else float("nan")


def begin(address: str, requests: Sequence[bytes], **plan: Any) -> subprocess.Popen[str]:
    """Start a generator beside this process."""
    process = subprocess.Popen([sys.executable, str(_GENERATOR)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    packed = [base64.b64encode(request).decode() for request in requests]
    process.stdin.write(json.dumps(asdict(Plan(address=address, requests=packed, **plan))))
    process.stdin.close()
    return process


def finish(process: subprocess.Popen[str]) -> Answers:
    """Wait for its answers."""
    assert process.stdout is not None
    out = process.stdout.read()
    if process.wait() != 0:
        sys.exit("the load generator failed")
    return Answers([Answer(*one) for one in json.loads(out)])


def run(address: str, requests: Sequence[bytes], **plan: Any) -> Answers:
    """`begin` and `finish`."""
    return finish(begin(address, requests, **plan))
