"""Who may join a model's queue, and when those who may not should come back. Pure: no clock, no sockets.

Refused before anything is decoded: what finds the queue full, and what would still wait when its deadline has passed. Both are
told from what the last batches took.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from dataclasses import dataclass, field

from app.errors import RateLimited, TooBusy, TooLarge
from app.keys import Key

_NEWEST = 0.3  # weight of the newest batch, if all are of one size
_FAR = 3.0  # times the usual pace: more is not believed at once, or one slow batch would make us refuse what would be answered
_LONGEST_S = 60.0  # that anyone is told to wait: what will be after that, nobody knows
_QUEUES = 4.0  # as many times what waits now may be promised: one caller who asks again at once must not send all others far away
_SLACK_S = 2.0  # told beyond the time of the first free place: so much work is done by then that others may come meanwhile
_MARGIN = 0.6  # share of the time allowed that the expected wait may fill: batches are uneven, and a shared machine slows down
_FASTER = 1.25  # as fast as what is freed is worked off again, it is given out: batches of a full queue do not become smaller


@dataclass(slots=True)
class Place:
    """What one key, of those that may hold a share of it, has in a queue."""

    held: int = 0
    sent: int = 0


PLACE: ContextVar[Place | None] = ContextVar("place", default=None)
"""Of the request that is being answered; what its inputs become counts there."""


@dataclass(slots=True)
class Admission:
    """One model's queue as one frontend sees it: inputs and samples under way (a long recording makes many), seconds a sample."""

    model: str
    held: int = 0
    sent: int = 0
    pace_s: float = 0.0
    """Of the newest answers, the time of their batches over how many they are: a batch of one counts as one."""
    answers: float = 0.0
    """How many those are."""
    promised: float = 0.0
    """Until then, on the caller's clock, what is answered is promised to those who were refused."""
    freed: float = 0.0
    """Places that answers made free and that are not given out yet, as of `looked`."""
    looked: float = 0.0
    places: dict[str, Place] = field(default_factory=dict)
    """By key, while it holds something."""

    def answered(self, pace_s: float, batch: int) -> None:
        """One answer came, of a batch of so many that took so long each."""
        if not self.pace_s:
            self.pace_s = pace_s
        self.answers = (1 - _NEWEST / batch) * self.answers + 1
        self.pace_s += (min(pace_s, _FAR * self.pace_s) - self.pace_s) / self.answers
        self.freed += 1

    def check(self, inputs: int, *, room: int, allowed_s: float, workers: float, now: float) -> None:
        """Raise TooBusy, with the seconds until it should fit. `workers`: how many answer this frontend; `room`: its share.

        A request that finds nothing before it always fits. Whoever is refused is told when it would fit, and two seconds more, or
        when all that waits is answered: others come meanwhile, and a queue that has just begun to fall is full again soon. Of
        many that are refused each is told a time of its own, when those told before it are answered: all at once, they would be
        refused again.
        """
        if not self.held:
            self.promised = self.freed = 0.0
            return
        waiting = max(self.held, self.sent)
        asked = min(inputs, max(1, room // 2))  # a request larger than that enters a queue that is half empty
        each_s = self.pace_s / workers
        kept = math.floor(self._kept(now, each_s, room, allowed_s))
        if waiting + kept + asked > room:
            excess_s = (waiting + kept + asked - room) * each_s
            why = f"{waiting} inputs wait and the queue holds {room}"
        else:
            expected_s = (waiting + inputs) * each_s
            excess_s = expected_s + kept * each_s - _MARGIN * allowed_s
            if excess_s <= 0:
                return
            soon = "later than" if expected_s > allowed_s else "too close to"
            takes = f"{_told(expected_s)}, {soon} the {_told(allowed_s)} allowed"
            why = f"{waiting} inputs wait, this one would be answered in {takes}"
        if kept:
            why += f", and {kept} places more are kept for those who were told to come"
        comes = max(now + min(_LONGEST_S, waiting * each_s, excess_s + _SLACK_S), self.promised)
        self.promised = min(comes + inputs * each_s, now + min(_LONGEST_S, _QUEUES * waiting * each_s))
        wait_s = max(1.0, comes - now)
        raise TooBusy(f"{self.model}: {why}; come back in {math.ceil(wait_s)} s", retry_after_s=wait_s)

    def _kept(self, now: float, each_s: float, room: int, allowed_s: float) -> float:
        """Places that are not given out yet, while some are promised.

        What a batch frees at once is given out one by one. Who asks all the time would take it within moments, and who comes
        when he was told would find a full queue until the next batch ends. Half of what may wait is given out at once, so that
        the next batch is not small.
        """
        passed_s, self.looked = now - self.looked, now
        if not each_s or now >= self.promised:
            self.freed = 0.0
            return 0.0
        self.freed = min(room / 2, max(0.0, self.freed - _FASTER * passed_s / each_s))
        return min(self.freed, _MARGIN * allowed_s / each_s / 2)

    def place_of(self, key: Key) -> Place:
        """What it has, or may begin to have."""
        return self.places.get(key.id) or Place()

    def place(self, key: Key, inputs: int, *, room: int, allowed_s: float, workers: float) -> Place:
        """The place of a key whose share has room for so many more. Raises RateLimited, with the seconds until it should
        have; TooLarge for what is more than the share.

        What a key may hold is less than what the queue holds, and than what is answered in the time allowed, so others find room
        and time, whatever one asks for. A recording that was let in may yet turn out to be many samples; then its key waits
        longer for the next one.
        """
        whole = max(1, int(key.share * room))
        if inputs > whole:
            raise TooLarge(f"{self.model}: {inputs} inputs at once; the share of {key.name} is {whole}: send less in a request")
        in_time = int(key.share * _MARGIN * allowed_s * workers / self.pace_s) if self.pace_s else whole
        most = min(whole, max(1, in_time))
        place = self.place_of(key)
        before = max(place.held, place.sent)
        if before and before + inputs > most:
            # Between two of its own, samples of others are answered too.
            each_s = self.pace_s / workers * max(self.held, self.sent) / before
            wait_s = max(1.0, (before + inputs - most) * each_s)
            why = f"{key.name} has {before} inputs in the queue and its share is {most}"
            raise RateLimited(f"{self.model}: {why}; come back in {math.ceil(wait_s)} s", retry_after_s=wait_s)
        return place


def _told(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
