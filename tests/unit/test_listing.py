"""What the command line lists is whole on a terminal of 80 columns."""

from __future__ import annotations

import io
import re
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from app import cli, jobs
from app.catalogue import Catalogue
from app.listing import listing

JOB = {
    "id": "1f0c22a9d3b7",
    "model": "photographs-of-a-garden@2",
    "spec": {"base": "wav2vec2-base-960h"},
    "state": "failed",
    "progress": {"step": 1200, "steps": 1200, "best": {"metrics": {"accuracy": 0.9012}}},
    "result": {},
    "reason": "the loss is no number; use a smaller learning_rate",
}


def narrow() -> Console:
    return Console(file=io.StringIO(), width=80, highlight=False)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    return text


def columns_of(text: str) -> dict[str, str]:
    """Head → all that stands under it, joined as it was broken: without spaces."""
    head, _, *lines = text.splitlines()
    starts = [found.start() for found in re.finditer(r"\S+", head)]
    parts = [slice(start, end) for start, end in zip(starts, [*starts[1:], 80], strict=True)]
    return {head[part].strip(): "".join(line[part] for line in lines).replace(" ", "") for part in parts}


def test_what_is_too_long_goes_on_in_the_next_line():
    console, long = narrow(), "abcdefghijklmnopqrstuvwxyz" * 3
    table = listing("name", "of", "about")
    table.add_row("short", long, "words " * 20)
    console.print(table)
    assert columns_of(written(console)) == {"name": "short", "of": long, "about": "words" * 20}


def test_models_are_listed_with_whole_names_and_the_command_that_brings_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    console = narrow()
    monkeypatch.setattr(cli, "out", console)
    monkeypatch.setenv("HEARTH_HOME", str(tmp_path))
    assert CliRunner().invoke(cli.app, ["models"]).exit_code == 0
    text = written(console)
    for card in Catalogue.read(tmp_path).cards.values():
        assert re.search(rf"^{card.name} +{card.task} +{'here' if card.starter else 'missing'} ", text, re.MULTILINE), text
    assert "hearth pull NAME" in text


def test_jobs_are_listed_with_whole_ids_and_all_that_is_said_of_them():
    console = narrow()
    server = httpx.MockTransport(lambda _: httpx.Response(200, json={"jobs": [JOB]}))
    jobs.show(httpx.Client(base_url="http://hearth", transport=server), console)
    text = written(console)
    assert JOB["id"] in text
    told = columns_of(text)
    assert (told["model"], told["from"]) == (JOB["model"], "wav2vec2-base-960h")
    assert told["progress"] == "1200of1200"
    assert told["reason"] == str(JOB["reason"]).replace(" ", "")
