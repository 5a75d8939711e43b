"""More requests than one worker can answer, in simulated time."""

from __future__ import annotations

import random
from heapq import heappop, heappush
from math import ceil

from app.errors import TooBusy
from app.pool.admission import Admission


class Flood:
    """What comes of one, in simulated time; a batch takes up to a fifth more or less than the last one."""

    def __init__(self, seed: int, times: float, seconds: float, each_s: float, largest: int) -> None:
        self.queue, self.seconds = Admission("toy"), seconds
        self.came_back = self.let_in = self.refused = self.in_time = 0
        self.longest_s = self.took_s = 0.0
        self.waiting: list[float] = []
        draw, self.events = random.Random(seed), list[tuple[float, str]]()
        for _ in range(int(times * seconds / each_s)):
            heappush(self.events, (draw.uniform(0.0, seconds), "asks"))
        self.running: list[float] = []
        while self.events:
            now, what = heappop(self.events)
            if what == "answered":
                self._answer(now)
            else:
                self._ask(now, returns=what == "returns")
            if self.waiting and not self.running:
                self.running, self.waiting = self.waiting[:largest], self.waiting[largest:]
                self.took_s = each_s * len(self.running) * draw.uniform(0.8, 1.2)
                heappush(self.events, (now + self.took_s, "answered"))

    def _answer(self, now: float) -> None:
        for since in self.running:
            self.queue.answered(self.took_s / len(self.running), len(self.running))
            self.longest_s = max(self.longest_s, now - since)
        self.in_time += len(self.running) * (now < self.seconds)
        self.queue.held -= len(self.running)
        self.running = []

    def _ask(self, now: float, returns: bool) -> None:
        counts = returns and now >= self.seconds
        self.came_back += counts
        try:
            self.queue.check(1, room=512, allowed_s=2.0, workers=1.0, now=now)
        except TooBusy as error:
            self.refused += not returns
            if not returns and self.refused % 20 == 0:
                heappush(self.events, (now + ceil(error.retry_after_s or 0.0), "returns"))
            return
        self.let_in += counts
        self.queue.held += 1
        self.waiting.append(now)
