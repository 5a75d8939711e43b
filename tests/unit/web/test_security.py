"""Who may do what, with keys and without: every route, told from the head of a request alone."""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from app import keys
from app.settings import Settings
from app.web import embed, finetune, health, models, predict, transcribe
from app.web.edge import Edge
from app.web.server import make_app

PARTS = (predict, embed, transcribe, models, finetune, health)  # of the app, whose routes are not its own
OPEN = {"GET /", "GET /docs", "GET /openapi.json", "GET /health/live", "GET /health/ready"}
ASK = {"GET /models", "GET /models/{name}", "POST /predict/image", "POST /predict/text", "POST /embed/text", "POST /embed/image"}
ASK |= {"POST /transcribe"}
WATCH = {"GET /metrics"}
TUNE = {f"{verb} /finetune{rest}" for verb, rest in [("POST", ""), ("GET", ""), ("GET", "/{id}"), ("DELETE", "/{id}")]}
TUNE |= {"GET /finetune/{id}/events", "GET /finetune/{id}/log", "POST /finetune/{id}/cancel", "POST /finetune/{id}/resume"}
RULE = {"POST /models/{name}/load", "POST /models/{name}/unload", "POST /models/{name}/rollback", "PUT /models/{name}/traffic"}
ALL = dict.fromkeys(OPEN, "") | dict.fromkeys(ASK | WATCH, "infer") | dict.fromkeys(TUNE, "tune") | dict.fromkeys(RULE, "admin")
ELSEWHERE = ("10.1.2.3", 9)


class Lock:
    """An app with a key of each role, and what they are."""

    def __init__(self, pool: Any, home: Path, **settings: Any) -> None:
        self.file, self.pool = home / "keys.jsonl", pool
        self.secrets = {role: keys.add(self.file, role, role)[1] for role in keys.ROLES}
        self.app = make_app(pool, Settings(home=home, keys_file=str(self.file), frontends=1, **settings))
        self.renew()

    def renew(self) -> None:
        self.app.guard.take(keys.read(self.file))

    def client(self, role: str = "", **more: Any) -> httpx.AsyncClient:
        heads = {"authorization": f"Bearer {self.secrets[role]}"} if role else {}
        return client_of(self.app, headers=heads, **more)


def client_of(app: Edge, address: tuple[str, int] = ELSEWHERE, host: str = "hearth.example", **more: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=address)
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", **more)


@pytest.fixture
def lock(pool: Any, tmp_path: Path) -> Lock:
    return Lock(pool, tmp_path)


@pytest.fixture
def open_app(pool: Any, tmp_path: Path) -> Edge:
    return make_app(pool, Settings(home=tmp_path))


def code(answer: httpx.Response) -> str:
    told = answer.json() if "json" in answer.headers.get("content-type", "") else {}
    return str(told.get("code", "")) if isinstance(told, dict) else ""


async def ask(client: httpx.AsyncClient, call: str) -> httpx.Response:
    verb, path = call.split()
    return await client.request(verb, path.format(name="toy", id="0123456789ab"))


def test_every_route_is_in_the_table_above(lock: Lock):
    def calls(routes: Any) -> set[str]:
        return {f"{verb} {one.path}" for one in routes if isinstance(one, APIRoute) for verb in one.methods}

    paths = json.loads(json.dumps(lock.app._app.openapi()))["paths"]
    documented = {f"{verb.upper()} {path}" for path, verbs in paths.items() for verb in verbs}
    assert documented <= set(ALL) and calls(lock.app._app.routes) <= set(ALL)
    assert len(documented) > 20
    for path, verbs in paths.items():
        refusals = {"401", "403", "429"} & set.intersection(*(set(call["responses"]) for call in verbs.values()))
        assert len(refusals) == (0 if path.startswith("/health/") else 3), path


def test_no_call_takes_a_thread(lock: Lock):
    """To begin with the first one takes a descriptor: where there was none, every call without a query was a mistake of ours."""

    def steps(dependant: Any) -> Iterator[Any]:
        yield dependant.call
        for one in dependant.dependencies:
            yield from steps(one)

    routes = [*lock.app._app.routes, *(route for part in PARTS for route in part.router.routes)]
    called = {step for route in routes if isinstance(route, APIRoute) for step in steps(route.dependant)}
    assert len(called) > 20 and not [step for step in called if not inspect.iscoroutinefunction(step)]


