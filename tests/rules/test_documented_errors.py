"""README's error table (`| code | status | … |`), `app.errors` and the statuses of `web/problems.py` say the same."""

from __future__ import annotations

import pytest

from app.errors import ERRORS, HearthError
from app.web.problems import STATUS
from tests.rules import readme


def differences(markdown: str, statuses: dict[str, int]) -> list[str]:
    table = {row["code"]: row["status"] for row in readme.rows(markdown, "code")}
    found = [f"README has no {code}" for code in statuses.keys() - table.keys()]
    found += [f"README has {code}, which is no error" for code in table.keys() - statuses.keys()]
    found += [
        f"{code}: README says {table[code]}, the code {statuses[code]}"
        for code in statuses.keys() & table.keys()
        if table[code] != str(statuses[code])
    ]
    return sorted(found)


def test_readme_and_problems_agree() -> None:
    assert differences(readme.text(), {code: status for code, (status, *_) in STATUS.items()}) == []


def test_every_error_has_a_status() -> None:
    assert sorted(ERRORS.keys() - STATUS.keys()) == []


def test_every_error_class_is_registered_under_its_own_code() -> None:
    def below(error: type[HearthError]) -> set[type[HearthError]]:
        return {error}.union(*(below(child) for child in error.__subclasses__()))

    ours = {error for error in below(HearthError) if error.__module__ == "app.errors"} - {HearthError}
    assert set(ERRORS.values()) == ours
    assert len({error.code for error in ours}) == len(ours)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", ["README has no loading"]),
        ("| `loading` | 500 | wait |", ["loading: README says 500, the code 503"]),
        ("| `loading` | 503 | wait |\n| `tired` | 503 | sleep |", ["README has tired, which is no error"]),
    ],
)
def test_the_rule_sees_a_difference(table: str, said: list[str]) -> None:
    assert differences(f"| Code | Status | What to do |\n|---|---|---|\n{table}", {"loading": 503}) == said
