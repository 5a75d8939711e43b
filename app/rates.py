"""How often somebody may ask: `10/s` or `600/min`, kept by a bucket of tokens. Pure: the time is given."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from dataclasses import dataclass

_WINDOWS = {"s": 1, "min": 60, "h": 3600}
_TEXT = re.compile(r"([1-9][0-9]{0,8})/(s|min|h)")


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` requests in `window_s` seconds, of which `burst` may come at once."""

    count: int
    window_s: int
    burst: int

    @classmethod
    def parse(cls, text: str, burst: int = 0) -> Rate:
        """Of `10/s`, `600/min` or `1000/h`; no burst: as many at once as there are in the window. Raises ValueError."""
        if (found := _TEXT.fullmatch(text)) is None:
            raise ValueError(f"{text!r} is no rate; write it as 10/s, 600/min or 1000/h")
        count = int(found[1])
        return cls(count, _WINDOWS[found[2]], burst or count)

    def part(self, parts: int) -> tuple[int, int]:
        """Requests, and in how many seconds, for one of `parts` processes."""
        count = max(1, self.count // parts)
        return count, math.ceil(count * parts * self.window_s / self.count)


class Bucket:
    """What is left of a rate to one caller in one of `parts` processes, each of which holds its part."""

    __slots__ = ("_at", "_most", "_per_s", "_tokens", "rate")

    def __init__(self, rate: Rate, parts: int, now: float) -> None:
        self.rate = rate
        self._per_s = rate.count / rate.window_s / parts
        self._tokens = self._most = max(1.0, rate.burst / parts)
        self._at = now

    def take(self, now: float) -> float:
        """Take a token: 0, or if there is none the seconds until there will be."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._per_s
        self._tokens -= 1
        return 0.0

    def left(self) -> tuple[int, float]:
        """How many tokens there are, and the seconds until there is one more: for so long no more can be used."""
        whole = int(self._tokens)
        return whole, (whole + 1 - self._tokens) / self._per_s


class Buckets:
    """A bucket of one rate for each caller, for the `most` that asked last: memory stays, whoever asks."""

    def __init__(self, rate: Rate, parts: int, most: int) -> None:
        self._rate = rate
        self._parts = parts
        self._most = most
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, caller: str, now: float) -> Bucket:
        """The caller's own; a full one for whoever was not seen, or was forgotten."""
        bucket = self._buckets.get(caller)
        if bucket is None:
            bucket = self._buckets[caller] = Bucket(self._rate, self._parts, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(caller)
        return bucket