@pytest.mark.parametrize("role", ["", *keys.ROLES])
async def test_with_keys_each_role_may_what_it_may_and_no_more(lock: Lock, role: str):
    may = {"": {""}, "infer": {"", "infer"}, "tune": {"", "infer", "tune"}, "admin": set(ALL.values())}[role]
    async with lock.client(role) as client:
        for call, needed in ALL.items():
            answer = await ask(client, call)
            refused = code(answer) in ("unauthorised", "forbidden")
            assert refused == (needed not in may), (call, answer.status_code)
            if refused and not role:
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="hearth"')
            elif refused:
                assert answer.status_code == 403 and f"role {needed}" in answer.json()["detail"]


async def test_with_keys_this_machine_needs_one_too(lock: Lock):
    async with lock.client(address=("127.0.0.1", 9)) as client:
        assert (await client.get("/models")).status_code == 401


async def test_without_keys_the_world_may_ask_and_this_machine_may_all(open_app: Edge):
    async with client_of(open_app) as world, client_of(open_app, ("127.0.0.1", 9), "127.0.0.1:8000") as here:
        for call in ALL:
            outside, inside = await ask(world, call), await ask(here, call)
            assert (code(outside) == "forbidden") == (call in TUNE | RULE | WATCH), call
            assert code(inside) not in ("forbidden", "unauthorised"), call
        assert "hearth keys add" in (await ask(world, "POST /models/{name}/load")).json()["detail"]
        for path in ("/models", "/models/toy"):
            told, strangers = (await here.get(path)).json(), (await world.get(path)).json()
            told, strangers = (one["models"][0] if "models" in one else one for one in (told, strangers))
            assert told.pop("workers") and strangers.pop("workers") == [] and told == strangers


@pytest.mark.parametrize("path", ["/models/toy/nothing", "/secret", "/finetune2", "/x//models", "/health", "/docs/x", "/MODELS"])
async def test_what_is_in_no_table_is_closed(lock: Lock, open_app: Edge, path: str):
    async with lock.client("tune") as tuner, lock.client() as nobody, client_of(open_app) as world:
        assert (await tuner.post(path)).status_code == 403
        assert (await nobody.post(path)).status_code == 401
        assert (await world.post(path)).status_code == 403


@pytest.mark.parametrize(
    ("heads", "good"),
    [
        ({"authorization": "Bearer {}"}, True),
        ({"authorization": "bearer  {} "}, True),
        ({"x-api-key": "{}"}, True),
        ({"authorization": "Basic {}"}, False),
        ({"authorization": "{}"}, False),
        ({"authorization": "Bearer {}x"}, False),
        ({"authorization": "Bearer nobody", "x-api-key": "{}"}, False),
        ({"authorization": "Bearer"}, False),
        ({"x-api-key": "\xff" * 59}, False),
        ({"x-api-key": "x" * 5000}, False),
    ],
)
async def test_how_a_key_is_sent(lock: Lock, heads: dict[str, str], good: bool):
    async with lock.client() as client:
        sent = {name: value.format(lock.secrets["infer"]).encode("latin-1") for name, value in heads.items()}
        assert (await client.get("/models", headers=sent)).status_code == (200 if good else 401)


async def test_a_key_stands_in_no_answer_and_no_log(lock: Lock, caplog: pytest.LogCaptureFixture, tmp_path: Path):
    wrong = lock.secrets["admin"][:-1] + "!"
    bad = {"authorization": f"Bearer {wrong}"}
    with caplog.at_level(logging.DEBUG, "hearth"):
        async with lock.client("admin") as client:
            texts = [
                (await client.request("POST", path)).text for path in ("/models/toy/load", "/models/none/load", "/predict/text")
            ]
            texts += [(await client.get("/metrics")).text, (await client.get("/models", headers=bad)).text]
    texts += [caplog.text, (tmp_path / "audit.jsonl").read_text()]
    for secret in (
        lock.secrets["admin"][16:-1],
        keys.Keys.parse(keys.read(lock.file)).find(lock.secrets["admin"].encode()).sha256,
    ):  # type: ignore[union-attr]
        assert not [text for text in texts if secret in text]


