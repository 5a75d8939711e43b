"""SECURITY.md names every setting that keeps somebody or something out, and none that there is not."""

from __future__ import annotations

import re

import pytest

from app.settings import Settings, variable
from app.web import security
from tests.rules import readme
from tests.rules.source import ROOT

KEEPS_OUT = {"host", "keys_file", "address_rate", "cors_origins", "timeout_s", "silence_s"}


def differences(paper: str) -> list[str]:
    known = {variable(name) for name in Settings.model_fields}
    needed = {variable(name) for name in Settings.model_fields if name in KEEPS_OUT or name.startswith("max_")}
    named = set(re.findall(r"HEARTH_[A-Z_]*[A-Z]", paper)) - {"HEARTH_HOME"}
    return sorted([f"not named: {name}" for name in needed - named] + [f"no setting: {name}" for name in named - known])


def test_security_md_names_the_settings() -> None:
    assert set(Settings.model_fields) >= KEEPS_OUT
    assert differences(readme.text(ROOT / "SECURITY.md")) == []


def test_it_names_what_is_always_open() -> None:
    paper = readme.text(ROOT / "SECURITY.md")
    assert [path for path in security._OPEN if f"`{path}`" not in paper] == []


@pytest.mark.parametrize(
    ("said", "found"), [("HEARTH_MAX_PIGS", "no setting: HEARTH_MAX_PIGS"), ("", "not named: HEARTH_KEYS_FILE")]
)
def test_the_rule_sees_a_difference(said: str, found: str) -> None:
    assert found in differences(said)
