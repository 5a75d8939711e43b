"""Files that come late, for a model that was unloaded and loaded again meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from app.card import Card
from app.errors import Unavailable
from app.pool import leaving
from app.pool.loading import Loading
from app.pool.roster import Roster, Served
from app.settings import Settings
from app.tasks.base import Files
from app.wire.messages import Change, Changed, Leave, Message, Stop


class Stage:
    """House, nursery and fetch in one: files come, or do not, when the test says so."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        card = Card(name="m", folder=folder, task="text-embedding", source={"kind": "file"}, about={"licence": "x"})
        self.roster = Roster({"m": Served(card, default=False, preload=False)}, ["cpu"])
        hand: Any = self
        self.loading = Loading(Settings(home=folder, **settings), self.roster, folder, self.fetch, hand, hand)
        self.frontends: set[str] = set()
        self.expected = 0
        self.told: list[tuple[str, Message]] = []
        self.killed: list[str] = []
        self.published: list[str] = []
        self.fetches: list[asyncio.Future[Files]] = []
        self.forked: list[dict[str, str]] = []
        self.work: list[asyncio.Task[None]] = []

    async def fetch(self, _: Card) -> Files:
        self.fetches.append(asyncio.get_running_loop().create_future())
        return await self.fetches[-1]

    def spawn(self, work: Any) -> None:
        self.work.append(asyncio.ensure_future(work))

    def fork(self, spec: dict[str, Any]) -> None:
        self.forked.append(spec["files"])

    def publish(self) -> None:
        self.published.append(self.roster.models["m"].state if "m" in self.roster.models else "")

    def tell(self, message: Message, to: str) -> None:
        self.told.append((to, message))

    def kill(self, worker: str) -> None:
        self.killed.append(worker)

    def settled(self, model: str) -> None: ...

    async def load_again_while_files_come(self) -> None:
        for count in (1, 2):
            self.loading.load("m")
            async with asyncio.timeout(5):
                while len(self.fetches) < count:  # noqa: ASYNC110  a task of ours
                    await asyncio.sleep(0)
            if count == 1:
                self.loading.unload("m")


@pytest.fixture
async def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path)
    await stage.load_again_while_files_come()
    return stage


async def test_files_that_were_looked_for_by_the_card_before_are_not_taken(stage: Stage, tmp_path: Path):
    stage.fetches[0].set_result({"weights": tmp_path / "old"})
    await stage.work[0]
    assert stage.forked == []
    stage.fetches[1].set_result({"weights": tmp_path / "new"})
    await stage.work[1]
    assert stage.forked == [{"weights": str(tmp_path / "new")}]


@pytest.mark.parametrize("error", [Unavailable("no such file"), OSError(5, "disk")], ids=["told", "of the machine"])
async def test_that_they_could_not_be_found_then_is_no_failure_now(stage: Stage, tmp_path: Path, error: Exception):
    stage.fetches[0].set_exception(error)
    await stage.work[0]
    assert stage.roster.models["m"].state == "loading"
    stage.fetches[1].set_result({"weights": tmp_path / "new"})
    await stage.work[1]
    assert len(stage.forked) == 1


@pytest.mark.parametrize("error", [Unavailable("no such file"), OSError(5, "disk")], ids=["told", "of the machine"])
async def test_that_they_cannot_be_found_is_one(stage: Stage, error: Exception):
    stage.fetches[1].set_exception(error)
    await stage.work[1]
    assert stage.roster.models["m"].state == "failed" and not stage.forked


@pytest.fixture
async def served(tmp_path: Path) -> Stage:
    """One whose worker is ready, and which two frontends know."""
    stage = Stage(tmp_path)
    (birth,) = stage.roster.want("m", {})
    stage.roster.ready(birth.name, {"labels": 2})
    stage.frontends, stage.expected = {"http 1", "http 2"}, 2
    stage.loading.unload("m")
    return stage


