"""Files that come late, for a model that was unloaded and loaded again meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from app.card import Card
from app.errors import Unavailable
from app.pool.loading import Loading
from app.pool.roster import Roster, Served
from app.settings import Settings
from app.tasks.base import Files


class Stage:
    """House, nursery and fetch in one: files come, or do not, when the test says so."""

    def __init__(self, folder: Path) -> None:
        card = Card(name="m", folder=folder, task="text-embedding", source={"kind": "file"}, about={"licence": "x"})
        self.roster = Roster({"m": Served(card, default=False, preload=False)}, ["cpu"])
        hand: Any = self
        self.loading = Loading(Settings(home=folder), self.roster, folder, self.fetch, hand, hand)
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

    def publish(self) -> None: ...

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
