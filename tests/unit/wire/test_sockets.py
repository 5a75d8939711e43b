"""What an endpoint was given to send arrives: however large, however slow its peer, and even if its process ends at once."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.wire.frames import pack
from app.wire.messages import Cancel, Done, Message, Named
from app.wire.sockets import Endpoint, address, wait
from app.wire.standby import Standby
from tests.conftest import ROOT

LARGE = np.ones(4_000_000)  # 32 MB: many times what a socket holds
LAST_WORDS = """
import os, sys
import numpy as np
from app.wire.messages import Done
from app.wire.sockets import Endpoint

endpoint = Endpoint.connect(sys.argv[1], "toy.1")
endpoint.send(Done(7, 0.0, 0.0, 1, 0.0), {"scores": np.ones(int(sys.argv[2]))})
endpoint.close()
os._exit(0)
"""

TALKER = """
import os, sys
import numpy as np
from app.wire.messages import Cancel
from app.wire.sockets import Endpoint, wait

listener = Endpoint.listen(sys.argv[1])
print("listening", flush=True)
while not list(listener.receive()):
    wait([listener], 1)
for number in range(20):
    listener.send(Cancel(number), {"x": np.zeros(600)}, to="toy.1")
    listener.flush()
os._exit(0)
"""


@pytest.fixture
def where(tmp_path: Path) -> str:
    return address(str(tmp_path), "here")


@pytest.fixture
def listener(where: str) -> Iterator[Endpoint]:
    endpoint = Endpoint.listen(where)
    yield endpoint
    endpoint.close()


def taken(endpoint: Endpoint, count: int = 1, within_s: float = 10) -> list[tuple[str, Message, dict[str, np.ndarray]]]:
    """So much of what comes."""
    found: list[tuple[str, Message, dict[str, np.ndarray]]] = []
    until = time.monotonic() + within_s
    while len(found) < count:
        assert time.monotonic() < until, f"{len(found)} of {count} came"
        wait([endpoint], 1)
        found += endpoint.receive()
    return found


def test_the_last_words_of_a_process_arrive(where: str, listener: Endpoint):
    subprocess.run([sys.executable, "-c", LAST_WORDS, where, "10000"], cwd=ROOT, check=True, timeout=60)
    ((peer, message, arrays),) = taken(listener)
    assert (peer, message) == ("toy.1", Done(7, 0.0, 0.0, 1, 0.0))
    assert arrays["scores"].sum() == 10_000


def test_the_last_words_arrive_when_no_socket_can_hold_them(where: str, listener: Endpoint):
    speaker = subprocess.Popen([sys.executable, "-c", LAST_WORDS, where, "4000000"], cwd=ROOT)
    ((_, _, arrays),) = taken(listener, within_s=30)
    assert arrays["scores"].sum() == 4_000_000
    assert speaker.wait(10) == 0


def test_what_is_said_to_nobody_vanishes(where: str):
    endpoint = Endpoint.connect(where, "toy.1")
    endpoint.send(Cancel(1), {"x": LARGE})
    wait([endpoint], 0)
    assert list(endpoint.receive()) == []
    endpoint.close()


def test_a_peer_that_went_is_forgotten_but_what_it_said_is_heard(where: str, listener: Endpoint):
    caller = Endpoint.connect(where, "toy.1")
    caller.send(Cancel(1))
    caller.close()
    assert [message for _, message, _ in taken(listener)] == [Cancel(1)]
    for _ in range(3):
        listener.send(Cancel(2), {"x": LARGE}, to="toy.1")
        assert list(listener.receive()) == []


def test_a_name_that_comes_back_takes_over(where: str, listener: Endpoint):
    first, second = (Endpoint.connect(where, "toy.1") for _ in range(2))
    second.send(Cancel(1))
    second.flush()
    taken(listener)
    listener.send(Cancel(2), to="toy.1")
    listener.flush()
    assert [message for _, message, _ in taken(second)] == [Cancel(2)]
    assert list(first.receive()) == []
    first.close()
    listener.send(Cancel(3), to="toy.1")
    listener.pump()
    listener.flush()
    assert [message for _, message, _ in taken(second)] == [Cancel(3)]
    second.close()


def test_a_peer_that_does_not_read_holds_up_nobody(where: str, listener: Endpoint):
    deaf, other = Endpoint.connect(where, "deaf"), Endpoint.connect(where, "other")
    for endpoint in (deaf, other):
        endpoint.send(Cancel(0))
        endpoint.flush()
    taken(listener, 2)
    for number in range(5):
        listener.send(Cancel(number), {"x": LARGE}, to="deaf")
        listener.send(Cancel(number), to="other")
        listener.flush()
    assert [message for _, message, _ in taken(other, 5)] == [Cancel(number) for number in range(5)]
    with Standby([listener]):
        heard = taken(deaf, 5, within_s=30)
    assert [message for _, message, _ in heard] == [Cancel(number) for number in range(5)]
    assert all(len(arrays["x"]) == len(LARGE) for _, _, arrays in heard)
    for endpoint in (deaf, other):
        endpoint.close()


def test_somebody_stands_by_while_the_owner_computes(where: str, listener: Endpoint):
    """Nobody calls the listener, and yet its peer gets rid of all that it has to say; and that again and again."""
    caller = Endpoint.connect(where, "toy.1")
    standby = Standby([listener])
    for number in range(3):
        with standby:
            caller.send(Cancel(number), {"x": LARGE})
            until = time.monotonic() + 10
            while any(connection.unsent for connection in caller._peers.values()) or caller._outbox:
                assert time.monotonic() < until, "nobody took it in"
                caller.flush()
                wait([caller], 0.1)
                caller.pump()
        ((_, message, arrays),) = taken(listener)
        assert message == Cancel(number) and len(arrays["x"]) == len(LARGE)
    caller.close()


def test_a_standby_that_has_nothing_to_do_gives_back_at_once(listener: Endpoint):
    standby = Standby([listener])
    began = time.monotonic()
    for _ in range(100):
        with standby:
            pass
    assert time.monotonic() - began < 5


async def test_on_asyncio_both_sides_talk_at_once(where: str, listener: Endpoint):
    """Each has more to say than a socket holds, and neither waits for the other to finish."""
    caller = Endpoint.connect(where, "toy.1")
    heard: dict[str, list[int]] = {"caller": [], "listener": []}
    done = asyncio.Event()

    def hear(who: str, message: Message, arrays: dict[str, np.ndarray]) -> None:
        assert isinstance(message, Cancel) and (arrays["x"] == message.id).all()
        heard[who].append(message.id)
        if all(len(ids) == 50 for ids in heard.values()):
            done.set()

    def answer(peer: str, message: Message, arrays: dict[str, np.ndarray]) -> None:
        hear("listener", message, arrays)
        listener.send(message, arrays, to=peer)

    listener.attach(answer)
    caller.attach(lambda _, message, arrays: hear("caller", message, arrays))
    for number in range(50):
        caller.send(Cancel(number), {"x": np.full(40_000, number)})
    await asyncio.wait_for(done.wait(), 30)
    assert heard["caller"] == heard["listener"] == list(range(50))
    caller.close()


async def test_drain_hears_everything_a_dead_peer_had_said(where: str):
    talker = subprocess.Popen([sys.executable, "-c", TALKER, where], cwd=ROOT, stdout=subprocess.PIPE)
    assert talker.stdout is not None and talker.stdout.readline() == b"listening\n"
    heard: list[Message] = []
    caller = Endpoint.connect(where, "toy.1")
    caller.send(Cancel(0))
    caller.flush()
    assert talker.wait(10) == 0
    caller.attach(lambda _, message, __: heard.append(message))
    caller.drain()
    caller.close()
    talker.stdout.close()
    assert heard == [Cancel(number) for number in range(20)]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("rubbish", [b"GET / HTTP/1.1\r\n\r\n", b"\x08" + bytes(15) + b"\xff" * 8, b"\xff" * 400])
def test_whoever_talks_rubbish_is_let_go(where: str, listener: Endpoint, rubbish: bytes, named: bool):
    other, rude = Endpoint.connect(where, "other"), socket.socket(socket.AF_UNIX)
    rude.connect(where)
    if named:
        rude.sendall(b"".join(pack([(Named("rude"), {})])))
    rude.sendall(rubbish)
    other.send(Cancel(1))
    other.flush()
    assert [message for _, message, _ in taken(listener)] == [Cancel(1)]
    listener.pump()
    other.send(Cancel(2))
    other.flush()
    assert [message for _, message, _ in taken(listener)] == [Cancel(2)]
    other.close()
    rude.close()


def test_what_fails_while_somebody_stands_by_is_the_owners_to_hear(
    where: str, listener: Endpoint, monkeypatch: pytest.MonkeyPatch
):
    failing = threading.Event()

    def pump() -> None:
        failing.set()
        raise OSError("no descriptors")

    def compute() -> None:
        with standby:
            Endpoint.connect(where, "toy.1").close()
            assert failing.wait(10)

    standby = Standby([listener])
    monkeypatch.setattr(listener, "pump", pump)
    with pytest.raises(OSError, match="no descriptors"):
        compute()
    monkeypatch.undo()


async def test_others_of_the_loop_have_turns_while_a_batch_is_handled(where: str, listener: Endpoint):
    """A batch's answers come as one envelope; whoever is refused meanwhile shall not wait for all that they set off."""
    heard, seen = list[Message](), [0]
    caller = Endpoint.connect(where, "toy.1")
    for number in range(30):
        caller.send(Cancel(number))
    caller.flush()
    listener.attach(lambda _, message, __: heard.append(message))
    async with asyncio.timeout(10):
        while len(heard) < 30:
            await asyncio.sleep(0)
            seen.append(len(heard))
    assert heard == [Cancel(number) for number in range(30)]
    assert max(after - before for before, after in itertools.pairwise(seen)) == 8
    caller.close()


