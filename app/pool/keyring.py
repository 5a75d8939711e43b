"""The supervisor's hand for keys: watches their file; every frontend hears what stands in it. Decides nothing about requests.

One reader, so that all frontends have the same keys, and one that was just started those that hold, whatever is in the file now.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from app.audit import note
from app.errors import Invalid
from app.keys import Keys, read
from app.logs import log
from app.pool.house import House
from app.settings import Settings

_LOOK_S = 1.0
_OTHERS_MAY_WRITE = 0o022


class Keyring:
    """What holds now. A file that is broken or gone changes nothing but the log."""

    def __init__(self, settings: Settings, house: House) -> None:
        self._path = Path(settings.keys_file) if settings.keys_file else None
        self._home = settings.home
        self._house = house
        self.text: str | None = None
        """The file's, as frontends are told it."""
        self._published: str | None = None
        self._stamp: tuple[int, ...] = ()  # of the file as it was last read
        self._unread = False  # it is there, and could not be read: whoever was revoked in it must not stay
        self._complaint = ""
        self._looking = threading.Lock()  # of two that look at once, the one that read first could be the last to tell

    async def run(self) -> None:
        """Look about once a second. Ends at once where no keys are wanted."""
        while self._path is not None:
            await self._renew(self._path)
            await asyncio.sleep(_LOOK_S)

    async def reload(self) -> None:
        """Look now, and complain once more if it is still broken."""
        if self._path is not None:
            await self._renew(self._path, anew=True)

    async def _renew(self, path: Path, *, anew: bool = False) -> None:
        try:
            await asyncio.to_thread(self._look, path, anew=anew)  # whatever the disk does, the supervisor goes on
        except RuntimeError as error:  # no thread can be started; one that is busy may still do it
            log.error("the keys cannot be looked at for now: %s", error)
        if self.text != self._published:
            self._published = self.text
            self._house.publish()

    def _look(self, path: Path, *, anew: bool = False) -> bool:
        """Whether other keys hold now."""
        with self._looking:
            self._stamp = () if anew else self._stamp
            return self._read(path)

    def _read(self, path: Path) -> bool:
        stamp = _stamp(path)
        if stamp == self._stamp and not self._unread:
            return False
        complaint = self._complaint if stamp == self._stamp else ""
        self._stamp, self._unread = stamp, False
        try:
            text = read(path)
            keys = Keys.parse(text, str(path)).by_id
        except Invalid as error:
            self._unread = isinstance(error.__cause__, OSError)
            self._complaint = error.detail
            if error.detail != complaint:
                log.error("THE KEYS STAY AS THEY WERE: %s", error.detail)
                note(self._home, "keys reload", "refused", why=error.detail)
            return False
        if text == self.text:
            return False
        before = Keys.parse(self.text).by_id if self.text is not None else {}
        self.text = text
        if not keys:
            log.warning("%s has no keys, so nobody gets in; make one with: hearth keys add NAME --role ROLE", path)
        if stamp[-1] & _OTHERS_MAY_WRITE:
            log.warning("others than its owner may write to %s, and so give themselves keys; chmod 600 it", path)
        log.info("%d keys hold", len(keys))
        sides: dict[str, Any] = {
            "added": sorted(keys.keys() - before.keys()),
            "removed": sorted(before.keys() - keys.keys()),
            "changed": sorted(id for id in keys.keys() & before.keys() if keys[id] != before[id]),
        }
        note(self._home, "keys reload", "done", **sides)
        return True


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes with the file, its owner and its rights, of which the mode comes last."""
    try:
        told = path.stat()
    except OSError:
        return (0,)
    return told.st_mtime_ns, told.st_ctime_ns, told.st_ino, told.st_size, told.st_mode
