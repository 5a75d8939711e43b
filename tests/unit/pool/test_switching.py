"""When the traffic of a model is shared anew, who hears of it, and what is freed afterwards. Loading is of paper."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.card import Card
from app.pool.roster import Roster, Served, Slot
from app.pool.switching import Switching
from app.pool.traffic import Traffic
from app.wire.messages import Back, Changed, Leave, Message, Switch


def card(name: str, folder: Path) -> Card:
    return Card(name=name, folder=folder / name, task="text-embedding", source={"kind": "file"}, about={"licence": "x"})


class House:
    """Loading and house in one: notes what it is asked for."""

    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self.frontends = {"web"}
        self.idle = True  # frontends hold no request
        self.left: Callable[[str, Leave], None] = lambda _, __: None
        self.told: list[Changed] = []
        self.asked: list[tuple[str, Leave]] = []
        self.expected = 0
        self.unloaded: list[str] = []
        self.settled: list[str] = []
        self.published = 0
        self.work: list[Any] = []

    def load(self, key: str) -> None:
        self.roster.models[key].wanted = True

    def unload(self, key: str) -> None:
        self.unloaded.append(key)
        self.roster.models[key].wanted = False

    def settle(self, key: str) -> None:
        self.settled.append(key)

    def lives(self, key: str) -> bool:
        return self.roster.models[key].wanted

    def publish(self) -> None:
        self.published += 1

    def tell(self, message: Message, to: str) -> None:
        if isinstance(message, Leave):
            self.asked.append((to, message))
            if self.idle:
                self.left(to, message)
        elif isinstance(message, Changed):
            self.told.append(message)

    def spawn(self, work: Any, errand: str = "") -> None:
        self.work.append(asyncio.ensure_future(work))


class Stage:
    """Versions m@1 to m@n, of which those in `ready` are loaded."""

    def __init__(self, folder: Path, versions: int, ready: tuple[str, ...] = (), kept: int = 5, grace_s: float = 0.01) -> None:
        self.folder = folder
        keys = [f"m@{number}" for number in range(1, versions + 1)]
        self.roster = Roster({key: Served(card(key, folder), default=False, preload=False) for key in keys}, ["cpu"])
        self.house = House(self.roster)
        self.traffic = Traffic(folder / "traffic.json")
        self.traffic.begin(keys, ())
        hand: Any = self.house
        self.switching = Switching(self.roster, self.traffic, hand, hand, kept=kept, grace_s=grace_s)
        self.house.left = self.switching.leaving.left
        for key in ready:
            self.ready(key)

    def ready(self, key: str) -> None:
        served = self.roster.models[key]
        served.wanted, served.slots = True, [Slot("cpu", state="ready")]
        self.switching.look()

    def shares(self) -> dict[str, float]:
        return self.switching.routes()["m"].shares


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  nothing sets an event when a folder is gone
            await asyncio.sleep(0.005)


async def test_traffic_moves_when_the_version_is_ready_and_not_before(tmp_path: Path):
    stage = Stage(tmp_path, 2, ready=("m@1",))
    stage.traffic.put("m", stage.traffic.wanted("m", {"1": 1}, "", stage.roster.models), stage.roster.models)
    stage.switching.asked("web", Switch(7, "m", {"2": 1}, ""))
    assert stage.shares() == {"m@1": 1.0} and stage.house.told == []
    stage.ready("m@2")
    assert stage.shares() == {"m@2": 1.0} and stage.house.told == [Changed(7)] and stage.house.published == 1


async def test_a_later_change_takes_the_place_of_one_that_waits(tmp_path: Path):
    stage = Stage(tmp_path, 3, ready=("m@1",))
    stage.switching.asked("web", Switch(1, "m", {"2": 1}, ""))
    stage.switching.asked("web", Switch(2, "m", {"3": 1}, ""))
    assert [(told.id, told.code) for told in stage.house.told] == [(1, "conflict")]
    stage.ready("m@2")
    stage.ready("m@3")
    assert stage.shares() == {"m@3": 1.0} and stage.house.told[-1] == Changed(2)


@pytest.mark.parametrize("message", [Switch(7, "m", {"1": 1}, ""), Back(7, "m")], ids=["put", "rollback"])
async def test_a_change_that_cannot_be_written_down_is_refused_and_does_not_happen_later(tmp_path: Path, message: Switch | Back):
    stage = Stage(tmp_path, 2, ready=("m@1", "m@2"))
    for version in ("1", "2"):
        stage.traffic.put("m", stage.traffic.wanted("m", {version: 1}, "", stage.roster.models), stage.roster.models)
    (tmp_path / ".traffic.json.part").mkdir()
    stage.switching.asked("web", message)
    assert [(told.id, told.code) for told in stage.house.told] == [(7, "unavailable")]
    assert "cannot be written down" in stage.house.told[0].detail
    (tmp_path / ".traffic.json.part").rmdir()
    stage.switching.look()
    assert stage.shares() == {"m@2": 1.0} and stage.house.published == 0


async def test_a_version_that_cannot_be_loaded_changes_nothing(tmp_path: Path):
    stage = Stage(tmp_path, 2, ready=("m@1",))
    before = stage.shares()
    stage.switching.asked("web", Switch(1, "m", {"2": 1}, ""))
    stage.roster.models["m@2"].wanted, stage.roster.models["m@2"].why = False, "its weights are damaged"
    stage.switching.look()
    assert "its weights are damaged" in stage.house.told[0].detail and stage.shares() == before


async def test_an_adopted_version_waits_where_a_caller_hears_that_it_may_never_be_ready(tmp_path: Path):
    stage = Stage(tmp_path, 1, ready=("m@1",))
    stage.switching.adopt(card("m@2", tmp_path), 0.5)
    stage.switching.asked("web", Switch(1, "m", {"2": 1}, ""))
    stage.roster.models["m@2"].why = "no memory; it is tried again"
    stage.switching.look()
    assert "no memory" in stage.house.told[0].detail and stage.shares() == {"m@1": 1.0}
    stage.switching.adopt(card("m@3", tmp_path), 0.5)
    stage.ready("m@3")
    assert stage.shares() == {"m@1": 0.5, "m@3": 0.5}, "it waits for none of which nobody knows when it will be ready"
    stage.ready("m@2")
    assert stage.shares() == {"m@1": 0.25, "m@2": 0.25, "m@3": 0.5}, "as if they had been ready in their order"


ORDERS = [("m@2", "m@3"), ("m@3", "m@2")]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("announced", ORDERS)
@pytest.mark.parametrize("ready", ORDERS)
@pytest.mark.parametrize("in_doubt", [False, True])
async def test_several_new_versions_share_the_traffic_alike_whatever_their_order(
    tmp_path: Path, share: float, announced: tuple[str, str], ready: tuple[str, str], in_doubt: bool
):
    stage, shares = Stage(tmp_path, 1, ready=("m@1",)), {"m@2": 0.5, "m@3": share}
    for key in announced:
        stage.switching.adopt(card(key, tmp_path), shares[key])
    for key in announced if in_doubt else ():
        stage.roster.models[key].why = "no memory; it is tried again"
    for key in ready:
        stage.ready(key)
    wanted = {"m@1": 0.5 * (1 - share), "m@2": 0.5 * (1 - share), "m@3": share}
    assert stage.shares() == pytest.approx({key: part for key, part in wanted.items() if part})
    for key in announced:  # a foreman that begins anew tells of them again
        stage.switching.adopt(card(key, tmp_path), 1.0)
    assert stage.shares() == pytest.approx({key: part for key, part in wanted.items() if part})


@pytest.mark.parametrize(
    ("share", "shares", "then"),
    [
        (0.3, {"2": 1}, {"m@2": 1.0}),
        (1.0, {"1": 9, "2": 1}, {"m@1": 0.9, "m@2": 0.1}),
        (1.0, {"1": 1, "2": 0}, {"m@1": 1.0}),
    ],
)
async def test_what_a_person_wants_of_a_new_version_holds(
    tmp_path: Path, share: float, shares: dict[str, float], then: dict[str, float]
):
    stage = Stage(tmp_path, 1, ready=("m@1",))
    stage.switching.adopt(card("m@2", tmp_path), share)
    stage.switching.asked("web", Switch(1, "m", shares, ""))
    stage.ready("m@2")
    assert stage.house.told == [Changed(1)] and stage.shares() == pytest.approx(then)
    stage.switching.adopt(card("m@2", tmp_path), 1.0)  # a foreman that begins anew
    assert stage.shares() == pytest.approx(then)


async def test_so_it_does_where_nothing_answered(tmp_path: Path):
    stage = Stage(tmp_path, 0)
    stage.switching.adopt(card("m@1", tmp_path), 1.0)
    stage.switching.adopt(card("m@2", tmp_path), 0.3)
    stage.switching.asked("web", Switch(1, "m", {"2": 1}, ""))
    stage.ready("m@2")
    assert stage.house.told == [Changed(1)] and stage.shares() == {"m@2": 1.0}
    stage.ready("m@1")
    assert stage.shares() == {"m@2": 1.0}


async def grace(stage: Stage) -> None:
    """Is over."""
    loop, timer = asyncio.get_running_loop(), stage.switching._retiring["m"]
    await until(lambda: loop.time() > timer.when() + 0.01)


def fails(stage: Stage, key: str) -> None:
    stage.roster.models[key].wanted, stage.roster.models[key].why = False, "its weights are damaged"
    stage.switching.look()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("lost", "left"), [("m@1", "m@2"), ("m@2", "m@1")])
async def test_of_several_first_versions_one_that_cannot_be_loaded_takes_nothing(
    tmp_path: Path, share: float, lost: str, left: str
):
    stage = Stage(tmp_path, 0)
    stage.switching.adopt(card("m@1", tmp_path), share)
    stage.switching.adopt(card("m@2", tmp_path), share)
    fails(stage, lost)
    stage.ready(left)
    assert stage.shares() == {left: 1.0}
    await grace(stage)
    assert stage.house.unloaded == []


async def test_a_new_version_that_cannot_be_loaded_takes_nothing_from_a_persons_own(tmp_path: Path):
    stage = Stage(tmp_path, 1, ready=("m@1",))
    stage.switching.adopt(card("m@2", tmp_path), 0.3)
    stage.switching.adopt(card("m@3", tmp_path), 0.5)
    fails(stage, "m@2")
    assert stage.shares() == {"m@1": 1.0}
    await grace(stage)
    assert stage.house.unloaded == [], "what answers stays loaded"
    stage.ready("m@3")
    assert stage.shares() == {"m@1": 0.5, "m@3": 0.5}


async def test_what_was_mended_and_loaded_by_hand_goes_on_when_another_version_comes(tmp_path: Path):
    stage = Stage(tmp_path, 0)
    stage.switching.adopt(card("m@1", tmp_path), 0.0)
    fails(stage, "m@1")
    stage.ready("m@1")
    stage.switching.adopt(card("m@2", tmp_path), 0.0)
    assert stage.shares() == {"m@1": 1.0} and not stage.roster.models["m@2"].wanted
    stage.switching.adopt(card("m@3", tmp_path), 0.5)
    stage.ready("m@3")
    assert stage.shares() == {"m@1": 0.5, "m@3": 0.5}


@pytest.mark.parametrize("share", [0.0, 0.1])
async def test_where_the_only_other_version_failed_the_next_one_takes_it_all(tmp_path: Path, share: float):
    stage = Stage(tmp_path, 0)
    stage.switching.adopt(card("m@1", tmp_path), 0.0)
    fails(stage, "m@1")
    stage.switching.adopt(card("m@2", tmp_path), share)
    stage.ready("m@2")
    assert stage.shares() == {"m@2": 1.0}


async def test_at_a_start_with_new_versions_alone_one_that_cannot_be_loaded_takes_nothing(tmp_path: Path):
    stage = Stage(tmp_path, 2)
    stage.traffic = stage.switching._traffic = Traffic(tmp_path / "another.json")
    stage.traffic.begin(stage.roster.models, set(stage.roster.models))
    for key in ("m@1", "m@2"):
        stage.switching.adopt(card(key, tmp_path), 1.0)
    stage.ready("m@1")
    fails(stage, "m@2")
    assert stage.shares() == {"m@1": 1.0}


async def test_a_version_that_is_removed_while_it_loads_takes_nothing(tmp_path: Path):
    stage = Stage(tmp_path, 1, ready=("m@1",))
    stage.switching.adopt(card("m@2", tmp_path), 1.0)
    stage.roster.models["m@2"].gone = True
    stage.ready("m@2")
    assert stage.shares() == {"m@1": 1.0}
    await grace(stage)
    assert stage.house.unloaded == ["m@2"]


async def test_what_was_loaded_by_hand_does_not_take_the_place_of_what_is_written_down(tmp_path: Path):
    stage = Stage(tmp_path, 1, ready=("m@1",))
    stage.traffic.put("m", stage.traffic.wanted("m", {"1": 1}, "", stage.roster.models), stage.roster.models)
    stage.roster.models["m@2"] = Served(card("m@2", tmp_path), default=False, preload=False)
    stage.ready("m@2")
    fails(stage, "m@1")
    stage.switching.adopt(card("m@3", tmp_path), 0.1)
    assert stage.shares() == {"m@1": 1.0}


async def test_who_waits_for_what_is_freed_hears_of_it(tmp_path: Path):
    stage = Stage(tmp_path, 3, ready=("m@3",))
    stage.switching.asked("web", Switch(1, "m", {"2": 1}, ""))
    stage.switching.asked("web", Switch(2, "m", {"3": 1}, ""))
    await grace(stage)
    assert stage.house.unloaded == stage.house.settled == ["m@2"]


async def test_a_version_with_the_number_of_a_removed_one_is_a_new_one(tmp_path: Path):
    stage = Stage(tmp_path, 1, ready=("m@1",))
    stage.switching.adopt(card("m@2", tmp_path), 1.0)
    stage.ready("m@2")
    assert stage.shares() == {"m@2": 1.0}
    del stage.roster.models["m@2"]
    stage.switching.removed("m@2")
    stage.switching.adopt(card("m@2", tmp_path), 0.5)
    assert stage.shares() == {"m@1": 1.0}, "until it is ready"
    stage.ready("m@2")
    assert stage.shares() == {"m@1": 0.5, "m@2": 0.5}


async def test_when_what_answered_at_the_start_is_gone_the_next_one_does_not_take_it_all(tmp_path: Path):
    stage = Stage(tmp_path, 2, ready=("m@1", "m@2"))
    del stage.roster.models["m@2"]
    stage.switching.adopt(card("m@3", tmp_path), 0.0)
    assert stage.shares() == {"m@1": 1.0}


async def test_a_version_without_a_share_keeps_none_from_its_own_that_is_in_doubt(tmp_path: Path):
    stage = Stage(tmp_path, 1, ready=("m@1",))
    stage.switching.adopt(card("m@2", tmp_path), 1.0)
    stage.roster.models["m@2"].why = "no memory; it is tried again"
    stage.switching.adopt(card("m@3", tmp_path), 0.0)
    assert stage.shares() == {"m@1": 1.0}
    stage.ready("m@2")
    assert stage.shares() == {"m@2": 1.0}


async def test_of_first_versions_the_oldest_takes_all_and_the_next_its_share_of_that(tmp_path: Path):
    stage = Stage(tmp_path, 0)
    stage.switching.adopt(card("m@1", tmp_path), 1.0)
    stage.switching.adopt(card("m@2", tmp_path), 0.25)
    stage.ready("m@2")
    stage.ready("m@1")
    assert stage.shares() == {"m@1": 0.75, "m@2": 0.25}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
async def test_a_first_version_answers_everything_whatever_its_share(tmp_path: Path, share: float):
    stage = Stage(tmp_path, 0)
    stage.switching.adopt(card("m@1", tmp_path), share)
    stage.ready("m@1")
    assert stage.shares() == {"m@1": 1.0}


async def test_a_version_without_a_share_is_not_loaded(tmp_path: Path):
    stage = Stage(tmp_path, 1, ready=("m@1",))
    stage.switching.adopt(card("m@2", tmp_path), 0.0)
    assert not stage.roster.models["m@2"].wanted and stage.shares() == {"m@1": 1.0}
    assert stage.house.published, "callers see it"
    stage.switching.adopt(card("m@2", tmp_path), 1.0)
    assert stage.shares() == {"m@1": 1.0}, "it had its share"


async def test_new_versions_get_their_shares_in_the_order_in_which_they_came_not_in_that_of_loading(tmp_path: Path):
    stage = Stage(tmp_path, 1, ready=("m@1",))
    stage.switching.adopt(card("m@2", tmp_path), 1.0)
    stage.switching.adopt(card("m@3", tmp_path), 0.25)
    stage.ready("m@3")
    assert stage.shares() == {"m@1": 1.0}
    stage.ready("m@2")
    assert stage.shares() == {"m@2": 0.75, "m@3": 0.25}


async def test_while_the_first_version_that_a_job_made_loads_a_persons_own_answers(tmp_path: Path):
    stage = Stage(tmp_path, 1, ready=("m@1",))
    stage.switching.adopt(card("m@2", tmp_path), 0.5)
    assert stage.shares() == {"m@1": 1.0}
    stage.ready("m@2")
    assert stage.shares() == {"m@1": 0.5, "m@2": 0.5}


async def test_a_version_that_is_known_already_is_told_to_frontends_all_the_same(tmp_path: Path):
    stage = Stage(tmp_path, 1, ready=("m@1",))
    stage.switching.adopt(card("m@1", tmp_path), 1.0)
    published = stage.house.published
    stage.switching.adopt(card("m@1", tmp_path), 1.0)
    assert stage.house.published > published


async def test_what_lost_its_traffic_is_freed_after_a_grace_that_each_change_begins_anew(tmp_path: Path):
    stage = Stage(tmp_path, 3, ready=("m@1", "m@2", "m@3"), grace_s=0.05)
    stage.switching.asked("web", Switch(1, "m", {"1": 1}, ""))
    first = stage.switching._retiring["m"]
    stage.switching.asked("web", Switch(2, "m", {"2": 1}, ""))
    assert first.cancelled() and stage.house.unloaded == []
    await until(lambda: stage.house.unloaded == ["m@3"])
    stage.switching.asked("web", Back(3, "m"))
    assert stage.shares() == {"m@1": 1.0}, "what a rollback needs was still loaded"


async def test_a_version_is_freed_when_no_frontend_holds_a_request_for_it(tmp_path: Path):
    stage = Stage(tmp_path, 3, ready=("m@1", "m@2", "m@3"))
    stage.house.idle, stage.house.frontends = False, {"web.1", "web.2"}
    for number in ("1", "2", "3"):
        stage.switching.asked("web.1", Switch(1, "m", {number: 1}, ""))
    await until(lambda: len(stage.house.asked) == 2)
    assert {(to, leave.key) for to, leave in stage.house.asked} == {("web.1", "m@1"), ("web.2", "m@1")}
    stage.switching.leaving.left("web.1", stage.house.asked[0][1])
    assert stage.house.unloaded == [], "the other one still holds some"
    stage.switching.leaving.gone("web.2")  # and its requests with it
    assert stage.house.unloaded == ["m@1"]


async def test_a_version_that_got_its_traffic_back_is_not_freed_by_an_answer_to_the_question_before(tmp_path: Path):
    stage = Stage(tmp_path, 3, ready=("m@1", "m@2", "m@3"))
    stage.house.idle = False
    for number in ("1", "2", "3"):
        stage.switching.asked("web", Switch(1, "m", {number: 1}, ""))
    await until(lambda: len(stage.house.asked) == 1)
    for number in ("1", "2", "3"):
        stage.switching.asked("web", Switch(2, "m", {number: 1}, ""))
    stage.switching.leaving.left("web", stage.house.asked[0][1])
    assert stage.house.unloaded == []
    await until(lambda: len(stage.house.asked) == 2)
    stage.switching.leaving.left("web", stage.house.asked[1][1])
    assert stage.house.unloaded == ["m@1"]


async def test_old_versions_that_jobs_made_leave_the_disk_but_not_those_that_answer(tmp_path: Path):
    stage = Stage(tmp_path, 5, ready=("m@1",), kept=2)
    for number in range(1, 6):
        folder = tmp_path / f"m@{number}"
        folder.mkdir()
        if number != 3:  # a person's own
            (folder / "tuned.json").write_text("{}")
    stage.switching.asked("web", Switch(1, "m", {"1": 1}, ""))
    await until(lambda: not (tmp_path / "m@2").exists())
    await asyncio.gather(*stage.house.work)
    assert sorted(path.name for path in tmp_path.glob("m@*")) == ["m@1", "m@3", "m@4", "m@5"]
    assert sorted(stage.roster.models) == ["m@1", "m@3", "m@4", "m@5"]


async def test_what_a_refused_change_has_loaded_is_freed(tmp_path: Path):
    stage = Stage(tmp_path, 3, ready=("m@1",))
    stage.traffic.put("m", stage.traffic.wanted("m", {"1": 1}, "", stage.roster.models), stage.roster.models)
    stage.switching.asked("web", Switch(1, "m", {"2": 1, "3": 1}, ""))
    stage.ready("m@2")
    stage.roster.models["m@3"].wanted = False
    stage.switching.look()
    assert [told.code for told in stage.house.told] == ["conflict"]
    await until(lambda: stage.house.unloaded == ["m@2"])


async def test_so_is_what_a_change_has_loaded_that_cannot_be_written_down(tmp_path: Path):
    stage = Stage(tmp_path, 3, ready=("m@1",))
    stage.traffic.put("m", stage.traffic.wanted("m", {"1": 1}, "", stage.roster.models), stage.roster.models)
    (tmp_path / ".traffic.json.part").mkdir()
    stage.switching.asked("web", Switch(1, "m", {"2": 1}, ""))
    stage.ready("m@2")
    assert [told.code for told in stage.house.told] == ["unavailable"]
    await until(lambda: stage.house.unloaded == ["m@2"])


async def test_an_old_version_whose_files_are_just_coming_stays(tmp_path: Path):
    stage = Stage(tmp_path, 4, ready=("m@4",), kept=2)
    (tmp_path / "m@1").mkdir()
    (tmp_path / "m@1" / "tuned.json").write_text("{}")
    stage.roster.models["m@1"].wanted = True  # somebody has asked for it
    stage.house.lives = lambda _: False  # type: ignore[method-assign]  # no process has begun yet
    stage.house.idle = False  # and a frontend takes its time
    stage.switching.asked("web", Switch(1, "m", {"4": 1}, ""))
    await until(lambda: any(leave.key == "m@1" for _, leave in stage.house.asked))
    assert "m@1" in stage.roster.models and (tmp_path / "m@1").exists()
    del stage.roster.models["m@1"]  # it may go before the frontend answers
    for frontend, leave in stage.house.asked:
        stage.switching.leaving.left(frontend, leave)
