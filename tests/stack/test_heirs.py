"""Frontends are killed, and nobody at the other end of a connection notices: callers here never try again."""

from __future__ import annotations

import itertools
import random
import select
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path

import httpx
import psutil
import pytest

from app import keys
from app.web.connection import most_connections
from tests.stack.conftest import Clients, Server, picture, wait_for, write_toy
from tests.stack.test_lives import close
from tests.stack.test_slow_senders import everything, head

PNG = picture(1, 2, 3)
CYAN = picture(0, 255, 255)  # takes four seconds
YELLOW = picture(255, 255, 0)  # eighteen
LARGE = 6 << 20
HEAD = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def server(toys: Path) -> Iterator[Server]:
    with Server(toys, HEARTH_MODELS="toy", HEARTH_FRONTENDS="1") as server:
        yield server


@pytest.fixture
def caller(server: Server) -> Iterator[socket.socket]:
    with called(server) as caller:
        yield caller


def called(server: Server, buffer: int = 0) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    caller = socket.socket()
    if buffer:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)  # the sender's buffer is some segments, of 64 KiB here
    caller.settimeout(30)
    caller.connect((host, int(port)))
    return caller


def named(server: Server, start: str) -> list[psutil.Process]:
    """Our living processes of that name."""
    found = []
    for child in psutil.Process(server.process.pid).children():
        with suppress(psutil.NoSuchProcess):
            found += [child] if child.name().startswith(start) and child.status() != psutil.STATUS_ZOMBIE else []
    return found


def killed(server: Server) -> None:
    """A frontend is killed, and the next one is there."""
    (old,) = named(server, "hearth http")
    old.kill()
    taken_over(server, old)


