"""What a version's folder tells of who made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.card import Card
from app.settings import jobs_folder
from app.tuning.job import unannounced


def made(home: Path, key: str, tuned: dict[str, Any] | None) -> Card:
    folder = home / "models" / key
    folder.mkdir(parents=True)
    if tuned is not None:
        (folder / "tuned.json").write_text(json.dumps(tuned))
    return Card(name=key, folder=folder, task="text-embedding", source={"kind": "file"}, about={"licence": "x"})


def shares(home: Path, cards: list[Card]) -> dict[str, float]:
    return {card.name: share for card, share in unannounced(cards, home)}


def test_what_no_job_made_is_announced_at_the_start_with_the_share_of_its_spec(tmp_path: Path):
    (jobs_folder(tmp_path) / "j1").mkdir(parents=True)
    cards = [
        made(tmp_path, "m@10", {"job": "a", "spec": {"traffic": 0.1}}),
        made(tmp_path, "m@9", {"job": "b"}),
        made(tmp_path, "n@1", {"job": "j1", "spec": {"traffic": 0.1}}),  # its foreman tells
        made(tmp_path, "o@1", None),  # a person's own
    ]
    assert list(shares(tmp_path, cards).items()) == [("m@9", 1.0), ("m@10", 0.1)]


def test_a_version_that_a_later_one_replaces_gets_no_traffic(tmp_path: Path):
    (jobs_folder(tmp_path) / "j1").mkdir(parents=True)
    cards = [
        made(tmp_path, "m@1", {"job": "a", "spec": {"traffic": 0.5}}),
        made(tmp_path, "m@2", {"job": "j1", "spec": {"traffic": 1.0}}),
        made(tmp_path, "m@3", {"job": "c", "spec": {"traffic": 0.5}}),
        made(tmp_path, "n@1", {"job": "d"}),
    ]
    assert shares(tmp_path, cards) == {"m@1": 0.0, "m@3": 0.5, "n@1": 1.0}
