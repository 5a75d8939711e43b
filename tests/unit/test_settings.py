"""Settings come from the environment and the command line, and mistakes name the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import Invalid
from app.settings import Settings


def test_the_defaults_need_no_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    settings = Settings.from_environment()
    assert (settings.host, settings.port, settings.profile, settings.home) == ("127.0.0.1", 8000, "auto", Path("/data/hearth"))
    assert settings.frontend_count() >= 1


def test_the_command_line_beats_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HEARTH_PORT", "9000")
    monkeypatch.setenv("HEARTH_MODELS", "a, b")
    settings = Settings.from_environment({"port": 9001, "host": None})
    assert (settings.port, settings.models, settings.host) == (9001, ("a", "b"), "127.0.0.1")


def test_an_unknown_variable_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HEARTH_PROT", "9000")
    with pytest.raises(Invalid, match=r"HEARTH_PROT.*HEARTH_PORT"):
        Settings.from_environment()


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "eighty"), ("PORT", "70000"), ("PROFILE", "fast"), ("FRONTENDS", "0"), ("MAX_BODY_MB", "-1")]
)
def test_a_bad_value_is_told_with_variable_and_value(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(f"HEARTH_{name}", value)
    with pytest.raises(Invalid, match=f"HEARTH_{name}={value}"):
        Settings.from_environment()


def test_children_get_the_very_same_settings(monkeypatch: pytest.MonkeyPatch):
    ours = Settings(models=("a", "b"), weights_path=(Path("/x"), Path("/y")), threads=3, max_pixels_mp=1.5)
    for name, value in ours.to_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.from_environment() == ours
