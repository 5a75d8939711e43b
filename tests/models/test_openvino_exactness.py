"""What answers by default on a CPU: a starter compiled by OpenVINO says the same of an input alone as in a full, mixed batch."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.catalogue import Catalogue
from app.engine.agreement import agree, spoken
from app.engine.compute import Precision, compiled, openvino_precisions
from app.engine.loader import load
from app.engine.modules import compile_into, eager, record
from app.engine.runner import Runner
from app.settings import Settings
from app.tasks import TASKS, card_samples, make_codec, resolve
from app.weights import fetch

pytest.importorskip("openvino")
SETTINGS = Settings(home=Path("/nowhere"))
CATALOGUE = Catalogue.read(SETTINGS.home)


def items(shared: Path, name: str) -> list[Any]:
    """What callers send, of many sizes, enough for a full batch."""
    if name == "all-minilm-l6-v2":  # from 1 to 150 words
        lines = (shared / "text" / "sentences.txt").read_text().splitlines()
        return [" ".join(line.split()[:150]) for line in lines[:: len(lines) // 63]]
    if name == "spoken-digits":
        with zipfile.ZipFile(shared / "speech" / "fsdd.zip") as archive:
            return [archive.read(found) for found in sorted(archive.namelist()) if found.endswith("_0.wav")]
    files = (
        path for path in sorted((shared / "images").glob("*.*")) if path.suffix != ".csv" and not path.name.startswith("bad_")
    )
    return [path.read_bytes() for path in files]


def runners(shared: Path, name: str, precision: Precision, folder: Path) -> tuple[Runner, Runner, list[Any]]:
    """Eager in fp32, compiled in `precision`, and a full batch."""
    card = CATALOGUE.named(name)
    files = fetch(card, SETTINGS, lambda *_: None)
    module, program = load(card, files), resolve(TASKS[card.task].program)(card, files)
    codec = make_codec(card, files, program.describe(module))
    plain = eager(program, module)
    with warnings.catch_warnings(action="ignore"):  # tracing says much that concerns its authors
        calls = record(program, plain, [sample.arrays for sample in card_samples(card, codec)])
        compile_into(folder, "openvino", plain.networks, calls)  # type: ignore[arg-type]
    classifies = card.task == "image-classification"
    fast = compiled("openvino", precision, folder, list(plain.networks), threads=2, classifies=classifies)
    decoded = [
        codec.decode(item, **({"truncate": True} if card.task == "text-embedding" else {})) for item in items(shared, name)
    ]
    batch = [one.samples[0].arrays for one in decoded][: card.limits.max_batch]
    return Runner(plain, program, lambda *_: None), Runner(fast, program, lambda *_: None), batch


STARTERS = ["cifar-resnet", "digits", "all-minilm-l6-v2", "spoken-digits"]


@pytest.mark.parametrize("name", STARTERS)
def test_an_answer_does_not_depend_on_its_neighbours(shared: Path, name: str, tmp_path: Path):
    """Max difference in fp32: 8.3e-7 in MiniLM's embeddings, whose texts are packed into rows; none at all in the others."""
    _, runner, batch = runners(shared, name, "fp32", tmp_path)
    together: list[Any] = runner.run(batch)
    alone: list[Any] = [runner.run([sample])[0] for sample in batch]
    worst = {key: max(float(np.abs(a[key] - b[key]).max()) for a, b in zip(alone, together, strict=True)) for key in together[0]}
    assert all(difference <= 1e-5 for difference in worst.values()), worst


@pytest.mark.skipif("bf16" not in openvino_precisions(), reason="this CPU has no bf16")
@pytest.mark.parametrize("name", STARTERS)
def test_bf16_means_what_fp32_means(shared: Path, name: str, tmp_path: Path):
    """The same best class of each picture, the same transcript of each clip, a cosine of 0.999 or more of each text."""
    plain, fast, batch = runners(shared, name, "bf16", tmp_path)
    expected: list[Any] = plain.run(batch)
    got: list[Any] = fast.run(batch)
    assert agree(expected, got) == ""
    for want, have in zip(expected, got, strict=True):
        if "scores" in want:
            assert want["scores"].argmax() == have["scores"].argmax()
        if "token_ids" in want:
            assert spoken(want["token_ids"]) == spoken(have["token_ids"])
