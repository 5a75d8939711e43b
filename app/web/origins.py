"""What pages in a browser may do here: which other sites' may ask at all (CORS, none unless set), and how ours are confined."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Scope

Headers = Mapping[bytes, bytes]
Pairs = list[tuple[bytes, bytes]]
Page = TypeVar("Page", bound=Response)

_READABLE = b"X-Request-ID, Server-Timing, Retry-After, RateLimit, RateLimit-Policy, Location"
_SENDABLE = b"Authorization, X-API-Key, Content-Type, X-Request-ID, Last-Event-ID"
_METHODS = b"GET, POST, PUT, DELETE"
_KEPT_S = b"600"
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")


class Origins:
    """CORS for the origins of HEARTH_CORS_ORIGINS. Never with cookies: there are none."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.allowed = frozenset(origin.rstrip("/").encode() for origin in allowed)

    def heads(self, headers: Headers) -> Pairs:
        """What every answer says to a page of this origin."""
        origin = headers.get(b"origin", b"")
        varies: Pairs = [(b"vary", b"Origin")]
        if not origin or not (origin in self.allowed or b"*" in self.allowed):
            return varies
        return [*varies, (b"access-control-allow-origin", origin), (b"access-control-expose-headers", _READABLE)]

    def preflight(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a browser that asks whether a page may ask; None if this is something else."""
        if scope["method"] != "OPTIONS" or b"origin" not in headers or b"access-control-request-method" not in headers:
            return None
        answer = Response(status_code=204)
        answer.raw_headers += [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", _SENDABLE),
            (b"access-control-max-age", _KEPT_S),
        ]
        return answer


def confined(page: Page) -> Page:
    """A page of ours: it loads our own files and its own inline scripts, stands in nobody's frame and tells nobody of itself."""
    scripts = _SCRIPT.findall(bytes(page.body).decode())
    known = "".join(f" 'sha256-{base64.b64encode(sha256(one.encode()).digest()).decode()}'" for one in scripts)
    page.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src 'self'{known}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page.headers["X-Frame-Options"] = "DENY"
    page.headers["Referrer-Policy"] = "no-referrer"
    return page


def stranger(scope: Scope, headers: Headers, hosts: frozenset[str]) -> str:
    """Why this caller does not count as somebody at this machine; empty if it does. `hosts`: other names of ours.

    A web page that is open here can ask like a person who sits here: under its own name, which its owner lets point to us
    (DNS rebinding: `Host` tells), or under ours (`Origin` tells). A proxy on this machine asks for others.
    """
    address = scope["client"][0] if scope.get("client") else ""
    if not _is_loopback(address):
        return f"{address or 'you'} is another machine"
    if forwarded := next((name for name in _FORWARDED if name in headers), None):
        return f"{forwarded.decode()} says that a proxy asks for somebody else"
    host = headers.get(b"host", b"").decode("latin-1")
    if not _is_ours(host, hosts):
        return f"the host {host[:100]!r} is no name of this machine; ask 127.0.0.1 or localhost"
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1").lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
        return f"a web page of {origin.decode('latin-1')[:100]!r} asks, not you"
    return ""


def _is_ours(host: str, hosts: frozenset[str]) -> bool:
    name = re.sub(r":\d+$", "", host).strip("[]").lower()
    return name == "localhost" or name.endswith(".localhost") or name in hosts or _is_address(name)


def _is_address(name: str) -> bool:
    """No DNS is asked for it, so nobody can have it point here."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@lru_cache(1024)
def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback
