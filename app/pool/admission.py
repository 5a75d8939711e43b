"""Who may join a model's queue, and when those who may not should come back. Pure: no clock, no sockets.

Refused before anything is decoded: what finds the queue full, and what would still wait when its deadline has passed. Both are
told from what the last batches took.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import TooBusy

_NEWEST = 0.3  # weight of the newest batch
_FAR = 3.0  # times the usual pace: more is not believed at once, or one slow batch would make us refuse what would be answered
_MARGIN = 0.75  # share of the time allowed that the expected wait may fill: batches and arrivals are uneven


@dataclass(slots=True)
class Admission:
    """One model's queue as one frontend sees it: inputs and samples under way (a long recording makes many), seconds a sample."""

    model: str
    held: int = 0
    sent: int = 0
    pace_s: float = 0.0

    def answered(self, pace_s: float, batch: int) -> None:
        """One answer came, of a batch of so many that took so long each."""
        if not self.pace_s:
            self.pace_s = pace_s
        self.pace_s += (min(pace_s, _FAR * self.pace_s) - self.pace_s) * _NEWEST / batch

    def check(self, inputs: int, *, room: int, allowed_s: float, workers: float) -> None:
        """Raise TooBusy, with the seconds until it should fit. `workers`: how many answer this frontend; `room`: its share.

        A request that finds nothing before it always fits.
        """
        if not self.held:
            return
        before = max(self.held, self.sent)
        asked = min(inputs, max(1, room // 2))  # a request larger than that enters a queue that is half empty
        if before + asked > room:
            wait_s = max(1.0, (before + asked - room) * self.pace_s / workers)
            why = f"{before} inputs wait and the queue holds {room}"
        else:
            expected_s = (before + inputs) * self.pace_s / workers
            if expected_s <= _MARGIN * allowed_s:
                return
            wait_s = max(1.0, expected_s - _MARGIN * allowed_s)
            why = f"{before} inputs wait, this one would be answered in {expected_s:.1f} s and may take {allowed_s:.1f} s"
        raise TooBusy(f"{self.model}: {why}; come back in {wait_s:.0f} s", retry_after_s=wait_s)
