"""Callers that ask without end and compare each answer with the right one. Whatever comes is counted; nothing ends a caller.

with Callers(url, [asked(url, "/predict/image", png, "image/png")]) as callers:
    seconds = callers.felt(lambda: os.kill(pid, SIGKILL))        until each caller has a right answer to a new request
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from typing import Any, Literal, Self
from urllib.parse import urlsplit

_REST_S = 0.01  # after a request that failed: a server that refuses at once shall not be asked in a hot loop
_TOLD = 5  # complaints that are kept, and all of what was lost
_TIMEOUT_S = 60.0
_SLOW_S = 0.1  # a right answer that takes longer is noted: many times what a toy takes, a fraction of any bar

Outcome = Literal["right", "wrong", "failed", "lost"]


@dataclass(frozen=True, slots=True)
class Question:
    """One request, and what is right: the status, and one of `known` must be in the answer."""

    path: str
    body: bytes
    media: str
    known: Sequence[Any] = ()
    status: int = 200

    def outcome(self, status: int, body: bytes) -> Outcome:
        """`wrong`: as a right answer looks, but it is not. `failed`: an error, or not the one that was due."""
        if status != self.status:
            return "wrong" if status == 200 else "failed"
        return "right" if any(within(one, json.loads(body)) for one in self.known) else "wrong"


def within(known: Any, got: Any) -> bool:
    """All that is known is in what we got; numbers may differ as much as neighbours in a batch make them differ."""
    if isinstance(known, dict):
        return isinstance(got, dict) and all(key in got and within(value, got[key]) for key, value in known.items())
    if isinstance(known, list):
        return isinstance(got, list) and len(known) == len(got) and all(map(within, known, got))
    if isinstance(known, float):
        return isinstance(got, int | float) and math.isclose(known, got, rel_tol=1e-3, abs_tol=1e-4)
    return bool(known == got)


class Line:
    """A kept-alive connection, opened anew after it broke. No request is ever sent twice."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        host = urlsplit(url)
        self._headers = headers or {}
        self._http = HTTPConnection(host.hostname or "", host.port, timeout=_TIMEOUT_S)

    def ask(self, question: Question) -> tuple[int, bytes]:
        """Raises OSError and HTTPException."""
        try:
            self._http.request("POST", question.path, question.body, {"Content-Type": question.media, **self._headers})
            answer = self._http.getresponse()
            return answer.status, answer.read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._http.close()


def asked(url: str, path: str, body: bytes, media: str, line: Callable[[str], Any] = Line) -> Question:
    """A question whose right answer is the one that it gets now."""
    line, question = line(url), Question(path, body, media)
    status, answer = line.ask(question)
    line.close()
    if status != 200:
        raise RuntimeError(f"{path}: {status} {answer[:300].decode(errors='replace')}")
    return replace(question, known=[json.loads(answer)])


@dataclass(slots=True)
class Counts:
    """What came of the requests."""

    right: int = 0
    wrong: int = 0
    failed: int = 0
    lost: int = 0
    told: list[str] = field(default_factory=list)
    """The first complaints, and every loss."""
    lost_s: list[float] = field(default_factory=list)
    """How long each lost request was under way."""
    slow: list[tuple[float, float]] = field(default_factory=list)
    """Right answers that took longer than `_SLOW_S`: the seconds, and when (`time.monotonic`) each was asked for."""

    @property
    def sent(self) -> int:
        return self.right + self.bad

    @property
    def bad(self) -> int:
        return self.wrong + self.failed + self.lost

    def figures(self) -> dict[str, int]:
        """For a report."""
        return {"sent": self.sent, "right": self.right, "wrong": self.wrong, "failed": self.failed, "lost": self.lost}


class _Fault:
    """How long callers feel it: until each has had a right answer to a request that it sent afterwards."""

    def __init__(self, callers: int, began: float) -> None:
        self.over = threading.Event()
        self.felt_s = math.inf
        self._began = began
        self._since = time.monotonic()
        self._waiting = set(range(callers))

    def answered(self, caller: int, sent: float) -> None:
        if sent >= self._since:
            self._waiting.discard(caller)
            if not self._waiting and not self.over.is_set():
                self.felt_s = time.monotonic() - self._began
                self.over.set()


class Callers:
    """Threads, each on a line of its own, that take turns with the questions until the block ends."""

    def __init__(
        self, url: str, questions: Sequence[Question], count: int = 4, line: Callable[[str], Any] = Line, rest_s: float = 0.0
    ) -> None:
        """`rest_s`: each waits for so long after a right answer."""
        self.counts = Counts()
        self._rest_s = rest_s
        self._url = url
        self._questions = questions
        self._line = line
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._fault: _Fault | None = None
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]

    def felt(self, fault: Callable[[], object], limit_s: float = 60.0) -> float:
        """Do it; the seconds until every caller is answered right again, infinity if that takes longer than the limit."""
        began = time.monotonic()
        fault()
        felt = _Fault(len(self._threads), began)
        self._fault = felt
        felt.over.wait(limit_s)
        self._fault = None
        return felt.felt_s

    def more(self, answers: int = 10, limit_s: float = 60.0) -> None:
        """Wait until every caller has had so many more right answers."""
        for _ in range(answers):
            if self.felt(lambda: None, limit_s) == math.inf:
                raise TimeoutError(f"no right answer for each caller in {limit_s:g} s: {self.counts}")

    def _run(self, number: int) -> None:
        line, turn = self._line(self._url), number
        while not self._stop.is_set():
            question = self._questions[turn % len(self._questions)]
            turn += 1
            sent = time.monotonic()
            outcome, told = self._ask(line, question)
            took = time.monotonic() - sent
            with self._lock:
                setattr(self.counts, outcome, getattr(self.counts, outcome) + 1)
                if outcome == "right" and took > _SLOW_S:
                    self.counts.slow.append((took, sent))
                if outcome == "lost":
                    self.counts.lost_s.append(took)
                if outcome == "right" and (fault := self._fault):
                    fault.answered(number, sent)
                elif outcome == "lost" or (outcome != "right" and len(self.counts.told) < _TOLD):
                    self.counts.told.append(f"{question.path}: {outcome} after {took:.2f} s: {told[:400]}")
            self._stop.wait(self._rest_s if outcome == "right" else max(self._rest_s, _REST_S))
        line.close()

    @staticmethod
    def _ask(line: Any, question: Question) -> tuple[Outcome, str]:
        try:
            status, body = line.ask(question)
        except (OSError, HTTPException) as error:
            return "lost", repr(error)
        try:
            return question.outcome(status, body), f"{status} {body.decode(errors='replace')}"
        except ValueError as error:  # 200, and no JSON
            return "wrong", repr(error)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
