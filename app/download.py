"""One file from the network to the disk: resumed where it was cut, checked, and only then given its name.

Our own, over httpx, because one set of errors must serve the hub and torchvision alike: `huggingface_hub` checks sizes but no
hashes, and `torch.hub` starts over after every cut.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from app.errors import HearthError

Report = Callable[[str, int, int], None]
"""Told a file's name, the bytes that are here, and the bytes in all (0: unknown)."""

_TRIES = 5
_GIT = 40  # hexadecimal digits of SHA-1
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)


class WeightsError(HearthError):
    """Weights are missing, or could not be had; `detail` says what to do."""


class _Cut(Exception):
    """The connection ended before the file did."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the content must hash to: a SHA-256 or its first characters; empty: what the server states."""

    sha256: str = ""


def download(url: str, target: Path, expected: Expected, report: Report) -> None:
    """Fetch `url` into `target`. What was there of an earlier try is kept and gone on from.

    Raises WeightsError: no network, not found, cut too often, wrong content, disk full.
    """
    host = urlsplit(url).netloc
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / ".lock").open("w") as lock:  # two pulls of one file would write into one another
            fcntl.flock(lock, fcntl.LOCK_EX)
            stated = _fetch(url, part, target.name, report)
            _check(part, target.name, stated, expected)
            part.replace(target)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise WeightsError(f"{target.name}: no network: {host} cannot be reached ({error}); {_OFFLINE}") from error
    except _Cut as error:
        raise WeightsError(
            f"{target.name}: the connection was cut {_TRIES} times ({error}); run the same again: it goes on there"
        ) from error
    except httpx.HTTPError as error:
        raise WeightsError(f"{target.name}: {host} answered {error}; try again later") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise WeightsError(
                f"{target.name}: the disk is full; free some space in {target.parent} and run the same again"
            ) from error
        raise WeightsError(f"{target.name}: cannot write to {target.parent} ({error.strerror}); check HEARTH_HOME") from error


_OFFLINE = "connect, or put the file into a folder named in HEARTH_WEIGHTS_PATH, or use HEARTH_PROFILE=starter"


def _fetch(url: str, part: Path, name: str, report: Report) -> httpx.Headers:
    """Fill `part`; returns the headers of the first answer (the hub states a file's hash before it redirects)."""
    trouble = ""
    with httpx.Client(timeout=_TIMEOUT, follow_redirects=True) as client:
        for _ in range(_TRIES):
            try:
                return _attempt(client, url, part, name, report)
            except (httpx.ReadError, httpx.RemoteProtocolError, httpx.ReadTimeout) as error:
                trouble = str(error) or type(error).__name__
    raise _Cut(trouble)


def _attempt(client: httpx.Client, url: str, part: Path, name: str, report: Report) -> httpx.Headers:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as answer:
        if answer.status_code == 404:
            raise WeightsError(f"{name}: not found at {urlsplit(url).netloc} (404); check the card's source")
        if answer.status_code != 416:  # 416: all of it is here already
            answer.raise_for_status()
            have = have if answer.status_code == 206 else 0
            total = have + int(answer.headers.get("Content-Length", 0))
            with part.open("ab" if have else "wb") as file:
                for chunk in answer.iter_raw():
                    file.write(chunk)
                    have += len(chunk)
                    report(name, have, total)
        return (answer.history or [answer])[0].headers


def _check(part: Path, name: str, headers: httpx.Headers, expected: Expected) -> None:
    """Compare with what is expected, else with what the hub states: SHA-256 of large files, git's blob hash of small ones."""
    stated = headers.get("X-Linked-ETag", headers.get("ETag", "")).removeprefix("W/").strip('"')
    wanted = expected.sha256 or (stated if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", stated) else "")
    if not wanted:
        part.unlink()
        raise WeightsError(f"{name}: the server states no hash to check it by; write its sha256 into the card's source")
    git = not expected.sha256 and len(wanted) == _GIT
    with part.open("rb") as file:
        start = hashlib.sha1(b"blob %d\0" % part.stat().st_size, usedforsecurity=False) if git else hashlib.sha256()
        found = hashlib.file_digest(file, lambda: start).hexdigest()
    if not found.startswith(wanted):
        part.unlink()
        raise WeightsError(
            f"{name}: the content is not what was expected (hash {found[:12]}…, not {wanted[:12]}…); deleted: pull it again"
        )
