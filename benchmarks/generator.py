"""The load generator: carries out a `load.Plan` with raw HTTP requests over kept-alive sockets. It asks for a core soon after it
wakes up, as our frontends do: on the cores of those whom it measures, its own waiting would count as theirs.

python benchmarks/generator.py < plan.json        (requests in base64; the answers come as one line of JSON)
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import random
import resource
import selectors
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import uvloop
from load import PRECISE, Answer, Plan

from app.process import take_short_turns

_IDLE_S = 4.0  # uvicorn closes a socket that was idle for five seconds: it is left before that


@dataclass(slots=True)
class _Job:
    request: int
    due: float
    retry: bool = False
    left: float = 0.0
    sent: float = 0.0


class _Connection(asyncio.Protocol):
    """One socket, one request at a time."""

    def __init__(self, answered: Callable[[_Connection, int, bytes], None]) -> None:
        self.job: _Job | None = None
        self.alive = True
        self.used = time.monotonic()
        self._answered = answered
        self._read = bytearray()
        self._ends = 0
        self._head = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, job: _Job, raw: bytes) -> None:
        self.job = job
        self.used = job.sent = time.monotonic()
        self._transport.write(raw)

    def data_received(self, data: bytes) -> None:
        self._read += data
        if not self._ends:
            end = self._read.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            self._head = bytes(self._read[:end]).lower()
            self._ends = end + int(_field(self._head, b"content-length") or 0)
        if len(self._read) >= self._ends:
            self._read.clear()
            self._ends = 0
            self._answered(self, int(self._head[9:12]), self._head)

    def connection_lost(self, _: Exception | None) -> None:
        self.alive = False
        self._answered(self, 0, b"")

    def close(self) -> None:
        self.job = None
        self._transport.close()


def _field(head: bytes, name: bytes) -> bytes:
    _, found, rest = head.partition(b"\r\n" + name + b":")
    return rest.partition(b"\r\n")[0].strip() if found else b""


class _Generator:
    """Carries out a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._raw = [base64.b64decode(request) for request in plan.requests]
        self._free: list[_Connection] = []
        self._waiting: deque[_Job] = deque()
        self._open: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._refused = 0
        self._answers: list[Answer] = []
        self._all_sent = False
        self._quiet = asyncio.Event()

    async def carry_out(self) -> list[Answer]:
        """Send, wait for what is under way, close."""
        self._start = time.monotonic()
        if self._plan.clients:
            for client in range(self._plan.clients):
                self._dispatch(_Job(client % len(self._raw), time.monotonic()))
        else:
            await self._arrive()
        self._all_sent = True
        self._settle()
        limit_s = self._plan.grace_s + (self._plan.seconds if self._plan.clients else 0)
        try:
            await asyncio.wait_for(self._quiet.wait(), limit_s)
        except TimeoutError:
            for job in [connection.job for connection in self._open if connection.job] + list(self._waiting):
                self._note(job, 0, None)
        for connection in self._open:
            connection.close()
        return self._answers

    async def _arrive(self) -> None:
        chance, due, number = random.Random(self._plan.seed), self._start, 0
        while (due := due + chance.expovariate(self._plan.rate)) < self._start + self._plan.seconds:
            if (pause_s := due - time.monotonic()) > 0:
                await asyncio.sleep(pause_s)
            self._dispatch(_Job(number % len(self._raw), due))
            number += 1

    def _dispatch(self, job: _Job) -> None:
        self._under_way += 1
        job.left = time.monotonic()
        while self._free:
            connection = self._free.pop()
            if time.monotonic() - connection.used < _IDLE_S:
                connection.send(job, self._raw[job.request])
                return
            connection.close()
        self._waiting.append(job)
        self._open_more()

    def _open_more(self) -> None:
        if self._waiting and len(self._open) + len(self._opening) < (self._plan.clients or self._plan.connections):
            task = asyncio.create_task(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        host = urlsplit(self._plan.address)
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self._answered), host.hostname, host.port
            )
        except OSError:
            if self._waiting:
                self._done(self._waiting.popleft(), 0, b"")
            return
        self._open.add(connection)
        self._next(connection)

    def _next(self, connection: _Connection) -> None:
        if self._waiting:
            job = self._waiting.popleft()
            connection.send(job, self._raw[job.request])
        else:
            self._free.append(connection)

    def _answered(self, connection: _Connection, status: int, head: bytes) -> None:
        job, connection.job = connection.job, None
        if connection.alive and b"connection: close" not in head:
            self._next(connection)
        else:
            self._open.discard(connection)
            if connection in self._free:
                self._free.remove(connection)
            self._open_more()
        if job is not None:
            self._done(job, status, head)

    def _done(self, job: _Job, status: int, head: bytes) -> None:
        now = time.monotonic()
        after = _field(head, b"retry-after")
        self._note(job, status, float(after) if after else None)
        self._under_way -= 1
        if self._plan.clients and now < self._start + self._plan.seconds:
            self._dispatch(_Job((job.request + self._plan.clients) % len(self._raw), now))
        elif status == 503 and after and self._plan.retry_every and not job.retry:
            self._refused += 1
            if self._refused % self._plan.retry_every == 0:
                self._under_way += 1
                asyncio.get_running_loop().call_later(
                    float(after), self._retry, _Job(job.request, now + float(after), retry=True)
                )
        self._settle()

    def _retry(self, job: _Job) -> None:
        self._under_way -= 1
        self._dispatch(job)

    def _settle(self) -> None:
        if self._all_sent and self._under_way == 0:
            self._quiet.set()

    def _note(self, job: _Job, status: int, after: float | None) -> None:
        now = time.monotonic()
        times = (moment - self._start for moment in (job.due, job.left or now, job.sent or now, now))
        self._answers.append(Answer(job.request, *times, status, after, job.retry))


def main() -> None:
    plan = Plan(**json.load(sys.stdin))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    take_short_turns()
    gc.disable()  # a collection in the midst of it would look like the server's latency
    sockets = plan.clients or plan.connections
    # Beyond what select() may watch, the loop that costs the others' cores least. Both sleep for whole milliseconds there.
    loop = uvloop.new_event_loop if sockets > PRECISE else lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())

    async def generate() -> list[Answer]:
        return await _Generator(plan).carry_out()

    with asyncio.Runner(loop_factory=loop) as runner:
        answers = runner.run(generate())
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
