"""A frontend's sockets to workers that end: an answer that came is an answer."""

from __future__ import annotations

import asyncio
import gc
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from app.card import Card
from app.errors import Deadline, HearthError, Loading, Poisoned, RateLimited, TooBusy, UnknownModel, WorkerLost
from app.keys import Key
from app.pool.base import PAST, Coming, Renewed
from app.pool.cargo import Cargo
from app.pool.client import Client
from app.pool.directory import Directory
from app.pool.probe import Probe
from app.settings import Settings
from app.tasks.base import Sample
from app.wire.messages import Cancel, Died, Done, Entry, Failed, Leave, Route, Run, Table, Worker
from app.wire.sockets import Endpoint, address, wait


def table(state: str, *workers: Worker) -> Table:
    card = Card(name="m", folder=Path("/x"), task="text-embedding", source={"kind": "file"}, about={"licence": "x"})
    preload = state != "unloaded"  # as the supervisor tells it
    return Table({"m": Entry(card.model_dump_json(), state, "", True, preload, {}, {"dimensions": 1}, workers)}, 1)


async def test_before_the_first_table_readiness_says_so_and_after_an_unload_that_nothing_is_loaded(tmp_path: Path):
    supervisor = Endpoint.listen(address(str(tmp_path), "supervisor"))
    client = Client(Settings(), str(tmp_path), 1)
    client.start()
    try:
        assert "not yet said" in (await client.proven(1))["hearth"]
        client._on_table(table("unloaded"))
        assert "no model is loaded" in (await client.proven(1))["hearth"]
    finally:
        client.close()
        supervisor.close()


async def test_an_error_proves_nothing_of_its_worker(tmp_path: Path):
    client = Client(Settings(), str(tmp_path), 1)
    client._on_answer("m.1", Failed(1, "model_failed", "the device is gone"), {})
    assert not client._probe._answered
    client._on_answer("m.1", Done(2, 0.0, 0.0, 1, 0.0), {})
    assert client._probe._answered


async def test_a_sample_that_nobody_answered_in_time_is_gone_with_its_error(tmp_path: Path):
    """Waiting for the garbage collector, those of an overload would be many."""
    client = Client(Settings(), str(tmp_path), 1)
    client._directory.update(table("starting"))
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(Deadline):
            await client.submit("m", Sample(arrays={}, cost=1.0), outputs=("y",), deadline=time.monotonic(), codec=None)
        assert not [kept for kept in gc.get_objects() if type(kept) is Cargo]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("device", "longest_s", "allowed_s"), [("cpu", 0.0, 1.2), ("cpu", 0.48, 1.2), ("cpu", 2.0, 5.0), ("cuda:1", 2.0, 7.0)]
)
async def test_a_worker_has_time_for_the_batch_that_runs_and_the_one_with_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, longest_s: float, allowed_s: float
):
    """But no more: readiness is to tell of a fault within two seconds, which a batch as long as it should be leaves room for."""
    client, allowed = Client(Settings(), str(tmp_path), 1), list[float]()

    async def silent(_: Card, __: str, until: float) -> None:
        allowed.append(until - 50.0)

    monkeypatch.setattr(client._probe, "_forward", silent)
    monkeypatch.setattr("app.pool.probe.time", SimpleNamespace(monotonic=lambda: 50.0))
    client._directory.update(table("ready", Worker("m.1", 1, device, "ready", 0)))
    client._on_answer("m.1", Done(2, 0.0, longest_s, 1, 0.0), {})
    client._probe._answered.clear()
    assert await client._probe.prove(client._directory["m"], 1.2) == ""
    assert allowed == [pytest.approx(allowed_s)]


