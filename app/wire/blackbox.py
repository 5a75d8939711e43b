"""A worker's flight recorder: a small shared file that outlives `kill -9`. Written by the worker, read by the supervisor.

It says when the worker last moved, how much waits, and which samples run, so that a death blames those alone.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

_HEAD = struct.Struct("<ddII")  # last beat, start of what runs (0 = idle), waiting samples, running samples
_ID = struct.Struct("<Q")
_MOST = 2 * 4096  # ids that fit: two batches on a GPU (engine/lane.py) of the largest size (card.py, Limits.max_batch)
_SIZE = _HEAD.size + _MOST * _ID.size


@dataclass(frozen=True, slots=True)
class Reading:
    """What the recorder says."""

    beat: float
    busy_since: float
    waiting: int
    running: tuple[int, ...]


class BlackBox:
    """The recorder; both sides open the same path."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(_SIZE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)

    def beat(self, now: float, waiting: int) -> None:
        """Nothing runs."""
        _HEAD.pack_into(self._map, 0, now, 0.0, waiting, 0)

    def start(self, now: float, waiting: int, ids: list[int]) -> None:
        """These run, the oldest since `now`. The ids are written before their count, so that a death in between blames nobody."""
        struct.pack_into(f"<{len(ids)}Q", self._map, _HEAD.size, *ids)
        _HEAD.pack_into(self._map, 0, now, now, waiting, len(ids))

    def read(self) -> Reading:
        """What stands there now."""
        beat, busy_since, waiting, running = _HEAD.unpack_from(self._map, 0)
        ids = struct.unpack_from(f"<{min(running, _MOST)}Q", self._map, _HEAD.size)
        return Reading(beat, busy_since, waiting, ids)

    def close(self) -> None:
        """Unmap."""
        self._map.close()