async def test_what_a_handler_raises_keeps_nobody_else_from_being_heard(where: str, listener: Endpoint):
    loop = asyncio.get_running_loop()
    failures: list[object] = []
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    heard, done = [], asyncio.Event()

    def hear(_: str, message: Message, __: dict[str, np.ndarray]) -> None:
        assert isinstance(message, Cancel)
        heard.append(message.id)
        if len(heard) == 30:
            done.set()
        if message.id % 3 == 0:
            raise ValueError("a handler's own")

    caller = Endpoint.connect(where, "toy.1")
    for number in range(30):
        caller.send(Cancel(number))
        caller.flush()
    listener.attach(hear)
    await asyncio.wait_for(done.wait(), 10)
    await asyncio.sleep(0)
    assert heard == list(range(30)) and len(failures) == 10
    caller.close()


def test_the_end_of_a_peer_is_heard_before_there_is_room_for_more(
    where: str, listener: Endpoint, monkeypatch: pytest.MonkeyPatch
):
    """As kqueue tells it: reading and writing one after the other, for one and the same connection."""
    caller = Endpoint.connect(where, "toy.1")
    caller.send(Cancel(0))
    caller.flush()
    taken(listener)
    listener.send(Cancel(1), {"x": LARGE}, to="toy.1")
    listener.flush()
    caller.close()
    both = [(key, event) for key, _ in listener._selector.select(1) for event in (1, 2)]
    monkeypatch.setattr(listener._selector, "select", lambda _: both)
    listener.pump()
    monkeypatch.undo()
    assert listener.gone