async def test_an_answer_that_came_before_the_news_of_the_death_counts(tmp_path: Path):
    supervisor = Endpoint.listen(address(str(tmp_path), "supervisor"))
    worker = Endpoint.listen(address(str(tmp_path), "m.1"))
    client = Client(Settings(), str(tmp_path), 1)
    client.start()
    try:
        client._on_table(table("ready", Worker("m.1", 1, "cpu", "ready", 0)))
        sample = Sample(arrays={"x": np.ones(1)}, cost=1.0)
        answer = asyncio.create_task(client.submit("m", sample, outputs=("y",), deadline=time.monotonic() + 30, codec=None))
        await asyncio.sleep(0.05)
        wait([worker], 5)
        ((peer, run, _),) = worker.receive()
        assert isinstance(run, Run)
        worker.send(Done(run.id, 0.0, 0.0, 1, 0.0), {"y": np.full(1, 7.0)}, to=peer)
        worker.close()
        time.sleep(0.2)  # noqa: ASYNC251  it has come, and the loop had no turn to read it
        client._on_table(table("unloaded"))
        client._on_died(Died("m.1", ()))
        assert (await answer).output["y"] == 7.0
        assert not client._load and not client._links and not len(client._flights)
    finally:
        client.close()
        worker.close()
        supervisor.close()


async def test_what_a_request_was_blamed_for_is_held_against_it_in_the_next_process_too(tmp_path: Path):
    supervisor, worker = (Endpoint.listen(address(str(tmp_path), name)) for name in ("supervisor", "m.1"))
    past, client = Blamed(), Client(Settings(), str(tmp_path), 1)
    client.start()
    token = PAST.set(past)
    try:
        client._on_table(table("ready", Worker("m.1", 1, "cpu", "ready", 0)))
        for alone, again in ((False, 2), (True, 2)):
            sample = Sample(arrays={"x": np.ones(1)}, cost=1.0)
            answer = asyncio.create_task(client.submit("m", sample, outputs=("y",), deadline=time.monotonic() + 30, codec=None))
            await asyncio.sleep(0.05)
            wait([worker], 5)
            ((_, run, _),) = worker.receive()
            assert isinstance(run, Run) and run.alone == alone
            client._on_died(Died("m.1", (run.id,), stalled=True))
            assert past.blamed == again
            if not alone:  # this process dies
                answer.cancel()
                await asyncio.wait([answer])
                past.inherited = past.blamed
                client._on_table(table("ready", Worker("m.1", 1, "cpu", "ready", 0)))
        with pytest.raises(Poisoned):
            await asyncio.wait_for(answer, 10)
    finally:
        PAST.reset(token)
        client.close()
        for endpoint in (supervisor, worker):
            endpoint.close()


async def test_what_a_worker_said_counts_though_it_is_to_be_reached_anew(tmp_path: Path):
    """Many answers in one envelope, of which the loop handles some; then a table that still has that worker."""
    endpoints = _, worker = [Endpoint.listen(address(str(tmp_path), name)) for name in ("supervisor", "m.1")]
    client = Client(Settings(), str(tmp_path), 1)
    client.start()
    try:
        told = table("ready", Worker("m.1", 1, "cpu", "ready", 0))
        client._on_table(told)
        sample = Sample(arrays={"x": np.ones(1)}, cost=1.0)
        asked = [client.submit("m", sample, outputs=("y",), deadline=time.monotonic() + 30, codec=None) for _ in range(30)]
        answers = [asyncio.create_task(one) for one in asked]
        await asyncio.sleep(0.05)
        wait([worker], 5)
        for peer, run, _ in worker.receive():
            assert isinstance(run, Run)
            worker.send(Done(run.id, 0.0, 0.0, 30, 0.0), {"y": np.full(1, 7.0)}, to=peer)
        worker.close()
        client._links["m.1"]._on_ready()
        client._links["m.1"].pump()  # and its end
        assert 0 < len(client._flights) < 30 and client._links["m.1"].gone
        client._on_table(told)
        assert [float(one.output["y"][0]) for one in await asyncio.wait_for(asyncio.gather(*answers), 10)] == [7.0] * 30
    finally:
        client.close()
        for endpoint in endpoints:
            endpoint.close()