async def test_workers_end_when_no_frontend_holds_a_request_any_more(served: Stage):
    """A recording that is still being decoded had 503, because its model's workers were told to stop at once."""
    entry = served.roster.table(2, {}).models["m"]
    assert (entry.state, [worker.state for worker in entry.workers]) == ("unloaded", ["ready"])
    (first, question), (second, _) = served.told
    assert isinstance(question, Leave)
    served.loading.leaving.left(first, question)
    assert len(served.told) == 2
    served.loading.leaving.left(second, question)
    assert served.told[2:] == [("m.1", Stop())]
    assert served.roster.table(2, {}).models["m"].workers == ()


async def test_a_worker_that_dies_while_its_model_leaves_is_replaced_and_its_model_stays_unloaded(served: Stage):
    birth = served.roster.died("m.1", "SIGKILL", 0.0)
    assert birth is not None
    assert served.roster.ready(birth.name, {"labels": 2})
    entry = served.roster.table(2, {}).models["m"]
    assert (entry.state, entry.why, [worker.name for worker in entry.workers]) == ("unloaded", "", ["m.2"])
    for number in range(2, 9):
        served.roster.forked(f"m.{number}", 7)
        assert served.roster.died(f"m.{number}", "SIGKILL", number), "it is tried for as long as somebody waits"
        assert served.roster.models["m"].state == "unloaded"


async def test_a_model_that_is_loaded_again_while_it_leaves_has_new_workers_and_the_old_ones_end(served: Stage):
    question = served.told[0][1]
    assert isinstance(question, Leave)
    served.published.clear()
    served.loading.load("m")
    assert served.told[2:] == [("m.1", Stop())]
    assert set(served.published) == {"loading"}, "who waits for a worker waits for the new one"
    served.loading.leaving.left("http 1", question)
    served.loading.leaving.left("http 2", question)
    assert len(served.told) == 3
    assert served.roster.models["m"].wanted


async def test_who_never_answers_keeps_no_worker_for_longer_than_a_drain(tmp_path: Path):
    stage = Stage(tmp_path, drain_s=0.01)
    stage.roster.want("m", {})
    stage.frontends = {"http 1"}
    stage.loading.unload("m")
    assert stage.told[1:] == []
    async with asyncio.timeout(5):
        while not stage.killed:  # noqa: ASYNC110  a task of ours
            await asyncio.sleep(0)
    assert stage.told[1:] == [("m.1", Stop())]
    assert stage.killed == ["m.1"]


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("found", [True, False])
async def test_who_was_let_in_waits_for_the_workers_that_were_to_come_when_their_model_was_unloaded(
    served: Stage, held: bool, found: bool
):
    """He was let in, it was unloaded, loaded and unloaded before its files had been looked at: he had 503."""
    served.loading.load("m")
    served.told.clear()
    async with asyncio.timeout(5):
        while not served.fetches:  # noqa: ASYNC110  a task of ours
            await asyncio.sleep(0)
    served.loading.change("http 1", Change(5, "m", "unload"))
    if not held:
        for frontend, question in list(served.told):
            assert isinstance(question, Leave)
            served.loading.leaving.left(frontend, question)
    entry = served.roster.table(2, {}).models["m"]
    assert (entry.state, entry.workers, entry.leaving) == ("unloaded", (), held)
    assert (Changed(5) in [message for _, message in served.told]) == (not held)
    served.fetches[0].set_result({}) if found else served.fetches[0].set_exception(Unavailable("no such file"))
    await served.work[0]
    entry = served.roster.table(2, {}).models["m"]
    assert (entry.state, len(entry.workers), entry.leaving) == ("unloaded", held and found, held and found)
    if held and found:
        assert served.roster.ready("m.2", {"labels": 2}) and not served.roster.models["m"].wanted
        for frontend, question in list(served.told):
            assert isinstance(question, Leave)
            served.loading.leaving.left(frontend, question)
        assert ("m.2", Stop()) in served.told
    assert not served.roster.table(2, {}).models["m"].workers


