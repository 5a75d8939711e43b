"""Every card whose weights are on this machine answers its own sample as `expected.json` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.catalogue import Catalogue
from app.engine.loader import load
from app.engine.modules import eager
from app.engine.runner import Runner
from app.settings import Settings
from app.tasks import TASKS, make_codec, resolve
from app.weights import fetch, locate

SETTINGS = Settings(home=Path("/nowhere"))
CATALOGUE = Catalogue.read(SETTINGS.home)
HERE = [name for name, card in CATALOGUE.cards.items() if locate(card, SETTINGS)]


def test_every_starter_is_here():
    assert {name for name, card in CATALOGUE.cards.items() if card.starter} == set(HERE)


@pytest.mark.parametrize("name", HERE)
def test_the_sample_gets_the_expected_answer(name: str):
    card = CATALOGUE.named(name)
    files = fetch(card, SETTINGS, lambda *_: None)
    module = load(card, files)
    program = resolve(TASKS[card.task].program)(card, files)
    codec = make_codec(card, files, program.describe(module))
    (path,) = card.folder.glob("sample.*")
    decoded = codec.decode(json.loads(path.read_text())["inputs"] if path.suffix == ".json" else path.read_bytes())
    outputs: Any = Runner(eager(program, module), program, lambda *_: None).run([s.arrays for s in decoded.samples])
    wanted = [{k: v for k, v in output.items() if k != "embedding" or card.task == "text-embedding"} for output in outputs]
    answer = codec.interpret(decoded, wanted)
    expected = json.loads((card.folder / "expected.json").read_text())
    if card.task == "image-classification":
        best = answer["predictions"][0]
        assert {key: best[key] for key in expected} == expected
    elif card.task == "speech-recognition":
        assert answer["text"] == expected["text"]
    else:
        assert len(answer["embedding"]) == expected["dimensions"]
        np.testing.assert_allclose(answer["embedding"][: len(expected.get("begins", []))], expected.get("begins", []), atol=1e-5)
        assert decoded.info["tokens"] == expected.get("tokens", decoded.info["tokens"])