async def test_what_was_sent_twice_is_noted_wherever_it_is_and_called_back_when_it_is_convicted(tmp_path: Path):
    endpoints = _, _, worker = [Endpoint.listen(address(str(tmp_path), name)) for name in ("supervisor", "m.1", "m.2")]
    past, client = Blamed(), Client(Settings(), str(tmp_path), 1)
    past.before = 7  # the process before had sent it to m.1, too
    client.start()
    token = PAST.set(past)
    try:
        client._on_table(table("ready", Worker("m.2", 1, "cpu", "ready", 0)))
        sample = Sample(arrays={"x": np.ones(1)}, cost=1.0)
        answer = asyncio.create_task(client.submit("m", sample, outputs=("y",), deadline=time.monotonic() + 30, codec=None))
        await asyncio.sleep(0.05)
        client._on_died(Died("m.1", (7,), stalled=True))
        assert past.blamed == 2 and not answer.done()
        client._on_died(Died("m.1", (7,), stalled=True))
        with pytest.raises(Poisoned):
            await asyncio.wait_for(answer, 10)
        await asyncio.sleep(0.05)  # what is to be sent goes out when the loop comes round
        wait([worker], 5)
        run, cancel = (message for _, message, _ in worker.receive())
        assert isinstance(run, Run) and cancel == Cancel(run.id) and not len(client._flights)
    finally:
        PAST.reset(token)
        client.close()
        for endpoint in endpoints:
            endpoint.close()


@pytest.mark.parametrize(
    ("new", "runs"),
    [
        ({}, True),
        ({"meta": {"dimensions": 1, "compute": "eager"}}, True),
        ({}, False),
        ({"meta": {"dimensions": 2}}, False),
        ({"files": {"vocabulary": "/other"}}, False),
        ({"card": table("ready").models["m"].card.replace('"m"', '"m","about":{"licence":"y"}', 1)}, False),
    ],
    ids=["its worker died", "computed otherwise", "what its files hold", "other meta", "other files", "another card"],
)
async def test_what_was_decoded_for_a_model_never_runs_on_what_was_loaded_since_by_another_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: dict[str, Any], runs: bool
):
    """It had an answer: of what the new network makes of tokens or pixels that were meant for the old one."""
    monkeypatch.setattr("app.pool.directory.make_codec", lambda *_: object())
    endpoints = _, worker = [Endpoint.listen(address(str(tmp_path), name)) for name in ("supervisor", "m.2")]
    client, before = Client(Settings(), str(tmp_path), 1), table("ready", Worker("m.1", 1, "cpu", "ready", 0))
    client.start()
    try:
        client._directory.update(before)
        _, codec = client.find("m", "text-embedding")
        entry = msgspec.structs.replace(before.models["m"], **new)
        meta = entry.meta if runs else {}
        coming = msgspec.structs.replace(entry, state="loading", meta=meta, workers=(Worker("m.2", 1, "cpu", "loading", 0),))
        client._on_table(Table({"m": coming}, 1))
        sample = Sample(arrays={"x": np.ones(1)}, cost=1.0)
        answer = asyncio.create_task(client.submit("m", sample, outputs=("y",), deadline=time.monotonic() + 30, codec=codec))
        await asyncio.sleep(0.05)
        assert not answer.done(), "it waits for the new worker, as it would for any"
        client._on_table(Table({"m": msgspec.structs.replace(entry, workers=(Worker("m.2", 1, "cpu", "ready", 0),))}, 1))
        await asyncio.sleep(0.05)
        if runs:
            wait([worker], 5)
            ((_, sent, _),) = worker.receive()
            assert isinstance(sent, Run) and client.find("m", "text-embedding")[1] is codec
            answer.cancel()
            await asyncio.wait([answer])
        else:
            with pytest.raises(Renewed):
                await asyncio.wait_for(answer, 10)
            assert client.find("m", "text-embedding")[1] is not codec
        assert not len(client._flights)
    finally:
        client.close()
        for endpoint in endpoints:
            endpoint.close()


