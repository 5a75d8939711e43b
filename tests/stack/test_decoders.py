"""What a file may do to the process that reads it, and to nobody else."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faults
import numpy as np
import psutil
import pytest

from app import patience
from app.decoding import client as clients
from app.decoding.client import Decoders
from app.decoding.link import Decoder, Died
from app.decoding.nursery import KILL, ORDER
from app.errors import BadInput, OutOfMemory, TooBusy, TooLarge
from app.tasks.base import Recipe
from app.tasks.image.input import ImageInput
from app.wire import parcels
from app.wire.messages import Cancel
from app.wire.parcels import Parcel
from tests.conftest import ROOT
from tests.stack.conftest import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="written for Linux")
CODEC: Any = SimpleNamespace(recipe=Recipe(task="image-classification", input=ImageInput().model_dump_json(), limit=1))
HASTY: Any = SimpleNamespace(recipe=Recipe(task="image-classification", input=ImageInput().model_dump_json(), limit=0))


def begin() -> socket.socket:
    """A nursery whose decoders do what they read."""
    ours, theirs = socket.socketpair()
    with theirs:
        line = [sys.executable, "-m", "tests.stack.crashing", str(theirs.fileno())]
        processes.append(subprocess.Popen(line, pass_fds=[theirs.fileno()], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}))
    return ours


processes: list[subprocess.Popen[bytes]] = []


@pytest.fixture
async def decoders(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Decoders]:
    monkeypatch.setattr(clients.nursery, "spawn", begin)
    decoders = Decoders(2, 256 << 20, begin())
    yield decoders
    decoders.close()
    for process in processes:
        await asyncio.to_thread(process.wait, 30)
    processes.clear()


async def read(decoders: Decoders, what: str) -> Any:
    decoded, _ = await asyncio.wait_for(decoders.decode(CODEC, what.encode(), {}), 60)
    return decoded.samples[0].arrays["x"]


async def until(what: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(wait_for, what)


def children() -> dict[str, int]:
    found = {}
    for child in psutil.Process(processes[-1].pid).children():
        with suppress(psutil.NoSuchProcess):  # killed a moment ago
            found[child.name()] = child.pid
    return found


async def test_a_file_comes_back_as_arrays_small_and_large(decoders: Decoders):
    assert await read(decoders, "size " + "x" * 3) == 3
    assert await read(decoders, "size " + "x" * 5_000_000) == 5_000_000
    assert np.array_equal(await read(decoders, "large 1000000"), np.arange(1_000_000))
    assert list(children()) == ["hearth decode 1"], "one at a time needs one decoder"


async def test_a_file_that_ends_its_decoder_costs_its_sender_alone(decoders: Decoders):
    slow = asyncio.create_task(read(decoders, "slow 0.3"))
    with pytest.raises(BadInput, match="ends the process that reads it"):
        await read(decoders, "crash")
    assert await slow
    assert await read(decoders, "size xx") == 2


@pytest.mark.parametrize("file", ["leave", "two 0", "two 1"])
async def test_a_file_that_makes_its_decoder_leave_or_cheat_is_convicted_and_leaves_nothing(decoders: Decoders, file: str):
    """What came beside the memory of an answer stayed open: a descriptor each time, and the memory behind it."""
    assert await read(decoders, "size x") == 1
    before = psutil.Process().num_fds()
    with pytest.raises(BadInput, match="ends the process that reads it"):
        await read(decoders, file)
    assert await read(decoders, "size x") == 1
    assert psutil.Process().num_fds() == before


async def test_an_answer_for_which_its_decoder_has_no_descriptor_is_no_mistake(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(clients._MOST, "unread", 3)
    with pytest.raises(TooBusy):
        await read(decoders, "starve 1000000")
    assert caplog.text.count("exit status 75") == 3


async def test_memory_that_the_kernel_does_not_seal_just_now_is_sealed_later(decoders: Decoders, monkeypatch: pytest.MonkeyPatch):
    """It holds pages for a moment now and then: of 40,000 pictures, one was told that we had made a mistake."""
    seal, busy = fcntl.fcntl, [True]

    def fails_once(descriptor: int, what: int, *more: int) -> int:
        if what == fcntl.F_ADD_SEALS and busy:
            busy.clear()
            raise OSError(errno.EBUSY, "Device or resource busy")
        return seal(descriptor, what, *more)

    monkeypatch.setattr(parcels.fcntl, "fcntl", fails_once)
    assert await read(decoders, "size " + "x" * 1_000_000) == 1_000_000
    assert not busy


async def test_where_none_can_be_forked_one_that_has_become_idle_will_do(decoders: Decoders):
    assert await read(decoders, "size x") == 1
    with faults.descriptors_below(3, os.getpid()):
        first, second = await asyncio.gather(read(decoders, "slow 0.05"), read(decoders, "slow 0.05"))
    assert first == second, "the same decoder"


async def test_one_whose_decoder_was_killed_gets_what_an_idle_one_has(decoders: Decoders):
    """To fork another takes two descriptors, of which the dead one has left one."""
    slow = [asyncio.create_task(read(decoders, f"slow {seconds}")) for seconds in (2, 0)]
    await slow[1]
    killed = await until(lambda: children().get("hearth decode 1"))
    free = os.dup(0)
    os.close(free)
    with faults.descriptors_below(free, os.getpid()):
        os.kill(killed, signal.SIGKILL)
        assert await slow[0] != killed


async def test_where_the_nursery_has_no_descriptor_an_idle_decoder_will_do(decoders: Decoders):
    assert await read(decoders, "size x") == 1
    with faults.descriptors_below(3, processes[0].pid):
        first, second = await asyncio.gather(read(decoders, "slow 0.05"), read(decoders, "slow 0.05"))
    assert first == second


async def test_an_idle_decoder_is_kept_where_it_has_nothing_that_is_missing(decoders: Decoders, monkeypatch: pytest.MonkeyPatch):
    def not_yet() -> Decoder:
        raise clients._no_nursery()

    idle = await read(decoders, "slow 0")
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(decoders, "_fork", not_yet)
        with pytest.raises(BlockingIOError, match="yet to come"):
            decoders._idle_or_forked(fresh=True)
    assert await read(decoders, "slow 0") == idle


async def test_what_ended_its_decoder_is_gone_with_the_error(decoders: Decoders):
    """Waiting for the garbage collector, many would hold what was uploaded."""
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(BadInput):
            async with asyncio.timeout(60):
                await decoders.decode(CODEC, b"crash", {})
        await asyncio.sleep(0)  # what woke us up is done
        assert not [kept for kept in gc.get_objects() if type(kept) is Parcel]
    finally:
        gc.enable()


async def test_a_file_whose_decoder_others_kill_again_and_again_is_read_all_the_same(decoders: Decoders):
    reading = asyncio.create_task(read(decoders, "slow 1"))
    victims = [await kill(number) for number in (1, 2, 3)]
    assert await reading not in victims


async def test_a_file_that_the_system_kills_for_is_given_up(decoders: Decoders, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(clients._MOST, "killed", 2)
    reading = asyncio.create_task(read(decoders, "hang"))
    for number in (1, 2):
        await kill(number)
    with pytest.raises(OutOfMemory):
        await reading


async def kill(number: int) -> int:
    """Decoder `number`, as soon as it is there."""
    pid: int = await until(lambda: children().get(f"hearth decode {number}"))
    os.kill(pid, 9)
    return pid


async def test_a_file_that_nobody_waits_for_any_longer_loses_its_decoder(decoders: Decoders, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clients, "_GRACE_S", 0.05)
    for _ in range(3):  # more than there are decoders
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(decoders.decode(CODEC, b"hang", {}), 0.5)
    assert await read(decoders, "size x") == 1
    await until(lambda: len(children()) == 1)


async def test_a_file_may_take_its_time_of_the_processor_and_no_more(decoders: Decoders):
    """It holds its turn no longer, however long somebody would wait for it; and what only waits is not ended."""
    slow = asyncio.create_task(decoders.decode(HASTY, b"slow 2.5", {}))
    with pytest.raises(BadInput, match="convert it anew"):
        await asyncio.wait_for(decoders.decode(HASTY, b"hang", {}), 60)
    assert await slow
    for _ in range(3):  # each has the whole of it
        assert await asyncio.wait_for(decoders.decode(HASTY, b"spin 0.9", {}), 60)


async def test_what_is_nearly_done_keeps_its_decoder(decoders: Decoders):
    decoder = await read(decoders, "slow 0")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(decoders.decode(CODEC, b"slow 0.2", {}), 0.1)
    await asyncio.sleep(clients._GRACE_S)
    assert await read(decoders, "slow 0") == decoder


async def test_a_decoders_end_may_be_heard_twice():
    """On its socket, and from the nursery; in any order."""
    ours, theirs = socket.socketpair()
    decoder = Decoder(1, ours, free=lambda _: None)
    asked = decoder.ask(Parcel((Cancel(1), {})))
    theirs.close()
    decoder.ended(-9)
    decoder.close()
    with pytest.raises(Died):
        await asked


async def test_memory_is_bounded(decoders: Decoders):
    assert await read(decoders, f"fill {200 << 20}") == 200 << 20
    with pytest.raises(TooLarge, match="more memory"):
        await read(decoders, f"fill {300 << 20}")
    assert await read(decoders, "size x") == 1


async def test_a_mistake_of_ours_is_told_as_one(decoders: Decoders):
    with pytest.raises(RuntimeError, match="over its own feet"):
        await read(decoders, "stumble")


async def test_a_nursery_that_died_with_an_order_unread_is_replaced(decoders: Decoders, caplog: pytest.LogCaptureFixture):
    """Its end is a reset then, and not an end of file. After that uvloop looks no more: nothing was decoded ever again."""
    assert await read(decoders, "size x") == 1
    processes[0].send_signal(signal.SIGSTOP)
    reading = [asyncio.create_task(read(decoders, "size xx")) for _ in range(2)]  # there is one decoder
    await until(lambda: unread(decoders._control))
    processes[0].kill()
    assert await asyncio.gather(*reading) == [2, 2]
    assert len(processes) == 2
    assert "Exception in callback" not in caplog.text, "as a reset that nobody catches"


async def test_a_nursery_that_told_of_an_end_before_its_own_is_replaced(decoders: Decoders):
    """The loop hears of both in one turn: here, nothing lets it turn before both have come."""
    assert await read(decoders, "size x") == 1
    [decoder] = children().values()
    os.kill(decoder, 9)
    wait_for(lambda: select.select([decoders._control], [], [], 0)[0])
    processes[0].send_signal(signal.SIGSTOP)
    decoders._control.sendall(ORDER.pack(KILL, 7, 0))  # which it does not read
    processes[0].kill()
    processes[0].wait()
    assert await read(decoders, "size xx") == 2
    assert len(processes) == 2


async def test_a_nursery_is_replaced_as_soon_as_there_is_room_for_one(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """What its decoders read meanwhile waits for it."""
    full = [True]

    def spawn() -> socket.socket:
        if full:
            raise OSError(errno.EMFILE, "Too many open files")
        return begin()

    monkeypatch.setattr(clients.nursery, "spawn", spawn)
    monkeypatch.setattr(clients, "_AGAIN_S", 0.05)
    reading = asyncio.create_task(read(decoders, "slow 0.2"))
    await until(children)
    processes[0].kill()
    late = asyncio.create_task(read(decoders, "size x"))
    await until(lambda: "no nursery of decoders can be begun" in caplog.text)
    full.clear()
    assert await reading
    assert await late == 1
    assert len(processes) == 2


async def test_where_no_nursery_can_be_begun_for_long_that_is_told(decoders: Decoders, monkeypatch: pytest.MonkeyPatch):
    def spawn() -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(clients.nursery, "spawn", spawn)
    monkeypatch.setattr(patience, "PAUSE_S", 0.01)
    processes[0].kill()
    processes[0].wait()
    with pytest.raises(TooBusy, match="come back"):
        await read(decoders, "size x")
    assert decoders._turns._value == decoders.count, "it gives its turn back"


async def test_a_nursery_that_ends_at_once_is_not_begun_as_quickly(decoders: Decoders, monkeypatch: pytest.MonkeyPatch):
    """As where it finds no descriptor left for what it imports. Who waits for it is not told that memory has run out."""
    begun: list[float] = []

    def spawn() -> socket.socket:
        begun.append(time.monotonic())
        if len(begun) > 3:
            return begin()
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours

    monkeypatch.setattr(clients.nursery, "spawn", spawn)
    monkeypatch.setattr(clients, "_AGAIN_S", 0.2)
    processes[0].kill()
    assert await read(decoders, "size x") == 1
    assert all(later - sooner > 0.15 for sooner, later in pairwise(begun))


async def test_a_decoder_that_had_no_room_to_begin_costs_nobody(decoders: Decoders, caplog: pytest.LogCaptureFixture):
    """Two in a row convicted the file."""
    assert await read(decoders, "slow 0")
    os.kill(children()["hearth decode 1"], signal.SIGKILL)
    await until(lambda: not decoders._alive)
    pid = processes[0].pid
    free = faults.free_number(pid)
    with faults.descriptors_below(free + 1, pid):  # for the decoder's end of its socket, and nothing else
        reading = asyncio.create_task(read(decoders, "size xx"))
        await until(lambda: caplog.text.count("exit status 75") > clients._MOST["crashed"])
        with faults.descriptors_below(free, pid):  # nor for that
            before = caplog.text.count("exit status 75")
            await until(lambda: caplog.text.count("exit status 75") > before + clients._MOST["crashed"])
    assert await reading == 2
    assert len(processes) == 1, "the nursery lives"


async def test_an_answer_for_which_there_is_no_descriptor_comes_later(decoders: Decoders, caplog: pytest.LogCaptureFixture):
    """And so does a large file, for which there was none either."""
    assert await read(decoders, "size x") == 1
    waiting = asyncio.create_task(read(decoders, "large 1000000"))
    large = asyncio.create_task(read(decoders, "size " + "x" * 5_000_000))
    with faults.descriptors_below(3, os.getpid()):
        await until(lambda: "exit status 0" in caplog.text)
    assert np.array_equal(await waiting, np.arange(1_000_000))
    assert await large == 5_000_000


async def test_whoever_finds_the_nursery_dead_before_anybody_heard_of_it_waits_for_the_next(decoders: Decoders):
    processes[0].kill()
    processes[0].wait()
    assert await read(decoders, "size xx") == 2
    assert len(processes) == 2


def unread(control: socket.socket) -> bool:
    """Whether the other end has something to read."""
    return struct.unpack("i", fcntl.ioctl(control, termios.TIOCOUTQ, bytes(4)))[0] > 0


async def test_a_nursery_that_died_is_replaced(decoders: Decoders):
    assert await read(decoders, "size x") == 1
    processes[-1].kill()
    await until(lambda: len(processes) == 2)
    assert await read(decoders, "size xx") == 2


async def test_a_decoder_reaches_nothing(decoders: Decoders, tmp_path: Path):
    if not landlock():
        pytest.skip("this kernel cannot confine")
    (tmp_path / "secret").write_text("x")
    assert await read(decoders, f"read {tmp_path / 'secret'}")
    assert await read(decoders, f"write {tmp_path / 'new'}")
    assert await read(decoders, "start /bin/true")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert await read(decoders, f"connect {listener.getsockname()[1]}")
        assert await read(decoders, f"post {listener.getsockname()[1]}")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as box:
        for end, name in ((listener, "door"), (box, "box")):
            end.bind(str(tmp_path / name))
        listener.listen()
        assert await read(decoders, f"knock {tmp_path / 'door'}")
        assert await read(decoders, f"smuggle {tmp_path / 'box'}")
    assert await read(decoders, "fork")
    assert await read(decoders, "thread"), "libraries may have some"
    assert await read(decoders, f"kill {os.getpid()}")
    assert not await read(decoders, f"read {os.__file__}"), "Python's own modules may be imported late"


def landlock() -> bool:
    """Version 6 or later: everything."""
    import ctypes

    return int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)) >= 6
