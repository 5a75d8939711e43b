"""How well the starters do on what they never saw. That for pictures, asked as the server asks it: the test set, the
same blurred, and real photos. Digits and speech: what their recipes keep out.

    python benchmarks/starters.py [--data ../shared/data] [--model cifar-resnet] [--check]

`starter_photos.csv` lists every photo of `images/` whose main subject is one of the ten classes. It was written before any
answer of the model was seen. The cougar is left out: the set's cats are house cats. `copy_of`: the same picture in
another format, which counts in "all files" only. With `--check`, a figure that misses its bar of bars.py ends the program with 1.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import bars
import numpy as np
import torch
from common import options, report, table
from PIL import Image, ImageFilter

from app.card import Card
from app.catalogue import Catalogue
from app.engine.loader import load
from app.engine.modules import eager
from app.engine.runner import Runner
from app.settings import Settings
from app.tasks import TASKS, resolve
from app.tasks.base import Files
from app.tasks.image.codec import ImageCodec
from app.tasks.image.program import ImageProgram
from app.weights import fetch

BLUR_SIGMA = 0.7  # pixels of the 32 x 32 picture
KEPT_OUT = {
    "digits": ("digits", "mnist", "accuracy"),
    "speech, word error rate": ("spoken-digits", "speech/fsdd.zip", "word_error_rate"),
}
"""Figure → model, data, which of its scores."""


def found(name: str) -> tuple[Card, Files]:
    """A card and its files."""
    settings = Settings.from_environment()
    card = Catalogue.read(settings.home).named(name)
    return card, fetch(card, settings, lambda *_: None)


def kept_out(figure: str, data: Path) -> float:
    """The figure, measured on the part of the data that the recipe trains nothing on."""
    name, where, metric = KEPT_OUT[figure]
    card, files = found(name)
    dataset = resolve(TASKS[card.task].dataset or "")(data / where, card)
    with torch.inference_mode():
        return float(dataset.score(load(card, files))[metric])


class Starter:
    """One image model, bytes in, class numbers out."""

    def __init__(self, name: str) -> None:
        card, files = found(name)
        self.labels = files["labels.txt"].read_text(encoding="utf-8").splitlines()
        self._codec = ImageCodec(card, files, {})
        program = ImageProgram(card, files)
        self._runner = Runner(eager(program, load(card, files)), program, lambda *_: None)

    def answers(self, pictures: Sequence[bytes]) -> list[int]:
        """The best class of each picture."""
        found: list[int] = []
        for start in range(0, len(pictures), 250):
            samples = [self._codec.decode(raw).samples[0].arrays for raw in pictures[start : start + 250]]
            found += [int(output["scores"].argmax()) for output in self._runner.run(samples)]
        return found


def cifar(path: Path) -> tuple[list[bytes], list[int]]:
    with np.load(path, allow_pickle=False) as archive:
        data, offsets, labels = archive["jpeg"], archive["offsets"], archive["labels"]
    return [data[a:b].tobytes() for a, b in pairwise(offsets)], labels.tolist()


def blurred(raw: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(raw)).convert("RGB").filter(ImageFilter.GaussianBlur(BLUR_SIGMA)).save(out, "BMP")
    return out.getvalue()


def share(right: Iterable[bool]) -> float:
    values = list(right)
    return sum(values) / len(values)


def measured(data: Path, model: str) -> dict[str, float]:
    """All figures, as shares of 1."""
    starter = Starter(model)
    pictures, labels = cifar(data / "cifar10" / "test.npz")
    figures: dict[str, float] = {}
    for name, asked in (("test set", pictures), ("test set, blurred", [blurred(raw) for raw in pictures])):
        figures[name] = share(a == b for a, b in zip(starter.answers(asked), labels, strict=True))

    with (Path(__file__).parent / "starter_photos.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    answers = starter.answers([(data / "images" / row["file"]).read_bytes() for row in rows])
    heard = [starter.labels[answer] for answer in answers]
    for row, answer in zip(rows, heard, strict=True):
        print(f"{row['file']:24} {row['label']:12} {'' if answer == row['label'] else '≠ ' + answer}")
    right = [answer == row["label"] for row, answer in zip(rows, heard, strict=True)]
    figures["photos"] = share(ok for ok, row in zip(right, rows, strict=True) if not row["copy_of"])
    figures["photos, all files"] = share(right)
    return figures | {figure: kept_out(figure, data) for figure in KEPT_OUT}


def main() -> None:
    wanted = options(__doc__, data="../shared/data", model="cifar-resnet", check=False)
    figures = measured(Path(wanted.data), wanted.model)
    table(["", "%"], [[name, f"{100 * value:.2f}"] for name, value in figures.items()])
    report("starters", model=wanted.model, figures=figures)
    if wanted.check:
        bars.hold(figures, bars.STARTERS)


if __name__ == "__main__":
    main()
