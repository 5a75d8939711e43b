"""What a batch takes, by its cost: a line through the newest ones, by weighted least squares. Knows no queue and no clock."""

from __future__ import annotations

import math

_LONG_S = 0.5  # on two slow cores 64 texts of 128 tokens take two seconds, and 18 at a time no longer altogether
_WORTH = 4.0  # times what a batch of nothing takes, one may take: then three quarters of its time are its samples' …
_LONGEST_S = 2.0  # … up to so long
_NEWEST = 0.1  # weight of the newest batch
_UNKNOWN = (0.0, math.inf)
_FAR = 3.0  # times what was expected: more is not believed, a batch may have been stopped; nor the line, so far out
_SLOWER, _LATE = 1.5, 3  # so many times, so many batches in a row: the machine has become another one
_TELLING = 0.03  # of the mean cost squared, its variance: batches more alike than that do not tell what each unit of cost takes


class Expected:
    """Of one worker."""

    def __init__(self) -> None:
        self.told = False
        """Whether batches were of so many costs lately that they tell what one costs by itself."""
        self._seen = [0.0] * 5  # sums over the newest batches: 1, cost, cost ², s, cost × s
        self._fixed_s, self._each_s = self._usual = _UNKNOWN
        self._late = 0  # batches since the line was as it is usually

    def took(self, cost: float, seconds: float) -> None:
        """A batch that was answered took so long."""
        if cost <= 0 or seconds <= 0:  # nothing, or less than the clock can tell
            return
        if seconds <= _SLOWER * (self._usual[0] + self._usual[1] * cost):
            self._late, self._usual = 0, (self._fixed_s, self._each_s)
        else:
            self._late += 1
        if self._late < _LATE:
            seconds = min(seconds, _FAR * self.seconds(cost))
        else:
            self._late, self._seen = 0, [0.0] * 5
            self._fixed_s, self._each_s = self._usual = _UNKNOWN
        newest = (1.0, cost, cost**2, seconds, cost * seconds)
        self._seen = [(1 - _NEWEST) * before + value for before, value in zip(self._seen, newest, strict=True)]
        count, costs, squares, took_s, products = self._seen
        whole_s = took_s / costs  # a unit of cost, as if a batch cost nothing by itself
        spread = count * squares - costs**2
        self.told = spread > _TELLING * costs**2
        if self.told:
            self._each_s = (count * products - costs * took_s) / spread
        elif self._each_s < whole_s:  # it may be of other times
            self._each_s += _NEWEST * (whole_s - self._each_s)
        if not 0 < self._each_s <= whole_s:  # the larger the faster, or slower than in proportion: a stroke of chance
            self._each_s = whole_s
        self._fixed_s = max(0.0, (took_s - self._each_s * costs) / count)

    def seconds(self, cost: float) -> float:
        """How long a batch of this cost takes; infinity while nothing is known."""
        return self._fixed_s + self._each_s * cost

    def bound(self) -> float:
        """The cost up to which a batch takes as long as one should; 0 while nothing is known: one sample will tell."""
        count, costs, _, took_s, _ = self._seen
        if not count:
            return 0.0
        by_line = (max(_LONG_S, min(_LONGEST_S, _WORTH * self._fixed_s)) - self._fixed_s) / self._each_s
        in_proportion = _LONG_S * costs / took_s
        return max(in_proportion, min(by_line, _FAR * costs / count))
