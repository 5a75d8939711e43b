"""Which versions answer, kept over restarts: examples, and what must hold whatever happens."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from app.errors import Conflict, Invalid
from app.pool.traffic import Traffic
from app.wire.messages import Route

KEYS = ["photos@1", "photos@2", "photos@3", "resnet18", "words"]


@pytest.fixture
def traffic(tmp_path: Path) -> Traffic:
    return Traffic(tmp_path / "traffic.json")


def test_models_without_versions_have_no_route(traffic: Traffic):
    assert traffic.routes(["resnet18", "words"]) == {}


def test_without_a_record_the_newest_version_answers(traffic: Traffic):
    assert traffic.routes(KEYS)["photos"] == Route({"photos@3": 1.0})


def test_at_a_start_without_a_record_the_newest_answers_that_does_not_wait_for_its_share(traffic: Traffic):
    assert traffic.begin(KEYS, ["photos@3"])["photos"] == Route({"photos@2": 1.0})
    assert traffic.adoption("photos@3", 0.25, KEYS) == Route({"photos@2": 0.75, "photos@3": 0.25})
    assert traffic.routes([*KEYS, "photos@4"])["photos"] == Route({"photos@2": 1.0}), "what comes later changes nothing"


def test_where_all_wait_for_their_share_the_oldest_answers_until_they_have_it(traffic: Traffic):
    assert traffic.begin(KEYS, KEYS)["photos"] == Route({"photos@1": 1.0})
    for key in ("photos@1", "photos@2", "photos@3"):
        route = traffic.adoption(key, 0.5, KEYS)
        assert route is not None
        traffic.put("photos", route, KEYS, [key])
    assert traffic.routes(KEYS)["photos"] == Route({"photos@1": 0.25, "photos@2": 0.25, "photos@3": 0.5})


def test_a_version_that_comes_back_does_not_answer_by_what_was_written_down_before(traffic: Traffic, tmp_path: Path):
    """Its card was broken at the start, and is mended: nobody has loaded it."""
    traffic.put("photos", Route({"photos@1": 1.0}), KEYS)
    traffic.put("photos", Route({"photos@2": 1.0}), KEYS)
    again = Traffic(tmp_path / "traffic.json")
    assert again.begin(["photos@1"], ())["photos"] == Route({"photos@1": 1.0})
    assert again.routes(KEYS)["photos"] == Route({"photos@1": 1.0})
    again.put("photos", Route({"photos@3": 1.0}), KEYS)
    assert again.before("photos", KEYS) == Route({"photos@1": 1.0}), "a rollback brings back what answered"
    again.back("photos", again.before("photos", KEYS), KEYS)
    assert again.routes(KEYS)["photos"] == Route({"photos@1": 1.0})


def test_a_rollback_is_to_something_else(traffic: Traffic, tmp_path: Path):
    for number in (1, 2, 3):
        traffic.put("photos", Route({f"photos@{number}": 1.0}), KEYS)
    again = Traffic(tmp_path / "traffic.json")
    again.begin(KEYS[:2], ())
    assert again.before("photos", KEYS[:2]) == Route({"photos@1": 1.0})


def test_each_rollback_changes_something_though_a_shadow_is_lost(traffic: Traffic):
    for route in (Route({"photos@1": 1.0}), Route({"photos@2": 1.0}, "words"), Route({"photos@3": 1.0})):
        traffic.put("photos", route, KEYS)
    keys = KEYS[:3]
    for there in ({"photos@2": 1.0}, {"photos@1": 1.0}):
        traffic.back("photos", traffic.before("photos", keys), keys)
        assert traffic.routes(keys)["photos"] == Route(there)


def test_a_rollback_reaches_what_it_was_for_though_the_present_version_is_removed_meanwhile(traffic: Traffic):
    for number in (1, 2, 3):
        traffic.put("photos", Route({f"photos@{number}": 1.0}), KEYS)
    route = traffic.before("photos", KEYS)
    traffic.lose("photos@3")
    traffic.back("photos", route, KEYS[:2])
    assert traffic.routes(KEYS[:2])["photos"] == Route({"photos@2": 1.0})


def test_a_rollback_may_change_the_shadow_alone(traffic: Traffic, tmp_path: Path):
    for route in (Route({"photos@1": 1.0}, "photos@2"), Route({"photos@1": 1.0}, "photos@4"), Route({"photos@3": 1.0})):
        traffic.put("photos", route, [*KEYS, "photos@4"])
    again, keys = Traffic(tmp_path / "traffic.json"), ["photos@1", "photos@2", "photos@4"]
    again.begin(keys, ())
    again.back("photos", again.before("photos", keys), keys)
    assert again.routes(keys)["photos"] == Route({"photos@1": 1.0}, "photos@2")


def test_of_a_version_that_was_removed_nothing_is_known(traffic: Traffic, tmp_path: Path):
    traffic.begin(KEYS[:2], ["photos@2"])
    traffic.put("photos", Route({"photos@2": 1.0}), KEYS[:2], ["photos@2"])
    traffic.lose("photos@2")
    assert traffic.routes(KEYS[:2])["photos"] == Route({"photos@1": 1.0})
    assert traffic.adoption("photos@2", 1.0, KEYS[:2]) == Route({"photos@2": 1.0}), "what has its number now is another one"
    again = Traffic(tmp_path / "traffic.json")
    again.begin(KEYS[:2], ())
    again.lose("photos@2")
    assert again.routes(KEYS[:1])["photos"] == Route({"photos@1": 1.0})


def test_what_is_written_down_holds_at_a_start(traffic: Traffic, tmp_path: Path):
    traffic.put("photos", Route({"photos@1": 1.0}), KEYS)
    assert Traffic(tmp_path / "traffic.json").begin(KEYS, ())["photos"] == Route({"photos@1": 1.0})


def test_a_new_version_gets_its_share_and_the_others_keep_theirs_among_them(traffic: Traffic):
    traffic.put("photos", Route({"photos@1": 0.75, "photos@2": 0.25}), KEYS[:2])
    route = traffic.adoption("photos@3", 0.2, KEYS)
    assert route is not None and route.shares == pytest.approx({"photos@1": 0.6, "photos@2": 0.2, "photos@3": 0.2})
    traffic.put("photos", route, KEYS, ["photos@3"])
    assert traffic.adoption("photos@3", 1.0, KEYS) is None, "no restart gives it again"


def test_a_new_version_takes_nothing_from_a_newer_one(traffic: Traffic):
    traffic.put("photos", Route({"photos@1": 0.5, "photos@3": 0.5}, "photos@1"), KEYS)
    assert traffic.adoption("photos@2", 0.5, KEYS) == Route({"photos@1": 0.25, "photos@2": 0.25, "photos@3": 0.5}, "photos@1")
    assert traffic.adoption("photos@2", 1.0, KEYS) == Route({"photos@2": 0.5, "photos@3": 0.5})
    traffic.put("photos", Route({"photos@3": 1.0}), KEYS)
    assert traffic.adoption("photos@2", 1.0, KEYS) == Route({"photos@3": 1.0})
    traffic.put("photos", Route({"photos@3": 1.0}, "photos@1"), KEYS)
    assert traffic.adoption("photos@2", 1.0, KEYS) == Route({"photos@3": 1.0}, "photos@1")


def test_the_first_version_takes_all_whatever_its_share(traffic: Traffic):
    assert traffic.adoption("photos@1", 0.1, ["photos@1"]) == Route({"photos@1": 1.0})


def test_a_version_that_was_never_adopted_does_not_answer(traffic: Traffic):
    """Its job has just put it there: the model that callers use goes on."""
    assert traffic.routes(["resnet18", "resnet18@2"])["resnet18"] == Route({"resnet18": 1.0})
    assert traffic.adoption("resnet18@2", 0.1, ["resnet18", "resnet18@2"]) == Route({"resnet18": 0.9, "resnet18@2": 0.1})


def test_a_rollback_undoes_one_change_and_survives_a_restart(traffic: Traffic, tmp_path: Path):
    traffic.begin(KEYS, ())
    for key in ("photos@1", "photos@2", "photos@3"):
        traffic.put("photos", Route({key: 1.0}), KEYS)
    for expected in ("photos@2", "photos@1"):
        traffic.back("photos", traffic.before("photos", KEYS), KEYS)
        assert Traffic(tmp_path / "traffic.json").routes(KEYS)["photos"] == Route({expected: 1.0})
    traffic.back("photos", traffic.before("photos", KEYS), KEYS)  # what was there without a record
    with pytest.raises(Conflict, match="no earlier state"):
        traffic.before("photos", KEYS)


def test_versions_that_are_gone_are_passed_over(traffic: Traffic):
    traffic.put("photos", Route({"photos@1": 1.0}), KEYS)
    traffic.put("photos", Route({"photos@2": 1.0}, "photos@3"), KEYS)
    assert traffic.routes(["photos@1", "photos@2"])["photos"] == Route({"photos@2": 1.0})
    assert traffic.routes(["photos@1", "photos@3"])["photos"] == Route({"photos@1": 1.0})


def test_what_is_gone_is_forgotten_so_that_its_number_can_be_used_again(traffic: Traffic, tmp_path: Path):
    for key in ("photos@1", "photos@2"):
        traffic.put("photos", Route({key: 1.0}, "photos@3"), KEYS, [key])
    traffic.put("words", Route({"words": 1.0}), KEYS)
    traffic.forget(["photos@1", "words"])
    again = Traffic(tmp_path / "traffic.json")
    assert again.routes(["photos@1", "photos@2", "photos@3"])["photos"] == Route({"photos@1": 1.0})
    assert again.adoption("photos@1", 1.0, ["photos@1"]) is None
    assert again.adoption("photos@2", 0.5, ["photos@1", "photos@2"]) == Route({"photos@1": 0.5, "photos@2": 0.5})


def test_a_rollback_does_without_a_shadow_that_is_gone(traffic: Traffic):
    for route in (Route({"photos@2": 1.0}, "photos@1"), Route({"photos@2": 1.0}), Route({"photos@3": 1.0})):
        traffic.put("photos", route, KEYS)
    left = [key for key in KEYS if key != "photos@1"]
    route = traffic.before("photos", left)
    assert route == Route({"photos@2": 1.0})
    traffic.back("photos", route, left)
    with pytest.raises(Conflict):  # without it the state before is this one
        traffic.before("photos", left)


def test_what_a_rollback_needs_stays_loaded(traffic: Traffic):
    traffic.put("photos", Route({"photos@1": 1.0}), KEYS)
    traffic.put("photos", Route({"photos@2": 1.0}, "photos@3"), KEYS)
    assert traffic.needed("photos", KEYS) == {"photos@1", "photos@2", "photos@3"}


def test_what_cannot_be_written_down_does_not_happen(traffic: Traffic, tmp_path: Path):
    traffic.put("photos", Route({"photos@1": 1.0}), KEYS)
    traffic.put("photos", Route({"photos@2": 1.0}), KEYS)
    (tmp_path / ".traffic.json.part").mkdir()  # as a full disk, which root fills too
    with pytest.raises(IsADirectoryError):
        traffic.put("photos", Route({"photos@3": 1.0}), KEYS, ["photos@3"])
    with pytest.raises(IsADirectoryError):
        traffic.back("photos", traffic.before("photos", KEYS), KEYS)
    assert traffic.routes(KEYS)["photos"] == Route({"photos@2": 1.0})
    assert traffic.adoption("photos@3", 1.0, KEYS) is not None, "it may have its share later"


def test_a_damaged_record_is_named(tmp_path: Path):
    (tmp_path / "traffic.json").write_text('{"routes": ')
    with pytest.raises(Invalid, match=r"traffic\.json is damaged .*mend or remove it"):
        Traffic(tmp_path / "traffic.json")


@pytest.mark.parametrize(
    ("shares", "shadow", "words"),
    [
        ({"4": 1}, "", "no version '4'; there are: 1, 2, 3"),
        ({"1": 1}, "x", "no version 'x'"),
        ({"1": 0}, "", "all 0"),
        ({"1": 1, "2": 1}, "2", "answers already"),
    ],
)
def test_what_cannot_be_is_told(traffic: Traffic, shares: dict[str, float], shadow: str, words: str):
    with pytest.raises(Invalid, match=words):
        traffic.wanted("photos", shares, shadow, KEYS)


@settings(max_examples=200, deadline=None)
@given(
    changes=st.lists(
        st.one_of(
            st.just("back"),
            st.dictionaries(st.sampled_from(["1", "2", "3"]), st.floats(0.01, 100), min_size=1),
            st.floats(0, 1),
        ),
        max_size=14,
    )
)
def test_shares_add_up_to_one_after_any_changes(changes: list[object], tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("home") / "traffic.json"
    traffic, keys = Traffic(path), list(KEYS)
    for change in changes:
        if change == "back":
            try:
                traffic.back("photos", traffic.before("photos", keys), keys)
            except Conflict:
                continue
        elif isinstance(change, dict):
            traffic.put("photos", traffic.wanted("photos", change, "", keys), keys)
        else:
            key = f"photos@{len(keys)}"
            keys.append(key)
            route = traffic.adoption(key, float(change), keys)  # type: ignore[arg-type]
            assert route is not None
            traffic.put("photos", route, keys, [key])
        route = Traffic(path).routes(keys)["photos"]
        assert sum(route.shares.values()) == pytest.approx(1) and min(route.shares.values()) > 0
        assert route.shares.keys() <= set(keys) and "words" not in route.shares


def test_a_change_that_cannot_be_written_down_has_not_been_made(
    traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    traffic.put("photos", Route({"photos@1": 1.0}), KEYS)
    traffic.put("photos", Route({"photos@2": 1.0}), KEYS)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("app.pool.traffic.os.fsync", full)
    for change in (
        lambda: traffic.put("photos", Route({"photos@3": 1.0}), KEYS),
        lambda: traffic.back("photos", Route({"photos@1": 1.0}), KEYS),
    ):
        with pytest.raises(OSError, match="No space"):
            change()
        assert (
            traffic.routes(KEYS)["photos"]
            == Traffic(tmp_path / "traffic.json").routes(KEYS)["photos"]
            == Route({"photos@2": 1.0})
        )
    traffic.forget(["photos@1"])
    assert traffic.routes(["photos@1"])["photos"] == Route({"photos@1": 1.0}), "the server starts all the same"
