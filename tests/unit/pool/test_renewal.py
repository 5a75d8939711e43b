"""What follows from cards that were added, changed or removed while the server runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from app.card import Card
from app.catalogue import Catalogue
from app.pool import renewal
from app.pool.loading import Loading
from app.pool.renewal import Renewal
from app.pool.roster import Roster, Served
from app.pool.switching import Switching
from app.pool.traffic import Traffic
from app.settings import Settings


def card(name: str, task: str = "text-embedding", **more: Any) -> Card:
    values = {"name": name, "folder": Path("/x") / name, "task": task, "source": {"kind": "file"}, "about": {"licence": "x"}}
    return Card(**(values | more))


class House:
    def __init__(self) -> None:
        self.frontends: set[str] = set()
        self.expected = 0
        self.published = 0
        self.hears: Renewal | None = None

    def publish(self) -> None:
        self.published += 1

    def tell(self, message: object, to: str) -> None: ...

    def spawn(self, work: Any) -> None:
        work.close()  # no worker is started here

    def settled(self, model: str) -> None:
        if self.hears:
            self.hears.settled(model)


class Stage:
    """A supervisor's hands over the models `there`, of which those in `loaded` are."""

    def __init__(self, home: Path, *there: Card, loaded: tuple[str, ...] = ()) -> None:
        settings, house = Settings(home=home), House()
        nursery: Any = None
        self.roster = Roster({one.name: Served(one, default=one.default, preload=False) for one in there}, ["cpu"])
        self.loading = Loading(settings, self.roster, home, None, nursery, house)  # type: ignore[arg-type]
        traffic = Traffic(home / "traffic.json")
        traffic.begin(self.roster.models, ())
        self.switching = Switching(self.roster, traffic, self.loading, house, kept=5, grace_s=1)
        self.renewal = house.hears = Renewal(self.roster, self.loading, self.switching, house)
        self.house = house
        for name in loaded:
            self.roster.models[name].wanted = True

    def take(self, *cards: Card, broken: tuple[str, ...] = (), shares: dict[str, float] | None = None) -> None:
        found = {one.name: one for one in cards}
        self.renewal.take(Catalogue(MappingProxyType(found), {f"/home/models/{name}": "line 3" for name in broken}), shares or {})

    def wanted(self) -> set[str]:
        return {name for name, served in self.roster.models.items() if served.wanted}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "_FAREWELL_S", 0)


async def until_gone(stage: Stage, name: str) -> None:
    async with asyncio.timeout(5):
        while name in stage.roster.models:  # noqa: ASYNC110  a timer of ours
            await asyncio.sleep(0)


async def test_a_new_card_is_there_unloaded_or_loaded_if_it_says_so(tmp_path: Path):
    stage = Stage(tmp_path, card("a", default=True))
    stage.take(card("a", default=True), card("b"), card("c", serving={"resident": True}), card("d", default=True))
    assert sorted(stage.roster.models) == ["a", "b", "c", "d"] and stage.wanted() == {"c"}
    assert not stage.roster.models["d"].default, "the place is taken"
    assert not any(served.preload for served in stage.roster.models.values()), "readiness does not wait for what was added"
    assert stage.house.published


async def test_the_first_model_for_a_task_becomes_its_default(tmp_path: Path):
    stage = Stage(tmp_path, card("a", default=True))
    stage.take(card("a", default=True), card("c", "text-classification", default=True))
    assert stage.roster.models["c"].default and stage.wanted() == {"c"}


async def test_a_changed_card_holds_at_once_where_nothing_runs_and_else_when_it_is_next_loaded(tmp_path: Path):
    stage = Stage(tmp_path, card("a"), card("b"), loaded=("b",))
    new = {name: card(name, limits={"max_queue": 7}) for name in ("a", "b")}
    stage.take(*new.values())
    assert stage.roster.models["a"].card == new["a"]
    assert stage.roster.models["b"].card == card("b"), "what is under way was decoded by it"
    stage.loading.unload("b")
    stage.loading.load("b")
    assert stage.roster.models["b"].card == new["b"]


async def test_a_change_that_was_taken_back_is_none(tmp_path: Path):
    stage = Stage(tmp_path, card("b"), loaded=("b",))
    stage.take(card("b", limits={"max_queue": 7}))
    stage.take(card("b"))
    stage.loading.load("b")
    assert stage.roster.models["b"].card == card("b")


async def test_a_removed_card_goes_at_once_or_when_it_is_unloaded(tmp_path: Path):
    stage = Stage(tmp_path, card("a"), card("b"), loaded=("b",))
    stage.take()
    await until_gone(stage, "a")
    assert "b" in stage.roster.models
    stage.loading.unload("b")
    stage.loading.settle("b")
    await until_gone(stage, "b")


async def test_a_card_that_came_back_stays(tmp_path: Path):
    stage = Stage(tmp_path, card("b"), loaded=("b",))
    stage.take()
    stage.take(card("b"))
    stage.loading.unload("b")
    stage.loading.settle("b")
    await asyncio.sleep(0.05)
    assert "b" in stage.roster.models


async def test_a_version_that_waits_for_the_removed_one_of_its_number_is_adopted_when_that_is_gone(tmp_path: Path):
    stage = Stage(tmp_path, card("m@1"), card("m@2"), loaded=("m@1", "m@2"))
    before, after = stage.roster.models["m@2"], card("m@2", limits={"max_queue": 7})
    stage.take(card("m@1"))
    stage.switching.adopt(after, 0.5)
    assert stage.roster.models["m@2"] is before and before.wanted, "it answers"
    stage.loading.unload("m@2")
    stage.loading.settle("m@2")
    async with asyncio.timeout(5):
        while stage.roster.models.get("m@2") in (None, before):  # noqa: ASYNC110  a timer of ours
            await asyncio.sleep(0)
    assert stage.roster.models["m@2"].card == after and stage.wanted() == {"m@1", "m@2"}
    assert stage.switching.routes()["m"].shares == {"m@1": 1.0}, "until it is ready"


async def test_a_broken_card_changes_nothing_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    stage = Stage(tmp_path, card("a"))
    stage.take(card("c"), broken=("a", "z"))
    await asyncio.sleep(0.05)
    assert sorted(stage.roster.models) == ["a", "c"] and not stage.roster.models["a"].gone
    assert "/home/models/a changes nothing: line 3" in caplog.text


async def test_a_new_version_gets_the_share_that_it_is_given_and_one_of_which_the_foreman_tells_is_left_to_him(tmp_path: Path):
    stage = Stage(tmp_path, card("m@1"), loaded=("m@1",))
    stage.take(card("m@1"), card("m@2"), card("m@3"), card("m@4"), shares={"m@2": 0.0, "m@3": 0.5})
    assert sorted(stage.roster.models) == ["m@1", "m@2", "m@3"] and stage.wanted() == {"m@1", "m@3"}
    assert stage.switching.routes()["m"].shares == {"m@1": 1.0}, "until it is ready"
