"""Versions of a model share its traffic: canary, shadow, rollback, each at once and without a lost request."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from tests.stack.conftest import Clients, Server, picture, wait_for, write_toy, write_toys

PICTURES = [picture(n * 9, n * 5, n * 3) for n in range(20)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_toys(home)
    torch.manual_seed(1)
    for number in range(1, 5):
        write_toy(home / "models" / f"v@{number}", rows=3 if number == 4 else 16)
        (home / "models" / f"v@{number}" / "tuned.json").write_text(json.dumps({"job": str(number)}))
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    (home / "traffic.json").write_text(
        json.dumps({"routes": {"v": [[{"v@1": 1.0}, ""]]}, "adopted": ["v@1", "v@2", "v@3", "v@4"]})
    )
    with Server(home, HEARTH_MODELS="toy", HEARTH_TIMEOUT_S="3", HEARTH_FRONTENDS="2") as server:
        yield server


def put(server: Server, shares: dict[str, float], shadow: str | None = None) -> httpx.Response:
    return server.http.put("/models/v/traffic", json={"shares": shares} | ({"shadow": shadow} if shadow else {}))


def versions(server: Server) -> dict[str, dict[str, Any]]:
    return {one["version"]: one for one in server.http.get("/models/v").json()["versions"]}


class Load(Clients):
    """Clients that compare every answer with that of the version that it names."""

    def __init__(self, server: Server, answers: dict[str, list[str]]) -> None:
        super().__init__(server)
        self.seen: list[str] = []
        self._answers = answers

    def _run(self, url: str, turn: int) -> None:
        with httpx.Client(base_url=url, timeout=30) as http:
            while not self._stop.is_set():
                turn += 1
                answer = http.post("/predict/image?model=v", content=PICTURES[turn % 20], headers={"content-type": "image/png"})
                body = answer.json()
                if answer.status_code == 200 and best(body) == self._answers[body["version"]][turn % 20] and body["model"] == "v":
                    self.seen.append(body["version"])
                else:
                    self.wrong.append(answer.text)


def best(body: dict[str, Any]) -> str:
    return str([p["label"] for p in body["results"][0]["predictions"]])


def test_traffic_moves_under_load_and_no_request_is_lost(server: Server):
    answers = {}
    for number in ("1", "2", "3"):
        assert put(server, {number: 1}).status_code == 200
        answers[number] = [best(server.predict(raw, model=f"v@{number}").json()) for raw in PICTURES]
    assert len({str(value) for value in answers.values()}) == 3
    assert put(server, {"1": 1}).status_code == 200
    with Load(server, answers) as load:
        wait_for(lambda: len(load.seen) > 50)
        assert set(load.seen) == {"1"}
        assert put(server, {"1": 9, "2": 1}).status_code == 200
        since = len(load.seen) + 8  # what was under way
        wait_for(lambda: len(load.seen) > since + 600)
        share = load.seen[since:].count("2") / len(load.seen[since:])
        assert 0.03 < share < 0.2, "a tenth; seven standard deviations"
        for shares in ({"2": 1}, {"3": 1}, {"1": 1, "3": 1}, {"2": 1}) * 3:
            assert put(server, shares).status_code == 200
        since = len(load.seen) + 8
        wait_for(lambda: len(load.seen) > since + 100)
        assert set(load.seen[since:]) == {"2"}
        assert server.http.post("/models/v/rollback").status_code == 200
        since = len(load.seen) + 8
        wait_for(lambda: len(load.seen) > since + 100)
        assert set(load.seen[since:]) == {"1", "3"}
    assert not load.wrong


def test_what_lost_its_traffic_is_unloaded_but_for_the_way_back(server: Server):
    for number in ("1", "2", "3"):
        assert put(server, {number: 1}).status_code == 200
    wait_for(lambda: versions(server)["1"]["state"] == "unloaded")
    assert {number: versions(server)[number]["state"] for number in ("2", "3")} == {"2": "ready", "3": "ready"}


def test_a_request_that_may_take_longer_than_others_is_answered_before_its_version_is_unloaded(server: Server):
    for number in ("1", "3", "2"):
        assert put(server, {number: 1}).status_code == 200
    slow = io.BytesIO()
    Image.new("RGB", (4000, 3000)).save(slow, "PNG")
    answers: list[dict[str, Any]] = []

    def decoded() -> float:
        lines = server.http.get("/metrics").text.splitlines()
        wanted = 'hearth_stage_seconds_count{model="v@2",stage="decode"'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))

    before = decoded()

    def ask() -> None:
        files = [("file", (f"{number}.png", slow.getvalue())) for number in range(60)]
        url = "/predict/image?model=v&timeout_ms=240000"
        answers.append(server.http.post(url, files=files, timeout=240).json())

    asking = threading.Thread(target=ask)
    asking.start()
    wait_for(lambda: decoded() > before)
    for number in ("1", "3"):
        assert put(server, {number: 1}).status_code == 200
    wait_for(lambda: versions(server)["2"]["state"] == "unloaded", 240)
    asking.join()
    assert answers[0]["version"] == "2" and [one for one in answers[0]["results"] if "error" in one] == []


def test_a_shadow_answers_copies_that_nobody_hears(server: Server):
    def counted() -> float:
        lines = server.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith('hearth_shadow_total{model="v@2"'))

    assert put(server, {"3": 1}, shadow="2").status_code == 200
    assert [number for number, one in versions(server).items() if one["shadow"]] == ["2"]
    before = counted()
    for raw in PICTURES:
        body = server.http.post("/predict/image?model=v", content=raw, headers={"content-type": "image/png"}).json()
        assert body["version"] == "3"
    wait_for(lambda: counted() - before == 20)
    text = server.http.get("/metrics").text
    assert 'outcome="differed"' in text
    assert not any(one["shadow"] for one in put(server, {"3": 1}).json()["versions"])


def test_while_a_version_loads_the_others_answer_for_it(server: Server):
    assert put(server, {"2": 1, "3": 1}).status_code == 200
    assert server.http.post("/models/v@2/unload").status_code == 200
    done: list[int] = []
    loading = threading.Thread(target=lambda: done.append(server.http.post("/models/v@2/load").status_code))
    loading.start()
    seen = set()
    while not done:
        answer = server.predict(PICTURES[0], model="v")
        assert answer.status_code == 200, answer.text
        seen.add(answer.json()["version"])
    loading.join()
    assert done == [200] and "3" in seen
    wait_for(lambda: server.predict(PICTURES[0], model="v").json()["version"] == "2")


def test_a_version_that_cannot_be_loaded_changes_nothing(server: Server):
    assert put(server, {"3": 1}).status_code == 200
    answer = put(server, {"3": 0.5, "4": 0.5})
    assert answer.status_code == 409 and "v@4 cannot answer" in answer.json()["detail"], answer.text
    assert versions(server)["3"]["share"] == 1.0


@pytest.mark.parametrize(
    ("name", "body", "status", "words"),
    [
        ("v", {"shares": {"9": 1}}, 422, "no version '9'; there are: 1, 2, 3, 4"),
        ("v", {"shares": {}}, 422, "shares"),
        ("v", {"shares": {"1": -1}}, 422, "shares.1"),
        ("v", {"shares": {"1": 0}}, 422, "all 0"),
        ("v", {"shares": {"9" * 5000: 1}}, 422, "shares"),
        ("v", {"shares": {"01": 1}}, 422, "shares"),
        ("v", {"share": {"1": 1}}, 422, "shares"),
        ("nobody", {"shares": {"1": 1}}, 404, "no model is called 'nobody'"),
        ("v@2", {"shares": {"1": 1}}, 404, "no model is called 'v@2'"),
    ],
)
def test_what_cannot_be_is_refused(server: Server, name: str, body: dict[str, Any], status: int, words: str):
    answer = server.http.put(f"/models/{name}/traffic", json=body)
    assert answer.status_code == status and words in answer.json()["detail"], answer.text


def test_without_versions_there_is_nothing_to_undo(server: Server):
    answer = server.http.post("/models/toy/rollback")
    assert answer.status_code == 409 and "no earlier state" in answer.json()["detail"]


def test_the_next_server_shares_as_the_last_one_did(server: Server, home: Path):
    assert put(server, {"2": 3, "3": 1}).status_code == 200
    server.process.terminate()
    server.process.wait(30)
    with Server(home, HEARTH_MODELS="toy") as again:
        assert {n: one["share"] for n, one in versions(again).items()} == {"1": 0, "2": 0.75, "3": 0.25, "4": 0}
        wait_for(lambda: {versions(again)[n]["state"] for n in ("2", "3")} == {"ready"})
        assert versions(again)["1"]["state"] == "unloaded"


def test_the_next_server_gives_what_was_made_beside_it_its_share_and_forgets_what_is_gone(tmp_path: Path):
    """`w@2` was tuned without a server; `x@2` was removed, and its number used again."""
    models = tmp_path / "models"
    write_toys(tmp_path)
    for key in ("w@1", "w@2", "x@1", "x@2"):
        write_toy(models / key)
    (models / "w@2" / "tuned.json").write_text(json.dumps({"job": "made", "spec": {"traffic": 0.25}}))
    (tmp_path / "traffic.json").write_text(
        json.dumps({"routes": {"x": [[{"x@2": 1.0}, ""]]}, "adopted": ["w@1", "x@1", "x@2"]}),
    )
    shutil.rmtree(models / "x@2")
    with Server(tmp_path, HEARTH_MODELS="toy") as server:
        wait_for(
            lambda: {v["version"]: v["share"] for v in server.http.get("/models/w").json()["versions"]} == {"1": 0.75, "2": 0.25}
        )
        assert server.predict(PICTURES[0], model="x").json()["version"] == "1"
    record = json.loads((tmp_path / "traffic.json").read_text())
    assert sorted(record["adopted"]) == ["w@1", "w@2", "x@1"] and "x" not in record["routes"]


def test_a_shadow_without_a_version_number_is_itself(server: Server, home: Path):
    """`other` came without versions and is the first of its name; the second one answers."""
    write_toy(home / "models" / "other@2")
    with Server(home, HEARTH_MODELS="toy") as again:
        assert again.http.put("/models/other/traffic", json={"shares": {"2": 1}, "shadow": "1"}).status_code == 200
        for raw in PICTURES:
            assert again.predict(raw, model="other").json()["version"] == "2"

        def said() -> list[str]:
            lines = again.http.get("/metrics").text.splitlines()
            return [line for line in lines if 'hearth_shadow_total{model="other"' in line]

        wait_for(lambda: sum(float(line.split()[-1]) for line in said()) == 20)
        assert any('outcome="differed"' in line for line in said()), "two networks with random weights of their own"