@pytest.mark.parametrize(
    "worse", [{"state": "loading", "why": "no memory; it is tried again"}, {"meta": {}}], ids=["in doubt", "never"]
)
def test_a_version_that_may_never_answer_again_is_not_drawn_while_another_one_can(worse: dict[str, Any]):
    directory, one = Directory(Settings()), table("ready").models["m"]
    other = msgspec.structs.replace(one, card=one.card.replace('"name":"m"', '"name":"m@2"'), state="loading")
    shares = {"m": Route({"m": 0.5, "m@2": 0.5})}
    directory.update(Table({"m": one, "m@2": other}, 1, shares))
    assert {directory._turn("m").card.name for _ in range(100)} == {"m", "m@2"}, "its worker is being replaced"
    directory.update(Table({"m": one, "m@2": msgspec.structs.replace(other, **worse)}, 1, shares))
    assert {directory._turn("m").card.name for _ in range(100)} == {"m"}
    with pytest.raises(Loading, match=str(worse.get("why", "come back"))):
        directory.find("m@2", "text-embedding", exactly=True)


def test_who_was_let_in_waits_for_a_version_that_is_to_come_and_not_for_one_that_is_not():
    directory, past, one = Directory(Settings()), Blamed(), table("loading").models["m"]
    one = msgspec.structs.replace(one, meta={})
    other = msgspec.structs.replace(one, card=one.card.replace('"name":"m"', '"name":"m@2"'), state="unloaded")
    directory.update(Table({"m": one, "m@2": other}, 1, {"m": Route({"m": 0.5, "m@2": 0.5})}))
    token = PAST.set(past)
    try:
        assert {directory._turn("m").card.name for _ in range(100)} == {"m", "m@2"}
        past.let_in = True
        assert {directory._turn("m").card.name for _ in range(100)} == {"m"}
    finally:
        PAST.reset(token)


class Blamed:
    """What outlives the process."""

    blamed = inherited = before = admissions = lives = 0
    several = let_in = False

    def admitted(self, inputs: int) -> None:
        self.admissions += 1

    def sent(self, id: int) -> None: ...

    def again(self) -> None: ...

    def blame(self, times: int) -> None:
        self.blamed = times


async def test_a_version_is_left_when_its_last_request_is_answered_however_long_that_takes(tmp_path: Path):
    supervisor = Endpoint.listen(address(str(tmp_path), "supervisor"))
    client = Client(Settings(), str(tmp_path), 1)
    client.start()

    async def heard(seconds: float) -> list[Leave]:
        await asyncio.sleep(seconds)  # what is to be sent goes out when the loop comes round
        wait([supervisor], 0)
        return [message for _, message, _ in supervisor.receive() if isinstance(message, Leave)]

    try:
        client._on_table(table("ready", Worker("m.1", 1, "cpu", "ready", 0)))
        with client.admit("m", 1, time.monotonic() + 3600):
            client._on_control("", Leave(7, "m"), {})
            assert await heard(0.5) == []
        assert await heard(0.5) == [Leave(7, "m")]
        client._on_control("", Leave(8, "gone"), {})
        assert await heard(0.05) == [Leave(8, "gone")]
    finally:
        client.close()
        supervisor.close()


async def test_a_request_counts_and_is_found_room_for_by_what_its_model_is_loaded_as_since(monkeypatch: pytest.MonkeyPatch):
    """Its workers were freed beneath it by an unload after that."""
    monkeypatch.setattr("app.pool.directory.make_codec", lambda *_: object())
    directory, entry = Directory(Settings()), table("ready").models["m"]
    directory.update(Table({"m": entry}, 1))
    with directory.admit("m", 3, time.monotonic() + 3600):
        other = entry.card.replace('"licence":"x"', '"licence":"y"')
        assert other != entry.card
        directory.update(Table({"m": msgspec.structs.replace(entry, card=other, state="unloaded")}, 1))
        assert directory.holds("m") and directory["m"].queue.held == 3
        with pytest.raises(Loading):
            directory.find("m", "text-embedding", exactly=True)
        known, codec = directory.find("m", "text-embedding", exactly=True, again=True)
        assert codec is known.codec and known.card.about.licence == "y"
    assert not directory.holds("m")


