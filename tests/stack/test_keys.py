"""Keys and SIGHUP on a real server: who gets in, what a change of either does under load, and one greedy caller among others."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from app import keys
from tests.conftest import ROOT
from tests.stack.conftest import TOY_CARD, Clients, Server, picture, wait_for, write_toy, write_toys

GREEN = picture(0, 255, 0)  # takes 0.4 s


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


class Locked:
    """A server with keys, and two frontends."""

    def __init__(self, home: Path) -> None:
        self.file = home / "keys.jsonl"
        self.admin = keys.add(self.file, "admin", "admin")[1]
        write_toys(home)
        self.home = home

    def serve(self, **settings: str) -> Server:
        return Server(self.home, HEARTH_MODELS="toy", HEARTH_KEYS_FILE=str(self.file), **{"HEARTH_FRONTENDS": "2"} | settings)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Locked:
    return Locked(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def server(locked: Locked) -> Iterator[Server]:
    with locked.serve() as server:
        server.http.headers.update(bearer(locked.admin))
        yield server


def status(server: Server, secret: str, path: str = "/models", verb: str = "GET") -> int:
    """What a connection of its own gets, at whichever frontend."""
    return httpx.request(verb, server.url + path, headers=bearer(secret), timeout=30).status_code


def everywhere(server: Server, secret: str, wanted: int) -> bool:
    return {status(server, secret) for _ in range(12)} == {wanted}


class Load(Clients):
    """Clients that ask without pause; `seen` are the answers that were right."""

    def __init__(self, server: Server, secret: str, model: str = "toy") -> None:
        super().__init__(server)
        self.seen = 0
        self._heads = bearer(secret) | {"content-type": "image/png"}
        self._model = model

    def _run(self, url: str, number: int) -> None:
        with httpx.Client(base_url=url, timeout=60, headers=self._heads) as http:
            while not self._stop.is_set():
                answer = http.post(f"/predict/image?model={self._model}", content=picture(number, 20, 30))
                if answer.status_code == 200:
                    self.seen += 1
                else:
                    self.wrong.append(answer.text)


def test_a_key_that_is_added_opens_and_one_that_is_revoked_does_not_any_more(server: Server, locked: Locked):
    assert httpx.post(f"{server.url}/predict/image", content=GREEN).status_code == 401
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    _, secret = keys.add(locked.file, "new", "infer")
    wait_for(lambda: everywhere(server, secret, 200))
    assert status(server, secret, "/models/other/load", "POST") == 403
    keys.revoke(locked.file, "new")
    wait_for(lambda: everywhere(server, secret, 401))
    assert secret[16:] not in server.log


def test_a_broken_file_keeps_the_keys_even_for_a_frontend_that_is_new(server: Server, locked: Locked):
    whole = locked.file.read_text()
    locked.file.write_text("{broken")
    wait_for(lambda: "THE KEYS STAY AS THEY WERE" in server.log)
    said = server.log.count("THE KEYS STAY AS THEY WERE")
    server.hang_up()
    wait_for(lambda: server.log.count("THE KEYS STAY AS THEY WERE") > said)  # each look by itself complains of a file once
    frontend = next(child for name, child in server.children().items() if "http" in name)
    frontend.kill()
    psutil.wait_procs([frontend], 30)
    wait_for(lambda: len([name for name in server.children() if "http" in name]) == 2)
    assert wait_for(lambda: everywhere(server, locked.admin, 200), 60)
    locked.file.write_text(whole)
    said = server.log.count("reloading")
    server.hang_up()
    assert server.log.count("reloading") == said + 1


def test_under_load_sighup_takes_in_a_model_and_a_key_and_no_request_fails(server: Server, locked: Locked):
    with Load(server, locked.admin) as load:
        wait_for(lambda: load.seen > 20)
        write_toy(locked.home / "models" / "fresh")
        write_toy(locked.home / "models" / "eager")
        card = locked.home / "models" / "eager" / "card.toml"
        card.write_text(card.read_text().replace("[about]", "[serving]\nresident = true\n[about]"))
        write_toy(locked.home / "models" / "hurt")
        (locked.home / "models" / "hurt" / "card.toml").write_text("task = 3")
        _, secret = keys.add(locked.file, "late", "admin")
        server.hang_up()
        wait_for(lambda: server.model("fresh").get("state") == "unloaded")  # each frontend hears of it in its own time
        assert server.http.get("/models/hurt").status_code == 404 and "hurt" in server.log
        wait_for(lambda: server.model("eager")["state"] == "ready")
        wait_for(lambda: everywhere(server, secret, 200))
        assert status(server, secret, "/models/fresh/load", "POST") == 200
        assert server.predict(GREEN, model="fresh").status_code == 200
        card.unlink()
        shutil.rmtree(locked.home / "models" / "hurt")
        server.hang_up()
        assert server.predict(GREEN, model="eager").status_code == 200, "it is loaded"
        assert server.http.post("/models/eager/unload").json()["state"] == "unloaded"
        wait_for(lambda: server.http.get("/models/eager").status_code == 404)
        since = load.seen
        wait_for(lambda: load.seen > since + 50)
        assert server.http.get("/health/ready").status_code == 200
    assert not load.wrong
    lines = [json.loads(line) for line in (locked.home / "audit.jsonl").read_text().splitlines()]
    reloads = [line for line in lines if line["what"] == "cards reload"]
    assert (
        reloads[-2]["added"] == ["eager", "fresh"] and reloads[-2]["broken"] == ["hurt"] and reloads[-1]["removed"] == ["eager"]
    )
    (loaded,) = [line for line in lines if line["what"] == "POST /models/fresh/load"]
    assert (loaded["key"], loaded["address"], loaded["outcome"]) == (secret[7:15], "127.0.0.1", "done")


def test_a_changed_card_of_a_loaded_model_holds_when_it_is_next_loaded_and_nothing_is_lost(server: Server, locked: Locked):
    assert server.http.post("/models/other/load").status_code == 200
    with Load(server, locked.admin, "other") as load:
        wait_for(lambda: load.seen > 10)
        card = locked.home / "models" / "other" / "card.toml"
        card.write_text(TOY_CARD.format(default="false").replace("max_queue = 256", "max_queue = 99"))
        server.hang_up()
        since = load.seen
        wait_for(lambda: load.seen > since + 20)
        assert server.model("other")["limits"]["max_queue"] == 256
    assert not load.wrong
    server.http.post("/models/other/unload")
    assert server.http.post("/models/other/load").json()["limits"]["max_queue"] == 99
    assert server.predict(GREEN, model="other").status_code == 200


def at_once(spans: list[tuple[float, float]]) -> float:
    """How many of them there were at one time, on the average."""
    return sum(end - begin for begin, end in spans) / (max(end for _, end in spans) - min(begin for begin, _ in spans))


@pytest.mark.parametrize("frontends", [1, 2])
def test_one_greedy_caller_gets_its_share_and_the_others_get_in(locked: Locked, frontends: int):
    """Of several frontends each has its part of the queue, and gives him his share of that."""
    _, greedy = keys.add(locked.file, f"greedy-{frontends}", "infer", share=8 / 256)
    with locked.serve(HEARTH_FRONTENDS=str(frontends)) as server:
        refused: list[httpx.Response] = []
        answered: list[tuple[float, float]] = []
        most, stop = 8, threading.Event()

        def grab() -> None:
            with httpx.Client(base_url=server.url, headers=bearer(greedy), timeout=120) as http:
                while not stop.is_set():
                    began = time.monotonic()
                    answer = http.post("/predict/image", content=GREEN)
                    if answer.status_code == 200:
                        answered.append((began, time.monotonic()))
                    else:
                        refused.append(answer)
                        stop.wait(0.05)

        threads = [threading.Thread(target=grab) for _ in range(4 * most)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: len(refused) > 50, 60)
            took = []
            for _ in range(5):
                began = time.monotonic()
                answer = httpx.post(
                    f"{server.url}/predict/image", content=picture(1, 2, 3), headers=bearer(locked.admin), timeout=60
                )
                took.append(time.monotonic() - began)
                assert answer.status_code == 200, answer.text
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert {answer.status_code for answer in refused} == {429}
        assert {answer.json()["code"] for answer in refused} == {"rate_limited"}
        assert all(1 <= int(answer.headers["retry-after"]) <= 30 for answer in refused)
        assert at_once(answered) < 1.25 * most, "each is answered after 0.4 s and more: what its way takes is little beside that"
        assert max(took) < 20, "batches of eight of the greedy one, and not his thirty-two"
        assert httpx.post(f"{server.url}/predict/image", content=GREEN, headers=bearer(greedy), timeout=60).status_code == 200


def test_a_rate_holds_over_all_frontends_and_comes_back_when_it_says(server: Server, locked: Locked):
    _, secret = keys.add(locked.file, "slow", "infer", "4/h")
    wait_for(lambda: status(server, secret) != 401)
    answers = [httpx.get(f"{server.url}/models", headers=bearer(secret), timeout=30) for _ in range(30)]
    assert 1 <= [answer.status_code for answer in answers].count(200) <= 3, "one of the four was asked above"
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 0 < int(refused.headers["retry-after"]) <= 1800
    assert refused.headers["ratelimit-policy"] == '"key";q=2;w=3600', "half of it, at each of two frontends"


def test_our_commands_send_the_key(server: Server, locked: Locked):
    def hearth(*words: str, key: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEARTH_")}
        environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "HEARTH_KEY": key}
        return subprocess.run(
            [sys.executable, "-P", "-m", "app", *words, "--url", server.url], env=environment, capture_output=True, text=True
        )

    assert hearth("jobs", key=locked.admin).returncode == 0
    assert "hearth's own commands send HEARTH_KEY" in hearth("jobs", key="").stderr
    photo = str(locked.home / "models" / "toy" / "sample.png")
    assert '"model": "toy"' in hearth("predict", photo, key=locked.admin).stdout
    watched = hearth("jobs", "watch", "0123456789ab", key=locked.admin)
    assert watched.returncode == 1 and "there is no job" in watched.stderr


@pytest.mark.parametrize("text", [None, "{broken"])
def test_a_server_does_not_start_with_a_file_of_keys_that_is_none(tmp_path: Path, text: str | None):
    if text:
        (tmp_path / "keys").write_text(text)
    server = Server(tmp_path, HEARTH_KEYS_FILE=str(tmp_path / "keys"))
    try:
        assert server.process.wait(60) == 1
        server._reader.join(10)
        assert ("hearth keys add" if text is None else "keys:1:") in server.log and "Traceback" not in server.log
    finally:
        server.kill()


def test_a_terminal_that_is_closed_ends_the_server_that_was_started_on_it(tmp_path: Path):
    """SIGHUP has two meanings; who closes the window does not want to reload."""
    write_toys(tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEARTH_")}
    environment |= {"PYTHONPATH": str(ROOT), "HEARTH_HOME": str(tmp_path), "HEARTH_PORT": "0", "HEARTH_PROFILE": "starter"}
    environment |= {"HEARTH_MODELS": "toy", "HEARTH_COMPUTE": "eager"}
    terminal, theirs = pty.openpty()
    # The first terminal that the leader of a session opens is the one whose end it is told.
    opening = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(theirs), sys.executable, "-P", "-m", "app", "serve"]
    process = subprocess.Popen(opening, env=environment, start_new_session=True)
    said = b""

    def reading() -> None:
        nonlocal said
        while b"/metrics\r\n\r\n" not in said:  # the end of what it says when it stands
            said += os.read(terminal, 4096)

    thread = threading.Thread(target=reading, daemon=True)
    thread.start()
    thread.join(90)
    try:
        assert b"Hearth" in said and not thread.is_alive()
        os.close(terminal)
        assert process.wait(60) == 0, "it drained"
    finally:
        process.kill()
        process.wait()
        os.close(theirs)