async def test_a_refused_body_is_not_read(lock: Lock):
    async def receive() -> dict[str, Any]:
        raise AssertionError("it was read")

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    for heads, closes in ([(b"content-length", b"500000")], True), ([(b"transfer-encoding", b"chunked")], True), ([], False):
        sent.clear()
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict/image",
            "query_string": b"",
            "headers": heads,
            "client": ELSEWHERE,
        }
        await lock.app(scope, receive, send)
        assert sent[0]["status"] == 401 and ((b"connection", b"close") in sent[0]["headers"]) == closes


async def test_before_the_keys_are_known_nobody_gets_in(pool: Any, tmp_path: Path):
    keys.add(tmp_path / "k", "a", "admin")
    app = make_app(pool, Settings(home=tmp_path, keys_file=str(tmp_path / "k")))
    async with client_of(app) as client:
        assert (await client.post("/models/toy/load")).json()["code"] == "loading"
        assert (await client.get("/health/live")).status_code == 200


async def test_new_keys_hold_at_once_and_revoked_ones_no_more(lock: Lock):
    async with lock.client("infer") as client:
        assert (await client.get("/models")).status_code == 200
        keys.revoke(lock.file, "infer")
        lock.secrets["new"] = keys.add(lock.file, "new", "infer")[1]
        lock.renew()
        assert (await client.get("/models")).status_code == 401
    async with lock.client("new") as client:
        assert (await client.get("/models")).status_code == 200


async def test_a_rate_is_kept_told_and_left_alone_by_a_reload(lock: Lock):
    lock.secrets["slow"] = keys.add(lock.file, "slow", "infer", "1/h", 2)[1]
    lock.renew()
    async with lock.client("slow") as client, lock.client("infer") as other:
        first, second = await client.get("/models"), await client.get("/models")
        keys.add(lock.file, "another", "infer")
        lock.renew()
        third = await client.get("/models")
        assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
        assert third.json()["code"] == "rate_limited" and 3590 <= int(third.headers["retry-after"]) <= 3600
        assert third.headers["ratelimit-policy"] == '"key";q=1;w=3600'
        assert third.headers["ratelimit"] == f'"key";r=0;t={third.headers["retry-after"]}'
        assert re.fullmatch(r'"key";r=1;t=\d+', first.headers["ratelimit"])
        assert (await client.get("/health/live")).status_code == 200, "probes are not counted"
        assert (await other.get("/models")).status_code == 200
        assert "ratelimit" not in (await other.get("/models")).headers


async def test_a_rate_of_addresses_counts_each_and_an_ipv6_network_once(pool: Any, tmp_path: Path):
    app = make_app(pool, Settings(home=tmp_path, address_rate="2/h", frontends=1))

    async def asked(address: str) -> list[int]:
        async with client_of(app, (address, 9)) as client:
            answers = [
                await client.post("/predict/image", content=b"xyz", headers={"content-type": "image/png"}) for _ in range(3)
            ]
            assert answers[0].headers["ratelimit-policy"] == '"address";q=2;w=3600'
            return [answer.status_code for answer in answers]

    assert await asked("10.0.0.1") == await asked("10.0.0.2") == [200, 200, 429]
    assert await asked("2001:db8::1") == [200, 200, 429]
    assert await asked("2001:db8::2") == [429, 429, 429]
    assert await asked("2001:db8:0:1::2") == [200, 200, 429]
    assert await asked("::ffff:10.0.0.3") == await asked("::ffff:10.0.0.4") == [200, 200, 429], "IPv4 through a socket for both"
    assert await asked("::ffff:10.0.0.1") == [429, 429, 429]
    assert await asked("fe80::1%eth0") == [200, 200, 429]


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/docs/static/swagger-ui.css", "/"])
async def test_what_only_describes_the_server_counts_too_and_probes_do_not(pool: Any, tmp_path: Path, path: str):
    async with client_of(make_app(pool, Settings(home=tmp_path, address_rate="2/h", frontends=1))) as client:
        assert [(await client.get(path)).status_code for _ in range(3)] == [200, 200, 429]
        assert [(await client.get("/health/live")).status_code for _ in range(3)] == [200, 200, 200]


