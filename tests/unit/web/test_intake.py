"""Bodies that take their time, and bodies that together are more than there is room for."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message

from app.errors import HearthError, RequestTimeout, TooBusy
from app.web import intake
from app.web.intake import Intake

MIB = 2**20


class Sender:
    """One request, whose body comes when the test says so."""

    def __init__(self, house: Intake, sender: str = "", *, kept: bool = True) -> None:
        self.state: dict[str, Any] = {"until": math.inf}
        self._parts: asyncio.Queue[Message] = asyncio.Queue()
        self._receive = house.reading(self._parts.get, 64 * MIB, self.state, sender=sender, kept=kept)
        self._reads = asyncio.create_task(self._all())
        self._reads.add_done_callback(lambda done: done.cancelled() or done.exception())  # not every test asks

    async def _all(self) -> int:
        size = 0
        while True:
            message = await self._receive()
            size += len(message["body"])
            if not message["more_body"]:
                return size

    async def sends(self, mib: float, *, last: bool = False) -> None:
        self._parts.put_nowait({"type": "http.request", "body": bytes(int(mib * MIB)), "more_body": not last})
        while not (self._parts.empty() or self._reads.done()):  # noqa: ASYNC110  a task of ours
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def result(self) -> int | HearthError:
        try:
            async with asyncio.timeout(5):
                return await self._reads
        except HearthError as error:
            return error

    @property
    def is_reading(self) -> bool:
        return not self._reads.done()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(intake, "time", SimpleNamespace(monotonic=lambda: now[0]))  # not the loop's
    return now


async def test_who_comes_when_all_room_is_taken_is_refused_and_those_before_are_read(clock: list[float]):
    house = Intake(math.inf, 10 * MIB)
    first = Sender(house)
    await first.sends(6)
    clock[0] += 0.1
    second = Sender(house)
    await second.sends(6)
    error = await second.result()
    assert isinstance(error, TooBusy) and error.retry_after_s == 1
    assert "10 MiB" in error.detail and "HEARTH_MAX_BODIES_MB" in error.detail
    await first.sends(3, last=True)
    assert await first.result() == 9 * MIB


async def test_the_youngest_makes_room_for_one_that_is_read_on(clock: list[float]):
    house = Intake(math.inf, 10 * MIB)
    first, second = Sender(house), None
    await first.sends(6)
    clock[0] += 0.1
    second = Sender(house)
    await second.sends(3)
    await first.sends(3, last=True)
    assert isinstance(await second.result(), TooBusy)
    assert await first.result() == 9 * MIB


async def test_whoever_hardly_sends_makes_room_first(clock: list[float]):
    """Three hundred who sent 60 MB each and then a byte now and then had taken all memory."""
    house = Intake(math.inf, 10 * MIB)
    slow = [Sender(house) for _ in range(3)]
    for one in slow:
        await one.sends(3)
    for one in (slow[1], slow[2], slow[0]):
        clock[0] += 10
        await one.sends(1 / MIB)
    clock[0] += 2
    honest = Sender(house)
    await honest.sends(3.5)
    assert [one.is_reading for one in slow].count(False) == 1, "one is enough"
    (refused,) = (one for one in slow if not one.is_reading)
    error = await refused.result()
    assert isinstance(error, RequestTimeout) and "slowest" in error.detail
    await honest.sends(3, last=True)
    assert await honest.result() == 6.5 * MIB
    (kept,) = (one for one in slow if one.is_reading)
    (other,) = (one for one in slow if one not in (kept, refused))
    assert isinstance(await other.result(), RequestTimeout)


async def test_who_has_most_under_way_makes_room_for_others(clock: list[float]):
    """Whoever keeps seventeen bodies of 60 MB under way would keep out all who come after him."""
    house = Intake(math.inf, 10 * MIB)
    many = []
    for _ in range(3):
        clock[0] += 0.1
        many.append(Sender(house, "greedy"))
        await many[-1].sends(3)
    clock[0] += 0.1
    modest = Sender(house, "modest")
    await modest.sends(2, last=True)
    assert await modest.result() == 2 * MIB
    assert [one.is_reading for one in many] == [True, True, False], "the youngest of them"
    assert isinstance(await many[-1].result(), TooBusy)


async def test_who_is_ended_already_is_ended_once(clock: list[float]):
    """Cancelled twice, he had no answer: his time was over, and before he heard of that there was no room."""
    house = Intake(30, 10 * MIB)
    silent = Sender(house)
    await silent.sends(6)
    clock[0] += 15
    other = Sender(house)
    await other.sends(1)
    clock[0] += 16
    other._parts.put_nowait({"type": "http.request", "body": bytes(5 * MIB), "more_body": False})
    house._look()
    assert await other.result() == 6 * MIB
    error = await silent.result()
    assert isinstance(error, RequestTimeout) and "HEARTH_SILENCE_S" in error.detail


async def test_what_is_here_keeps_its_room_until_it_is_answered(clock: list[float]):
    house = Intake(math.inf, 10 * MIB)
    first = Sender(house)
    await first.sends(8, last=True)
    assert await first.result() == 8 * MIB
    clock[0] += 60
    refused, let_in = Sender(house), Sender(house)
    await refused.sends(3, last=True)
    assert isinstance(await refused.result(), TooBusy), "there is nobody else who could make room"
    house.over(refused.state)
    house.over(first.state)
    house.over(first.state)
    await let_in.sends(10, last=True)
    assert await let_in.result() == 10 * MIB


async def test_what_goes_to_a_disk_takes_no_room():
    house = Intake(math.inf, 10 * MIB)
    data_set = Sender(house, kept=False)
    await data_set.sends(20)
    other = Sender(house)
    await other.sends(10, last=True)
    assert await other.result() == 10 * MIB
    await data_set.sends(20, last=True)
    assert await data_set.result() == 40 * MIB


@pytest.mark.parametrize(("until", "why"), [(0.05, "before the deadline"), (math.inf, "HEARTH_SILENCE_S")])
async def test_who_stops_sending_is_told_which_time_is_over(until: float, why: str):
    house = Intake(0.3, 10 * MIB)
    sender = Sender(house)
    sender.state["until"] = asyncio.get_running_loop().time() + until
    await sender.sends(1)
    error = await sender.result()
    assert isinstance(error, RequestTimeout) and why in error.detail


async def test_who_is_cancelled_by_another_is_cancelled():
    sender = Sender(Intake(30, 10 * MIB))
    await sender.sends(1)
    sender._reads.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sender.result()