def taken_over(server: Server, old: psutil.Process, seconds: float = 30) -> None:
    wait_for(lambda: [new for new in named(server, "hearth http") if new.pid != old.pid], seconds)
    with called(server) as caller:
        assert answer_of(caller, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").status == 200


def answer_of(caller: socket.socket, request: bytes) -> HTTPResponse:
    caller.sendall(request)
    return next_answer(caller)


def next_answer(caller: socket.socket) -> HTTPResponse:
    """Read to its end."""
    answer = HTTPResponse(caller)
    answer.begin()
    answer.body = answer.read()  # type: ignore[attr-defined]
    return answer


class Strict(Clients):
    """Callers that ask over one connection each, or (every second one) over one for each request, and never try again."""

    def __init__(self, server: Server, count: int = 6) -> None:
        super().__init__(server, count)
        self.right = 0
        self._pictures = [picture(n * 9, n * 5, n * 3) for n in range(20)]
        self._answers = [server.predict(raw).json() for raw in self._pictures]

    def _run(self, url: str, number: int) -> None:
        address = url.removeprefix("http://")
        http = HTTPConnection(address, timeout=60)
        for turn in itertools.count(number):
            if self._stop.is_set():
                break
            which = turn % len(self._pictures)
            try:
                http.request("POST", "/predict/image", self._pictures[which], HEAD)
                http.auto_open = 0  # the first connection is the last
                answer = http.getresponse()
                right = answer.status == 200 and close(httpx.Response(200, content=answer.read()).json(), self._answers[which])
                self.right += right
                self.wrong += [] if right else [str(answer.status)]
            except (OSError, HTTPException) as error:
                self.wrong.append(repr(error))
                http = HTTPConnection(address, timeout=60)
            if number % 2:
                http.close()
                http = HTTPConnection(address, timeout=60)
        http.close()


def test_killed_frontends_cost_no_request_and_no_connection(toys: Path):
    with Server(toys, HEARTH_MODELS="toy", HEARTH_FRONTENDS="2") as server:
        recoveries = []
        with Strict(server) as load:
            for _ in range(12):
                before = load.right
                wait_for(lambda before=before: load.right > before + 20)
                (old, _) = random.sample(wait_for(lambda: found if len(found := named(server, "hearth http")) == 2 else []), 2)
                begin = time.monotonic()
                old.kill()
                taken_over(server, old)
                recoveries.append(time.monotonic() - begin)
        assert load.wrong == [], server.log
        assert load.right > 240
        assert statistics.median(recoveries) < 3, recoveries  # a bound, not a benchmark
        # The other one answers while the last is replaced.
        wait_for(lambda: server.metric("hearth_frontend_restarts_total") == 12)


def test_a_stopped_frontend_is_noticed_and_costs_no_request(server: Server):
    with Strict(server) as load:
        wait_for(lambda: load.right > 20)
        (old,) = named(server, "hearth http")
        old.suspend()
        at = load.right
        wait_for(lambda: load.right > at + 100, 60)
        assert not old.is_running()
    assert load.wrong == [], server.log


def test_an_idle_connection_goes_on(server: Server, caller: socket.socket):
    for _ in range(3):
        assert answer_of(caller, head() + PNG).status == 200
        killed(server)
    assert answer_of(caller, head() + PNG).status == 200


def test_who_was_answered_by_the_frontend_before_is_no_stranger(toys: Path):
    """Those who never asked for anything make room first; the heir took everybody for one of them."""
    with (
        Server(toys, under=["prlimit", "--nofile=200"], HEARTH_MODELS="toy", HEARTH_FRONTENDS="1") as server,
        called(server) as caller,
        ExitStack() as strangers,
    ):
        assert answer_of(caller, head() + PNG).status == 200
        killed(server)
        there = [strangers.enter_context(called(server)) for _ in range(2 * most_connections(200))]
        wait_for(lambda: select.select(there, [], [], 0)[0])  # some have made room
        assert answer_of(caller, head() + PNG).status == 200


def test_a_connection_without_a_word_goes_on(server: Server, caller: socket.socket):
    killed(server)
    assert answer_of(caller, head() + PNG).status == 200


def test_a_request_that_comes_in_pieces_survives_between_all_of_them(server: Server, caller: socket.socket):
    request = head() + PNG
    for start in range(0, len(request), 40):
        caller.sendall(request[start : start + 40])
        killed(server)
    assert next_answer(caller).status == 200
    assert answer_of(caller, head() + PNG).status == 200


def test_a_large_upload_survives_and_its_memory_comes_back(server: Server, caller: socket.socket):
    before = journal_bytes(server)
    large = PNG + bytes(LARGE)  # what follows a picture's end is not looked at
    request = head(length=len(large)) + large
    caller.sendall(request[: LARGE // 2])
    wait_for(lambda: journal_bytes(server) > before + LARGE // 2 - 4096)
    killed(server)
    assert answer_of(caller, request[LARGE // 2 :]).status == 200
    assert wait_for(lambda: journal_bytes(server) < before + 200_000)


def journal_bytes(server: Server) -> int:
    """Memory of the keeper's journal."""
    (keeper,) = named(server, "hearth keeper")
    files = Path(f"/proc/{keeper.pid}/fd").iterdir()
    (file, *_) = [file for file in files if "hearth journal" in str(file.readlink())]
    return file.stat().st_blocks * 512


def test_a_request_that_is_being_answered_is_answered_once(server: Server, caller: socket.socket):
    caller.sendall(head(length=len(CYAN)) + CYAN)
    in_flight(server, 1)
    killed(server)
    assert next_answer(caller).status == 200
    caller.settimeout(1)
    with pytest.raises(TimeoutError):
        caller.recv(1)
    caller.settimeout(30)
    assert answer_of(caller, head() + PNG).status == 200


def in_flight(server: Server, count: int) -> None:
    wait_for(lambda: server.metric("hearth_requests_in_flight") >= count + 1)  # and the one that asks


def test_an_answer_that_was_not_yet_read_is_not_repeated(server: Server, caller: socket.socket):
    caller.sendall(head() + PNG)
    wait_for(lambda: b"predictions" in caller.recv(65536, socket.MSG_PEEK))
    killed(server)
    assert next_answer(caller).status == 200
    assert answer_of(caller, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").status == 200


def test_half_an_answer_is_followed_by_nothing(server: Server):
    path = "/docs/static/swagger-ui-bundle.js"  # 1.4 MB
    with called(server, buffer=1 << 15) as caller:  # smaller ones are read for half a minute
        caller.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
        assert caller.recv(1)
        in_flight(server, 1)
        killed(server)
        body = everything(caller).partition(b"\r\n\r\n")[2]
        assert server.http.get(path).content.startswith(body)


def test_what_outlives_too_many_frontends_is_let_go(server: Server, caller: socket.socket):
    def is_answered() -> bool:
        return bool(select.select([caller], [], [], 0)[0])

    caller.sendall(head(length=len(YELLOW)) + YELLOW)
    kills = 0
    while not is_answered():  # one that was killed before it had the request does not count
        wait_for(lambda: is_answered() or server.metric("hearth_requests_in_flight") >= 2)  # and the one that asks
        if not is_answered():
            killed(server)
            kills += 1
    assert kills >= 7
    answer = next_answer(caller)
    assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (503, "1", "close")
    assert b"worker_lost" in answer.body and b"7 processes ended" in answer.body  # type: ignore[attr-defined]
    assert everything(caller) == b""
    for worker in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if worker.name().startswith("hearth toy"):
                worker.kill()  # it is still at it


def test_a_caller_that_leaves_is_noticed_by_the_heir(server: Server, caller: socket.socket):
    port = caller.getsockname()[1]
    (keeper,) = named(server, "hearth keeper")

    def is_held() -> bool:
        return any(held.raddr and held.raddr.port == port for held in keeper.net_connections("tcp"))

    assert answer_of(caller, head() + PNG).status == 200
    killed(server)
    assert is_held()
    caller.close()
    wait_for(lambda: not is_held(), 5)


def test_a_frontend_that_is_told_to_end_is_replaced(server: Server, caller: socket.socket):
    caller.sendall(head(length=len(CYAN)) + CYAN)
    in_flight(server, 1)
    (old,) = named(server, "hearth http")
    old.terminate()
    assert next_answer(caller).status == 200, "it finishes what it has accepted"
    taken_over(server, old)
    killed(server)


def test_what_was_accepted_before_the_end_is_answered_whoever_is_killed_then(toys: Path):
    with Server(toys, HEARTH_MODELS="toy", HEARTH_FRONTENDS="1") as server, called(server) as caller:
        caller.sendall(head(length=len(CYAN)) + CYAN)
        in_flight(server, 1)
        (old,) = named(server, "hearth http")
        old.kill()  # what its heir listens on, too, is closed when it is told to end
        taken_over(server, old)
        (old,) = named(server, "hearth http")
        in_flight(server, 1)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: is_refused(server))
        old.kill()
        assert next_answer(caller).status == 200
        assert server.process.wait(30) == 0


def is_refused(server: Server) -> bool:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as late:
        return late.connect_ex((host, int(port))) != 0


def test_a_killed_keeper_costs_no_request_under_way_and_is_replaced(server: Server, caller: socket.socket):
    caller.sendall(head(length=len(CYAN)) + CYAN)
    in_flight(server, 1)
    (old,) = named(server, "hearth keeper")
    old.kill()
    assert next_answer(caller).status == 200
    wait_for(lambda: [new for new in named(server, "hearth keeper") if new.pid != old.pid])
    wait_for(lambda: len(named(server, "hearth http")) == 1)
    killed(server)


def test_nothing_leaks(server: Server):
    def measured() -> tuple[int, ...]:
        wait_for(lambda: len(named(server, "hearth http")) == 1)
        return named(server, "hearth keeper")[0].num_fds(), psutil.Process(server.process.pid).num_fds()

    killed(server)
    before = measured()
    (keeper,) = named(server, "hearth keeper")
    assert keeper.num_threads() == 1, "it may fork"
    for _ in range(10):
        killed(server)
    wait_for(lambda: all(now <= then for now, then in zip(measured(), before, strict=True)))
    wait_for(lambda: not server.dead(), 5)  # the decoders of those that were killed are let go at the second look


class Asking(HTTPConnection):
    """One who asks once, over a connection that is there already, and reads the answer later."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.url.removeprefix("http://"), timeout=60)
        self.connect()
        self.auto_open = 0  # the first connection is the last

    def asks(self, raw: bytes, **heads: str) -> None:
        self.request("POST", "/predict/image", raw, HEAD | heads)

    @property
    def is_answered(self) -> bool:
        return bool(select.select([self.sock], [], [], 0)[0])


def test_what_was_let_in_finds_room_with_the_heir_whatever_that_takes_first(tmp_path: Path):
    """A request of more inputs than fit beside others is let in when half of the queue is empty. Its connection is the older one,
    and its heir let it in first: the queue was full, and the others had 503.
    """
    write_toy(tmp_path / "models" / "toy", "true")
    card = tmp_path / "models" / "toy" / "card.toml"
    card.write_text(card.read_text().replace("max_queue = 256", "max_queue = 4"))
    several = httpx.Request("POST", "http://x", files=[("file", ("a.png", PNG, "image/png"))] * 4)
    with Server(tmp_path, HEARTH_MODELS="toy", HEARTH_FRONTENDS="1") as server, ExitStack() as callers:
        older, *others = (callers.enter_context(closing(Asking(server))) for _ in range(3))
        for other in others:
            other.asks(CYAN)
        in_flight(server, 2)
        older.asks(several.read(), **{"content-type": several.headers["content-type"]})
        in_flight(server, 3)
        killed(server)
        assert [caller.getresponse().status for caller in (older, *others)] == [200] * 3


def test_what_was_let_in_is_not_refused_for_a_rate_by_the_heir(tmp_path: Path):
    """The bucket had filled again and again while they waited; that of the heir is full once."""
    write_toy(tmp_path / "models" / "toy", "true")
    file = tmp_path / "keys.jsonl"
    (_, admin), (_, slow) = keys.add(file, "admin", "admin"), keys.add(file, "slow", "infer", "120/min", 1)
    with (
        Server(tmp_path, HEARTH_MODELS="toy", HEARTH_FRONTENDS="1", HEARTH_KEYS_FILE=str(file)) as server,
        ExitStack() as callers,
    ):
        server.http.headers["authorization"] = f"Bearer {admin}"
        waiting: list[Asking] = []

        def is_let_in() -> bool:
            """Another one; who comes too early is refused at once."""
            caller = callers.enter_context(closing(Asking(server)))
            caller.asks(PNG if waiting else CYAN, authorization=f"Bearer {slow}")
            many = len(waiting) + 1
            wait_for(lambda: caller.is_answered or server.metric("hearth_requests_in_flight") > many)
            if not caller.is_answered:
                waiting.append(caller)
            return len(waiting) == many

        for _ in range(3):
            wait_for(is_let_in)
        (old,) = named(server, "hearth http")
        old.kill()
        assert [caller.getresponse().status for caller in waiting] == [200] * 3
