"""`--check` of the benchmarks: what misses a bar ends the program with 1, and a message that names both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import bars
import cold
import overhead
import pytest
import starters

NAN = float("nan")
GOOD = {"test set": 0.9013, "test set, blurred": 0.8953, "photos": 0.857, "digits": 0.98, "speech, word error rate": 0.05}


def test_what_lies_on_its_bar_is_good_enough():
    bars.hold({"requests failed": 0, "recovery, s: median": 1.0}, bars.RECOVERY)
    bars.hold(GOOD, bars.STARTERS)


@pytest.mark.parametrize(
    ("figures", "held", "said"),
    [
        ({"recovery, s: median": 1.25}, bars.RECOVERY, "recovery, s: median: 1.25, must be at most 1"),
        ({"requests failed": 1}, bars.LOST, "requests failed: 1, must be at most 0"),
        ({"digits": 0.95}, bars.STARTERS, "digits: 0.95, must be at least 0.96"),
        ({"speech, word error rate": 0.051}, bars.STARTERS, "speech, word error rate: 0.051, must be at most 0.05"),
        ({"photos": 0.786}, bars.STARTERS, "photos: 0.786, must be at least 0.8"),
        ({"test set, blurred": 0.87}, bars.STARTERS, "test set, blurred: 0.87, must be at least 0.88"),
        ({"recovery, s: median": NAN}, bars.RECOVERY, "recovery, s: median: nan, must be at most 1"),
    ],
)
def test_a_miss_ends_with_1_and_names_figure_and_bar(figures: dict[str, float], held: dict[str, bars.Bar], said: str):
    good = GOOD | {"requests failed": 0, "recovery, s: median": 0.4}
    with pytest.raises(SystemExit) as end:
        bars.hold(good | figures, held)
    assert end.value.code == said  # a message as the code: Python prints it on stderr and exits with 1


def test_what_was_not_measured_misses():
    assert bars.missed({}, bars.COLD) == ["seconds to ready, warm compute cache: nan, must be at most 6"]


def test_starts_are_held_to_the_median_with_warm_caches():
    slow, quick = dict.fromkeys(cold.MOMENTS, 9.0), dict.fromkeys(cold.MOMENTS, 2.0)
    cold.told({"cold": [slow], "warm": [quick, slow, quick]}, ["a"], {}, check=True)
    with pytest.raises(SystemExit, match="9, must be at most 6"):
        cold.told({"cold": [quick], "warm": [quick, slow, slow]}, ["a"], {}, check=True)
    cold.told({"cold": [quick], "warm": [slow]}, ["a"], {}, check=False)


def test_every_model_is_held_to_what_the_server_may_cost():
    with pytest.raises(SystemExit, match=r"^b: ms over bare: 3\.5, must be at most 3$"):
        overhead.hold({"a": {"over_ms": 1.2}, "b": {"over_ms": 3.5}})
    overhead.hold({"a": {"over_ms": 1.2}, "b": {"over_ms": 3.0}})


@pytest.mark.parametrize("check", [True, False])
def test_starters_are_held_to_their_figures_only_if_asked(monkeypatch: pytest.MonkeyPatch, check: bool):
    worse = GOOD | {"photos": 0.7}
    monkeypatch.setattr(starters, "options", lambda *_, **__: SimpleNamespace(data="", model="m", check=check))
    monkeypatch.setattr(starters, "measured", lambda *_: worse)
    calls: list[Any] = []
    monkeypatch.setattr(starters, "report", lambda name, **figures: calls.append(figures))
    if check:
        with pytest.raises(SystemExit, match=r"^photos: 0\.7, must be at least 0\.8$"):
            starters.main()
    else:
        starters.main()
    assert calls, "the figures are told before they are judged"