@pytest.mark.parametrize("killed", [False, True], ids=["here", "before its process was killed"])
async def test_who_was_let_in_waits_while_his_model_is_loaded_once_more(monkeypatch: pytest.MonkeyPatch, killed: bool):
    """What was read for the old one begins again, and found a model that was not ready: 503, after it had been let in."""
    monkeypatch.setattr("app.pool.directory.make_codec", lambda *_: object())
    directory, entry, past = Directory(Settings()), table("ready").models["m"], Blamed()
    past.let_in = killed

    def told(**new: Any) -> type[BaseException] | None:
        directory.update(Table({"m": msgspec.structs.replace(entry, **new)}, 1))
        try:
            directory.find("m", "text-embedding", again=not killed)
        except HearthError as error:
            return type(error)
        return None

    starts, ready = (Worker("m.2", 1, "cpu", state, 0) for state in ("loading", "ready"))
    token = PAST.set(past)
    try:
        assert told() is None
        assert told(state="loading", meta={}) is Coming, "its files are looked for"
        assert told(state="loading", meta={}, workers=(starts,)) is Coming
        assert told(state="loading", meta={}, why="no memory; it is tried again", workers=(starts,)) is Coming
        assert told(state="unloaded", meta={}, workers=(starts,)) is Coming, "who is let in is waited for"
        assert told(state="unloaded", meta={}, leaving=True) is Coming, "and so are its files"
        assert told(state="unloaded", workers=(ready,)) is None
        assert told(state="unloaded", meta={}) is Loading
        assert told(state="failed", meta={}, why="no such file") is WorkerLost
        past.let_in = False
        if killed:
            assert told(state="loading", meta={}) is Loading, "it is not let in yet"
    finally:
        PAST.reset(token)


async def test_all_workers_are_proven_that_a_model_was_loaded_with_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The card's sample was read for the old ones: readiness said that they do not answer."""
    monkeypatch.setattr("app.pool.directory.make_codec", lambda *_: object())
    endpoints = _, *new = [Endpoint.listen(address(str(tmp_path), name)) for name in ("supervisor", "m.2", "m.3")]
    client, sample = Client(Settings(), str(tmp_path), 1), Sample(arrays={"x": np.ones(1)}, cost=1.0)
    before = table("ready", Worker("m.1", 1, "cpu", "ready", 0)).models["m"]
    workers = tuple(Worker(name, 1, "cpu", "ready", 0) for name in ("m.2", "m.3"))
    read: list[object] = []

    def reads(_: Card, codec: object) -> list[Sample]:
        read.append(codec)
        if len(read) == 1:
            client._on_table(Table({"m": msgspec.structs.replace(before, meta={"dimensions": 2}, workers=workers)}, 1))
        return [sample]

    monkeypatch.setattr("app.pool.client.card_samples", reads)
    client.start()
    try:
        client._on_table(Table({"m": before}, 1))
        proof = asyncio.create_task(client._probe.prove(client._directory["m"], 30.0))
        for worker in new:
            assert not proof.done()
            await asyncio.sleep(0.05)
            wait([worker], 5)
            ((peer, run, _),) = worker.receive()
            assert isinstance(run, Run)
            worker.send(Done(run.id, 0.0, 0.0, 1, 0.0), {"y": np.ones(1)}, to=peer)
            worker.close()
            await asyncio.sleep(0.05)
        assert await asyncio.wait_for(proof, 10) == "" and len(set(read)) == 2
    finally:
        client.close()
        for endpoint in endpoints:
            endpoint.close()


