"""The audit log: who changed what, a JSON object a line, in $HEARTH_HOME/audit.jsonl and in the log. Knows no HTTP.

Only changes by those who may make them: a stranger who is refused could otherwise write until everything before is forgotten.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.logs import log, request_id

_MOST_BYTES = 10 << 20  # of a file; with the one before it, twice as many are kept: some 80 000 changes


def note(home: Path, what: str, outcome: str, *, key: str = "", address: str = "", **more: Any) -> None:
    """Write one line. `key` is its id. A disk that is full or gone costs the line in the file, never the change."""
    line = json.dumps(
        {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "key": key,
            "address": address,
            "what": what,
            "outcome": outcome,
            "request_id": request_id.get(),
            **more,
        }
    )
    log.info("audit: %s", line)
    try:
        _append(home / "audit.jsonl", f"{line}\n".encode())
    except OSError as error:
        log.error("the audit log cannot be written (%s); what is lost there stands in this log", error.strerror)


def _append(path: Path, line: bytes) -> None:
    """All our processes write; one of them at a time, and whoever finds the file full puts it aside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        told = os.fstat(file.fileno())
        if file.write(line) < len(line):
            os.ftruncate(file.fileno(), told.st_size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if told.st_size + len(line) > _MOST_BYTES and path.stat().st_ino == told.st_ino:
            path.replace(path.with_suffix(".1.jsonl"))
