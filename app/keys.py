"""The file of keys: who may ask, a JSON object a line. It holds hashes; a key itself is shown once, when it is made.

SHA-256, without salt and without a slow function: those protect what people choose, which can be guessed. A key holds 256 random
bits, so no guess hits it, no table of hashes holds it, and a request that brings one costs a microsecond.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from app.errors import Invalid
from app.rates import Rate

Role = Literal["infer", "tune", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may: ask models; tune; load, unload and share traffic."""

_PREFIX = "hearth_"  # by which people, and programs that look for lost secrets, know what it is
_ID = slice(len(_PREFIX), len(_PREFIX) + 8)
_LENGTH = len(_PREFIX) + 8 + 1 + 43  # 32 random bytes are 43 letters
_MOST_BYTES = 1 << 20
_SECRET = re.compile(rf"{_PREFIX}[\w-]+|[\w-]{{20,}}")  # a key, or what may be a piece of one


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of the file."""

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}\Z")]
    """Stands in the key too, and in the audit log."""
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.@-]{1,64}\Z")]
    role: Role
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    created: date
    rate: str = ""
    """Requests in a time, as `app/rates.py` writes it; empty: any number."""
    burst: Annotated[int, Meta(ge=0, le=10**9)] = 0
    """How many of them at once; 0: all of the time's."""
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """The largest part of a model's queue that its requests may hold."""

    def __post_init__(self) -> None:
        self.limit()

    def limit(self) -> Rate | None:
        """Its rate. Raises ValueError where that is none."""
        return Rate.parse(self.rate, self.burst) if self.rate else None

    def may(self, role: Role) -> bool:
        """Whether its own role is `role`, or one that may do more."""
        return ROLES.index(self.role) >= ROLES.index(role)


class Keys:
    """The keys of one file."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self.by_id = {key.id: key for key in keys}
        self._digests = {key.id.encode(): (bytes.fromhex(key.sha256), key) for key in self.by_id.values()}

    @classmethod
    def parse(cls, text: str, file: str = "keys") -> Keys:
        """Raises Invalid with file and line, and never with a key that stands where it should not."""
        found: dict[str, Key] = {}
        names: set[str] = set()
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                key = msgspec.json.decode(line, type=Key)
            except msgspec.MsgspecError as error:
                raise Invalid(f"{file}:{number}: {_SECRET.sub('…', str(error))}") from None
            if key.id in found or key.name in names:
                raise Invalid(f"{file}:{number}: there is another key of this id or name; take one of them away")
            found[key.id] = key
            names.add(key.name)
        return cls(found.values())

    def find(self, given: bytes) -> Key | None:
        """The key that was `given`. The id in it is looked up; what is secret is compared in constant time."""
        if len(given) != _LENGTH:
            return None
        digest, key = self._digests.get(given[_ID], (bytes(32), None))
        return key if hmac.compare_digest(sha256(given).digest(), digest) else None


def read(path: Path) -> str:
    """The file's text. Raises Invalid with the remedy."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise Invalid(f"HEARTH_KEYS_FILE={path}: it has more than {_MOST_BYTES} bytes, the limit")
        return raw.decode()
    except FileNotFoundError:
        raise Invalid(
            f"HEARTH_KEYS_FILE={path}: there is no such file; make it with: hearth keys add NAME --role admin"
        ) from None
    except OSError as error:
        raise Invalid(f"HEARTH_KEYS_FILE={path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"HEARTH_KEYS_FILE={path}: {error}") from None


def add(path: Path, name: str, role: str, rate: str = "", burst: int = 0, share: float = 1.0) -> tuple[Key, str]:
    """A new key: its line, which is in the file when this returns, and itself, which is nowhere. Raises Invalid."""
    id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    text = f"{_PREFIX}{id}_{secret}"
    values = {
        "id": id,
        "name": name,
        "role": role,
        "sha256": sha256(text.encode()).hexdigest(),
        "created": datetime.now(UTC).date(),
        "rate": rate,
        "burst": burst,
        "share": share,
    }
    try:
        key = msgspec.convert(values, Key)
    except msgspec.ValidationError as error:
        raise Invalid(f"the key cannot be made: {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        before = read(path) if path.exists() else ""
        lines = [*filter(str.strip, before.splitlines()), msgspec.json.encode(key).decode()]
        Keys.parse("\n".join(lines), str(path))
        _replace(path, lines)
    return key, text


def revoke(path: Path, which: str) -> Key:
    """Take the line of the key with this id or name out of the file. Raises Invalid naming those that there are."""
    with _locked(path):
        keys = Keys.parse(read(path), str(path)).by_id.values()
        key = next((key for key in keys if which in (key.id, key.name)), None)
        if key is None:
            raise Invalid(f"no key has the id or name {which!r}; there are: {', '.join(key.name for key in keys) or 'none'}")
        _replace(path, [msgspec.json.encode(other).decode() for other in keys if other is not key])
    return key


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two commands at once change the file one after the other."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _replace(path: Path, lines: Iterable[str]) -> None:
    """Beside and renamed, so that no reader sees half of it; the owner stays, the mode is 0600."""
    path = path.resolve()
    beside = path.with_name(f".{path.name}.part")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        with suppress(PermissionError):  # root may write for the server's user, who has to read it
            os.chown(beside, path.stat().st_uid, path.stat().st_gid)
    beside.replace(path)
