"""A leak in one kind of process is seen, though every fault takes with it what was leaked, and in the sum of all it is little."""

from __future__ import annotations

import random
import statistics

import bars
import growth
import pytest
import soak

BASE_MIB, OTHERS_MIB = 150.0, 850.0
RUN_S, FAULTS_S = 30 * 60, 75.0


def lived(leak_mib_s: float, *, faults_s: float = RUN_S * soak._KILLING) -> tuple[growth.Lives, list[tuple[float, float]]]:
    """Half an hour of a frontend that leaks, and is killed until `faults_s`, among others that do not; and the sum of all."""
    chance, lives, sums = random.Random(0), growth.Lives(), []
    for now in range(0, RUN_S, 5):
        pid, age = divmod(now, FAULTS_S) if now < faults_s else (faults_s // FAULTS_S, now - faults_s)
        held = BASE_MIB + leak_mib_s * age + chance.uniform(-1, 1)
        others = OTHERS_MIB + chance.uniform(-5, 5)
        seen(lives, "http", int(pid), now, held)
        for kind in soak._LASTING - {"http"}:
            seen(lives, kind, 1000, now, others / 5)
        lives.counted(soak._SHARED, "all", 1000, now, 5 + chance.uniform(0, 1))
        sums.append((now, held + others))
    return lives, sums[len(sums) // 5 :]


def seen(lives: growth.Lives, kind: str, pid: int, now_s: float, mib: float) -> None:
    """At one look, with descriptors and threads as always."""
    lives.seen(kind, pid, now_s, mib)
    lives.counted("descriptors", kind, pid, now_s, 25)
    lives.counted("threads", kind, pid, now_s, 3)


def missed(lives: growth.Lives) -> list[str]:
    """The bars of the growth within lives that are."""
    figures = soak.of_lives(lives, soak._LASTING)
    return bars.missed(figures, {name: bars.SOAK[name] for name in figures})


@pytest.mark.parametrize("leak_mib_s", [1.0, 100 / 3600])
def test_a_leak_in_a_frontend_is_out_of_bounds(leak_mib_s: float):
    lives, _ = lived(leak_mib_s)
    (said,) = missed(lives)
    assert said.startswith("within lives, growth an hour: ")
    assert lives.slopes()["http"] == pytest.approx(leak_mib_s * 3600 / (BASE_MIB + leak_mib_s * RUN_S / 6), rel=0.2)


def test_without_a_leak_all_is_within_bounds():
    lives, sums = lived(0.0)
    assert missed(lives) == []
    assert abs(growth.slope(*map(list, zip(*sums, strict=True)))) < 0.01


def test_a_sum_in_which_frontends_are_killed_to_the_end_shows_nothing_of_a_leak_and_is_not_taken_for_health():
    lives, sums = lived(1.0, faults_s=RUN_S)
    assert abs(growth.slope(*map(list, zip(*sums, strict=True)))) < 0.1, "a mebibyte a second"
    assert missed(lives) == ["kinds not judged: 1, must be at most 0"]


def test_a_young_process_fills_its_caches_and_a_short_life_says_nothing():
    lives = growth.Lives()
    for now in range(0, 300, 5):
        lives.seen("old", 1, now, 100 + min(now, 55))
        lives.seen("young", 2 + now // 100, now, 100.0 + now)
    assert lives.slopes() == {"old": pytest.approx(0)}


def test_what_is_taken_in_at_once_is_no_growth_and_a_leak_after_it_is():
    lives = growth.Lives()
    for now in range(0, 900, 5):
        torch = max(0, min(now - 300, 30)) * 13
        lives.seen("nursery", 1, now, 43.0 + torch)
        lives.seen("leaky", 2, now, 43.0 + torch + max(0, now - 330) * 0.1)
    assert lives.slopes()["nursery"] == pytest.approx(0)
    assert lives.slopes()["leaky"] > 0.5


def test_what_two_lives_hold_at_first_is_no_growth():
    """A second life that begins with twice as much."""
    lives = growth.Lives()
    for now in range(0, 600, 5):
        lives.seen("http", now // 300, now, statistics.mean([100, 200]) if now < 300 else 300.0)
    assert lives.slopes()["http"] == pytest.approx(0)


def test_descriptors_that_are_not_closed_are_seen_within_a_life_and_those_that_come_and_go_are_not():
    chance, lives = random.Random(0), growth.Lives()
    for now in range(0, RUN_S, 5):
        pid = int(now // FAULTS_S) if now < RUN_S * soak._KILLING else RUN_S
        lives.counted("descriptors", "http", pid, now, 25 + chance.randint(0, 3) + now // 60)
        lives.counted("descriptors", "nursery", 1, now, 9 + chance.randint(0, 3))
        lives.counted("descriptors", "young", now // 100, now, now)
        lives.counted("threads", "nursery", 1, now, 3)
    gained = lives.gained("descriptors")
    assert bars.SOAK["descriptors gained within a life"].missed_by(gained["http"])
    assert abs(gained["nursery"]) <= 1
    assert "young" not in gained
    assert lives.gained("threads") == {"nursery": 0}


def test_what_was_not_counted_is_not_taken_for_flat():
    lives, uncounted = lived(0.0)[0], growth.Lives()
    lives._counts = {found: life for found, life in lives._counts.items() if found[:2] != ("threads", "http")}
    assert missed(lives) == ["kinds not judged: 1, must be at most 0"]
    assert [said.partition(":")[0] for said in missed(uncounted)] == list(soak.of_lives(uncounted, soak._LASTING))


def test_a_life_of_few_looks_is_judged_too():
    lives = growth.Lives()
    for now in (0, 70, 200, 300):
        lives.counted("threads", "http", 1, now, now)
    assert lives.gained("threads") == {"http": 230}
