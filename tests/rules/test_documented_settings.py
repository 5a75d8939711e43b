"""README's configuration table (`| variable | default | … |`) and `app.settings.Settings` say the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from app.settings import Settings, variable
from tests.rules import readme

NOTHING = "–"  # how the table writes an empty default
COMPUTED = "the user's data folder"  # how it writes the one default that depends on the machine


def differences(markdown: str, settings: type[BaseModel] = Settings) -> list[str]:
    table = {row["variable"]: row["default"] for row in readme.rows(markdown, "variable")}
    fields = {variable(name): default_text(settings, name) for name in settings.model_fields}
    found = [f"README has no {name}" for name in fields.keys() - table.keys()]
    found += [f"README has {name}, which is no setting" for name in table.keys() - fields.keys()]
    found += [
        f"{name}: README says {table[name]!r}, the code {fields[name]!r}"
        for name in fields.keys() & table.keys()
        if table[name] != fields[name]
    ]
    return sorted(found)


def default_text(settings: type[BaseModel], name: str) -> str:
    field = settings.model_fields[name]
    if field.default_factory is not None:
        return COMPUTED
    value = field.default
    if isinstance(value, tuple):
        value = (":" if name.endswith("path") else ",").join(map(str, value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return NOTHING if value in (None, "") else str(value)


def test_readme_and_settings_agree() -> None:
    assert differences(readme.text()) == []


def test_every_setting_says_why() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


class Two(BaseModel):
    port: int = 8000
    models: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", ["README has no HEARTH_MODELS", "README has no HEARTH_PORT"]),
        ("| `HEARTH_PORT` | `8001` | |\n| `HEARTH_MODELS` | – | |", ["HEARTH_PORT: README says '8001', the code '8000'"]),
        (
            "| `HEARTH_PORT` | `8000` | |\n| `HEARTH_MODELS` | – | |\n| `HEARTH_X` | 1 | |",
            ["README has HEARTH_X, which is no setting"],
        ),
    ],
)
def test_the_rule_sees_a_difference(table: str, said: list[str]) -> None:
    assert differences(f"| Variable | Default | Meaning |\n|---|---|---|\n{table}", Two) == said


def test_a_missing_readme_fails() -> None:
    with pytest.raises(AssertionError, match="missing"):
        readme.text(Path("no-such-folder/README.md"))