@pytest.mark.parametrize(
    ("renewed", "then", "asked", "verdict"),
    [
        (False, table("ready", *(Worker(name, 1, "cpu", "ready", 0) for name in ("m.1", "m.5"))), ["m.1", "m.5"], ""),
        (True, table("ready", *(Worker(name, 1, "cpu", "ready", 0) for name in ("m.1", "m.5"))), ["m.1", "m.5"], ""),
        (True, table("ready", *(Worker(name, 1, "cpu", "ready", 0) for name in ("m.1", "m.2"))), ["m.1", "m.2"] * 2, "not here"),
        (True, table("loading"), [], "loading"),
        (True, Table({}, 1), [], "no model is called"),
    ],
    ids=["replaced", "replaced and asked", "out of reach", "unloaded", "removed"],
)
async def test_workers_that_come_while_others_are_proven_are_proven_too(
    renewed: bool, then: Table, asked: list[str], verdict: str
):
    directory, seen = Directory(Settings()), list[str]()
    directory.update(table("ready", *(Worker(name, 1, "cpu", "ready", 0) for name in ("m.1", "m.2"))))

    async def forward(_: Card, worker: str, __: float) -> None:
        seen.append(worker)
        if worker == "m.2":
            directory.update(then)
            if renewed:
                raise Renewed("not here")

    said = await Probe(directory, forward).prove(directory["m"], 1.2)
    assert seen == ["m.1", "m.2", *asked] and (said == verdict if not verdict else verdict in said)


async def test_an_answer_to_anybody_proves_a_worker_while_the_cards_sample_waits():
    waits = asyncio.Event()
    probe = Probe(Directory(Settings()), cast("Any", None))

    async def attempt() -> None:
        waits.set()
        await asyncio.Event().wait()

    asking = asyncio.create_task(probe._shared("m.1", attempt))
    probe.answered("m.1", 0.0)  # before it has begun: as good as none
    await waits.wait()
    probe.answered("m.2", 0.0)
    probe.answered("m.1", 0.0)
    assert await asyncio.wait_for(asking, 30) == ""


async def test_a_request_whose_model_is_removed_while_it_is_decoded_leaves_nothing_behind(tmp_path: Path):
    """The next table would come to its flight, and to none behind it."""
    client = Client(Settings(), str(tmp_path), 1)
    client._on_table(table("ready", Worker("m.1", 1, "cpu", "loading", 0)))
    client._on_table(Table({}, 1))
    with pytest.raises(UnknownModel):
        await client.submit(
            "m", Sample(arrays={"x": np.ones(1)}, cost=1.0), outputs=("y",), deadline=time.monotonic() + 30, codec=None
        )
    assert not len(client._flights)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_what_a_process_let_in_that_has_ended_finds_room_whatever_waits(share: float):
    """A request of many inputs had been let in beside others, and their heir took it first: for those there was no room."""
    directory, key = Directory(Settings()), Key(id="k", name="k", role="infer", sha256="", created=date(2026, 1, 1), share=share)
    directory.update(Table({"m": table("ready").models["m"]}, 1, {}))
    deadline = time.monotonic() + 3600
    room = directory["m"].card.limits.max_queue
    past = Blamed()
    token = PAST.set(past)
    try:
        with directory.admit("m", room // 4, deadline, key), directory.admit("m", room - room // 4, deadline):
            with pytest.raises(RateLimited if share < 1 else TooBusy), directory.admit("m", 1, deadline, key):
                pass
            past.let_in = True
            with directory.admit("m", 1, deadline, key), directory.admit("m", 1, deadline):
                assert directory["m"].queue.held == room + 2 and past.admissions == 4
                assert [place.held for place in directory["m"].queue.places.values()] == ([room // 4 + 1] if share < 1 else [])
    finally:
        PAST.reset(token)
    assert directory["m"].queue.held == 0 and not directory["m"].queue.places


def test_a_model_that_leaves_is_found_by_those_alone_whom_it_had_let_in():
    """An heir takes them over when nobody new finds it any more."""
    directory, past = Directory(Settings()), Blamed()
    directory.update(Table({"m": msgspec.structs.replace(table("ready").models["m"], state="unloaded")}, 1, {}))
    directory["m"].codec = cast("Any", "it was made when it was let in")
    token = PAST.set(past)
    try:
        with pytest.raises(Loading):
            directory.find("m", "text-embedding")
        past.let_in = True
        assert directory.find("m", "text-embedding")[0] is directory["m"]
    finally:
        PAST.reset(token)