async def test_each_of_several_frontends_tells_what_it_enforces_itself(pool: Any, tmp_path: Path):
    app = make_app(pool, Settings(home=tmp_path, address_rate="4/h", frontends=2))
    async with client_of(app) as client:
        answers = [await client.get("/models") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"address";q=2;w=3600'}
    assert "2 requests in 3600 s, the limit for this address on each of 2 frontends" in answers[-1].json()["detail"]


async def test_changes_are_audited_and_what_changes_nothing_is_not(lock: Lock, tmp_path: Path):
    ids = {role: secret[7:15] for role, secret in lock.secrets.items()}
    async with lock.client("admin") as admin, lock.client("infer") as infer, lock.client() as nobody:
        await admin.post("/models/toy/load", headers={"x-request-id": "r-1"})
        await admin.post("/models/none/load")
        await admin.put("/models/toy/traffic", json={"shares": {"1": 1}})
        await admin.put("/models/toy/traffic", json={"shares": {}})
        await infer.post("/models/toy/load")
        await nobody.post("/models/toy/load")
        await admin.get("/models")
        await admin.post("/predict/image", content=b"xyz")
        assert (await admin.post("/finetune/")).status_code == 307
        assert (await admin.patch("/models/toy/load")).status_code == 405
        await admin.options("/models/toy/load")
        await admin.options("/nowhere")
        spec = json.dumps({"name": "photos", "base": "toy"})
        job = (await admin.post("/finetune", files={"spec": (None, spec), "dataset": ("d.zip", b"x")})).json()["id"]
        for what in ("cancel", "resume", "cancel"):
            await admin.post(f"/finetune/{job}/{what}")
        await admin.delete(f"/finetune/{job}")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["what"], line["outcome"]) for line in lines] == [
        ("POST /models/toy/load", "done"),
        ("POST /models/none/load", "conflict"),
        ("PUT /models/toy/traffic", "done"),
        ("PUT /models/toy/traffic", "invalid"),
        ("POST /finetune", "done"),
        *((f"POST /finetune/{job}/{what}", "done") for what in ("cancel", "resume", "cancel")),
        (f"DELETE /finetune/{job}", "done"),
    ]
    assert {(line["key"], line["address"]) for line in lines} == {(ids["admin"], "10.1.2.3")}
    assert (
        lines[0]["request_id"] == "r-1"
        and lines[2]["shares"] == {"1": 1.0}
        and (lines[4]["job"], lines[4]["model"]) == (job, "photos")
    )


async def test_an_audit_log_that_cannot_be_written_does_not_fail_the_change(pool: Any, tmp_path: Path):
    (tmp_path / "file").write_text("")
    app = make_app(pool, Settings(home=tmp_path / "file"))
    async with client_of(app, ("127.0.0.1", 9), "localhost") as client:
        assert (await client.post("/models/toy/load")).status_code == 200


class Inherited:
    """A request that the process before this one had."""

    lives, let_in, inherited, before, several = 1, False, 0, 0, False

    def admitted(self, inputs: int) -> None: ...

    def sent(self, id: int) -> None: ...

    def blame(self, times: int) -> None: ...


async def test_what_a_process_let_in_that_has_ended_is_not_refused_for_a_rate(pool: Any, tmp_path: Path):
    """A bucket had filled a hundred times while they waited; whoever took them over had it full once, and refused the rest."""
    app = make_app(pool, Settings(home=tmp_path, address_rate="2/h", frontends=1))
    picture = {"content": b"xyz", "headers": {"content-type": "image/png"}}

    async def heir(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"state": {"past": Inherited()}}, receive, send)

    hands_on: Any = heir
    async with client_of(hands_on) as inherited, client_of(app) as new:
        assert [(await inherited.post("/predict/image", **picture)).status_code for _ in range(4)] == [200] * 4
        assert (await new.post("/predict/image", **picture)).status_code == 429, "they count"
