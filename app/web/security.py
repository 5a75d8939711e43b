"""Who may do what: decided from a request's head, before its body is read. Keys where there are some, else the caller's address.

    with keys       `infer`: ask models, GET /models, /metrics · `tune`: jobs too · `admin`: everything. Nothing without a key
    without keys    everybody asks models and GET /models (but for what runs them); all else is for callers at this machine
    always open     /health/live, /health/ready, and what only describes the server: /, /docs, /openapi.json

What is not listed here takes `admin`: a new route is closed until somebody opens it.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Collection
from typing import Any, NamedTuple

from starlette.types import Scope

from app.errors import Forbidden, Loading, RateLimited, Unauthorised
from app.keys import Key, Keys, Role
from app.pool.base import is_inherited
from app.rates import Bucket, Buckets, Rate
from app.settings import Settings
from app.web.origins import Headers, Pairs, stranger

_OPEN = frozenset(["/health/live", "/health/ready", "/", "/docs", "/openapi.json"])
_READS = ("GET", "HEAD")
_CHANGES_NOTHING = (*_READS, "OPTIONS")
_ADDRESSES = 65_536  # buckets of addresses that are kept: 10 MB


class Need(NamedTuple):
    """What a call takes: a key of this role; where there are no keys, a caller at this machine, or not even that."""

    role: Role
    near: bool


_ASK, _WATCH, _TUNE, _RULE = Need("infer", False), Need("infer", True), Need("tune", True), Need("admin", True)


class Guard:
    """One frontend's. The supervisor tells it the keys (`take`)."""

    def __init__(self, settings: Settings, inference: Collection[str]) -> None:
        """`inference`: the paths of what asks a model."""
        self._inference = frozenset(inference)
        self._with_keys = bool(settings.keys_file)
        self._text: str | None = None
        self._keys: Keys | None = None
        self._hosts = frozenset([settings.host.lower()])
        self._parts = settings.frontend_count()
        self._buckets: dict[str, Bucket] = {}  # by key
        rate = settings.address_rate and Rate.parse(settings.address_rate)
        self._addresses = Buckets(rate, self._parts, _ADDRESSES) if rate else None
        self._idle = not self._with_keys and self._addresses is None

    def take(self, text: str | None) -> None:
        """These keys hold from now on. What is left of a rate that stays as it was stays, too."""
        if text is None or text == self._text:
            return
        self._text, self._keys, now = text, Keys.parse(text), time.monotonic()
        kept = self._buckets
        self._buckets = {}
        for key in self._keys.by_id.values():
            if limit := key.limit():
                old = kept.get(key.id)
                self._buckets[key.id] = old if old and old.rate == limit else Bucket(limit, self._parts, now)

    def check(self, scope: Scope, headers: Headers) -> None:
        """Let the request pass: `key`, `heads`, `outside` and `audit` of its state say by what right. Raises Unauthorised,
        Forbidden, RateLimited, Loading.
        """
        path = scope["path"]
        if self._idle and path in self._inference:
            return
        need = self._needed(scope["method"], path)
        state, now = scope["state"], time.monotonic()
        if self._addresses is not None and not path.startswith("/health/"):  # probes are never refused
            self._spend("address", self._addresses.of(_network(scope), now), now, state)
        if need is None:
            return
        if self._with_keys:
            key = state["key"] = self._known(headers)
            if bucket := self._buckets.get(key.id):
                self._spend("key", bucket, now, state)
            if not key.may(need.role):
                raise Forbidden(f"this takes a key of the role {need.role}, or one that may more; {key.name} has {key.role}")
        elif path not in self._inference and (why := stranger(scope, headers, self._hosts)):  # models answer whoever asks
            state["outside"] = True
            if not need.near:
                return
            remedy = "set HEARTH_KEYS_FILE (hearth keys add NAME --role ROLE), and send a key"
            raise Forbidden(f"without keys this is for callers at this machine alone: {why}; or {remedy}")
        if need in (_TUNE, _RULE) and scope["method"] not in _CHANGES_NOTHING:
            state["audit"] = {}

    def is_open(self, scope: Scope) -> bool:
        """Whether it is what everybody asks, as often as he wants; health, metrics and changes are few."""
        return self._needed(scope["method"], scope["path"]) is _ASK

    def _needed(self, method: str, path: str) -> Need | None:
        if path in self._inference:
            return _ASK
        if path in _OPEN or path.startswith("/docs/static/"):
            return None
        if path == "/finetune" or path.startswith("/finetune/"):
            return _TUNE
        if method in _READS and (path == "/models" or path.startswith("/models/")):
            return _ASK
        return _WATCH if path == "/metrics" else _RULE

    def _known(self, headers: Headers) -> Key:
        if self._keys is None:
            raise Loading("the server is starting; come back in a moment", retry_after_s=1.0)
        if (given := headers.get(b"authorization")) is not None:
            scheme, _, given = given.partition(b" ")
            given = given.strip() if scheme.lower() == b"bearer" else b""
        else:
            given = headers.get(b"x-api-key")
        key = self._keys.find(given) if given else None
        if key is None:
            why = "the key is not known here" if given else "this server asks for a key"
            raise Unauthorised(f"{why}; send Authorization: Bearer KEY (hearth's own commands send HEARTH_KEY)")
        return key

    def _spend(self, name: str, bucket: Bucket, now: float, state: dict[str, Any]) -> None:
        """Take a token, and say so as draft-ietf-httpapi-ratelimit-headers-11 has it: what holds is this frontend's part."""
        wait_s = bucket.take(now)
        left, more_s = bucket.left()
        count, window_s = bucket.rate.part(self._parts)
        heads: Pairs = state["heads"]
        heads.append((b"ratelimit-policy", f'"{name}";q={count};w={window_s}'.encode()))
        heads.append((b"ratelimit", f'"{name}";r={left};t={math.ceil(more_s)}'.encode()))
        if wait_s and not is_inherited(state.get("past")):
            often = f"{count} request{'s' * (count > 1)} in {window_s} s"
            where = f" on each of {self._parts} frontends" if self._parts > 1 else ""
            why = f"more than {often}, the limit for this {name}{where}; come back in {wait_s:.1f} s"
            raise RateLimited(why, retry_after_s=wait_s)


def _network(scope: Scope) -> str:
    """Whose address it is. Who has one IPv6 address has a /64 of them; one of IPv4 may come as `::ffff:1.2.3.4`."""
    address: str = scope["client"][0] if scope.get("client") else ""
    if ":" not in address:
        return address
    return str(ipaddress.IPv6Address(address).ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
