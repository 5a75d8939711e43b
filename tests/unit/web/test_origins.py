"""What a browser may do: other sites' pages nothing unless they are named, and our own only what they must."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings
from app.web.server import make_app

HERE = ("127.0.0.1", 9)


def client_of(pool: Any, home: Path, address: tuple[str, int] = HERE, **settings: Any) -> httpx.AsyncClient:
    app = make_app(pool, Settings(home=home, **settings))
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False, client=address), base_url="http://localhost:8000"
    )


@pytest.mark.parametrize(
    ("heads", "address", "good"),
    [
        ({}, "127.0.0.1", True),
        ({}, "127.8.9.1", True),
        ({}, "::1", True),
        ({}, "::ffff:127.0.0.1", True),
        ({}, "::ffff:10.0.0.1", False),
        ({}, "172.17.0.1", False),
        ({}, "fe80::1", False),
        ({}, "nonsense", False),
        ({"host": "localhost"}, "127.0.0.1", True),
        ({"host": "LocalHost:8000"}, "127.0.0.1", True),
        ({"host": "127.0.0.1:8000"}, "127.0.0.1", True),
        ({"host": "[::1]:8000"}, "::1", True),
        ({"host": "my.localhost"}, "127.0.0.1", True),
        ({"host": "evil.example:8000"}, "127.0.0.1", False),
        ({"host": "localhost.evil.example"}, "127.0.0.1", False),
        ({"host": "127.0.0.1.evil.example"}, "127.0.0.1", False),
        ({"host": ""}, "127.0.0.1", False),
        ({"origin": "http://localhost:8000"}, "127.0.0.1", True),
        ({"origin": "http://localhost:3000"}, "127.0.0.1", False),
        ({"origin": "https://evil.example"}, "127.0.0.1", False),
        ({"origin": "null"}, "127.0.0.1", False),
        ({"origin": ""}, "127.0.0.1", False),
        ({"host": "evil.example", "origin": "http://evil.example"}, "127.0.0.1", False),
        ({"x-forwarded-for": "127.0.0.1"}, "127.0.0.1", False),
        ({"forwarded": "for=10.0.0.1"}, "127.0.0.1", False),
        ({"via": "1.1 proxy"}, "127.0.0.1", False),
    ],
)
async def test_without_keys_only_somebody_at_this_machine_changes_anything(
    pool: Any, tmp_path: Path, heads: dict[str, str], address: str, good: bool
):
    async with client_of(pool, tmp_path, (address, 9)) as client:
        for verb, path in (("POST", "/models/toy/load"), ("GET", "/finetune"), ("GET", "/metrics")):
            answer = await client.request(verb, path, headers=heads)
            assert answer.status_code == (200 if good else 403), answer.text


async def test_the_name_that_it_listens_at_is_its_own(pool: Any, tmp_path: Path):
    async with client_of(pool, tmp_path, host="box.lan") as client:
        assert (await client.post("/models/toy/load", headers={"host": "box.lan:8000"})).status_code == 200


async def test_pages_of_other_sites_may_ask_nothing_unless_they_are_named(pool: Any, tmp_path: Path):
    asks = {"origin": "https://a.example", "access-control-request-method": "POST"}
    async with client_of(pool, tmp_path) as client:
        for answer in (await client.options("/predict/image", headers=asks), await client.get("/models", headers=asks)):
            assert not [name for name in answer.headers if name.startswith("access-control")]
    async with client_of(pool, tmp_path, cors_origins=("https://a.example/",)) as client:
        allowed = await client.options("/predict/image", headers=asks)
        assert allowed.status_code == 204 and allowed.headers["access-control-allow-origin"] == "https://a.example"
        assert "Authorization" in allowed.headers["access-control-allow-headers"]
        for path in ("/models", "/models/none"):  # errors are to be read, too
            answer = await client.get(path, headers={"origin": "https://a.example"})
            assert answer.headers["access-control-allow-origin"] == "https://a.example" and answer.headers["vary"] == "Origin"
            assert "RateLimit" in answer.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in answer.headers
        other = await client.get("/models", headers={"origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers and other.headers["vary"] == "Origin"
    async with client_of(pool, tmp_path, cors_origins=("*",)) as client:
        assert (await client.get("/models", headers={"origin": "https://b.example"})).headers["access-control-allow-origin"]


async def test_a_named_page_still_needs_to_be_at_this_machine_or_a_key(pool: Any, tmp_path: Path):
    async with client_of(pool, tmp_path, cors_origins=("https://a.example",)) as client:
        assert (await client.post("/models/toy/load", headers={"origin": "https://a.example"})).status_code == 403


async def test_our_pages_are_confined_and_run_what_they_hold(pool: Any, tmp_path: Path):
    async with client_of(pool, tmp_path) as client:
        for path in ("/", "/docs"):
            heads = (await client.get(path)).headers
            assert "frame-ancestors 'none'" in heads["content-security-policy"] and heads["x-frame-options"] == "DENY"
            assert heads["referrer-policy"] == "no-referrer"
        page = await client.get("/docs")
        policy = page.headers["content-security-policy"]
        scripts = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
        assert scripts and "unsafe" not in policy.split("script-src")[1].split(";")[0]
        for script in scripts:
            assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
        assert not re.findall(r"(?:src|href)=.(?!/docs/static/)", page.text), "nothing from elsewhere"


async def test_no_answer_is_to_be_sniffed(pool: Any, tmp_path: Path):
    async with client_of(pool, tmp_path) as client:
        for path in ("/", "/docs", "/docs/static/swagger-ui.css", "/models", "/nothing", "/metrics", "/finetune/0123456789ab"):
            assert (await client.get(path)).headers["x-content-type-options"] == "nosniff", path
        assert (await client.post("/predict/image", content=b"xyz")).headers["x-content-type-options"] == "nosniff"