async def test_a_question_of_before_ends_nothing_that_was_loaded_after_it(tmp_path: Path):
    """It was asked while the files of the first load were coming, and there was no worker."""
    stage = Stage(tmp_path)
    stage.frontends = {"http 1"}
    await stage.load_again_while_files_come()
    question = stage.told[0][1]
    assert isinstance(question, Leave)
    stage.fetches[1].set_result({})
    await asyncio.gather(*stage.work[1:])
    stage.roster.ready("m.1", {"labels": 2})
    stage.loading.leaving.left("http 1", question)
    stage.loading.leaving.gone("http 1")
    assert stage.roster.models["m"].state == "ready" and stage.told == [("http 1", question)]
    stage.work[0].cancel()


async def test_a_model_whose_card_goes_before_the_answer_comes_is_let_go(tmp_path: Path):
    stage = Stage(tmp_path)
    stage.frontends = {"http 1"}
    stage.loading.unload("m")
    question = stage.told[0][1]
    assert isinstance(question, Leave)
    del stage.roster.models["m"]
    stage.loading.leaving.left("http 1", question)
    assert len(stage.told) == 1


async def test_what_a_killed_frontend_held_is_waited_for_by_its_heir(served: Stage, monkeypatch: pytest.MonkeyPatch):
    """Its heir takes over what was let in a moment later, and there was no worker for it."""
    monkeypatch.setattr(leaving, "_TAKEN_S", 0.05)
    question = served.told[0][1]
    assert isinstance(question, Leave)
    served.frontends = {"http 2"}
    served.loading.leaving.gone("http 1")
    served.loading.leaving.left("http 2", question)
    served.frontends = {"http 2", "http 3"}
    served.loading.leaving.came()
    assert len(served.told) == 2, "nobody knows yet what the heir has"
    async with asyncio.timeout(5):
        while len(served.told) < 4:  # noqa: ASYNC110  a task of ours
            await asyncio.sleep(0)
    (second, anew), (third, same) = served.told[2:]
    assert (second, third) == ("http 2", "http 3") and isinstance(anew, Leave) and anew == same != question
    served.loading.leaving.left("http 3", anew)
    served.loading.leaving.left("http 2", question)
    assert len(served.told) == 4
    served.loading.leaving.left("http 2", anew)
    assert served.told[4:] == [("m.1", Stop())]


async def test_who_asks_just_after_a_kill_asks_the_heir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The last request of a version without traffic was in a frontend that was killed: nobody held it any more, and nobody yet."""
    monkeypatch.setattr(leaving, "_TAKEN_S", 0.05)
    stage = Stage(tmp_path)
    stage.expected = 1
    stage.roster.want("m", {})
    stage.loading.leaving.gone("http 1")
    stage.loading.unload("m")
    await asyncio.sleep(0.2)  # it takes its time to come
    assert stage.told == []
    stage.frontends = {"http 2"}
    async with asyncio.timeout(5):
        while not stage.told:  # noqa: ASYNC110  a task of ours
            await asyncio.sleep(0)
    ((heir, question),) = stage.told
    assert heir == "http 2" and isinstance(question, Leave)
    stage.loading.leaving.left("http 2", question)
    assert stage.told[1:] == [("m.1", Stop())]


@pytest.mark.parametrize("removed", [False, True])
async def test_who_unloads_a_model_of_which_no_process_is_there_hears_of_it(tmp_path: Path, removed: bool):
    """Its worker dies again and again, and the next one is not to be forked before some seconds: nothing was left to end."""
    stage = Stage(tmp_path)
    stage.frontends, stage.expected = {"http 1"}, 1
    (birth,) = stage.roster.want("m", {})
    assert stage.roster.ready(birth.name, {"labels": 2})
    while not birth.after_s:
        stage.roster.forked(birth.name, 7)
        again = stage.roster.died(birth.name, "SIGKILL", 0.0)
        assert again
        birth = again
    stage.loading.change("http 1", Change(5, "m", "unload"))
    question = stage.told[0][1]
    assert isinstance(question, Leave) and len(stage.told) == 1
    if removed:
        del stage.roster.models["m"]
        stage.loading.settle_all()
    stage.loading.leaving.left("http 1", question)
    assert stage.told[1:] == [("http 1", Changed(5))] if removed else stage.told[2:] == [("http 1", Changed(5))]
    stage.loading.settle_all()
