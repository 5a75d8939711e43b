"""A finished run → a model: weights, card, labels, a sample and the answer to it, first beside, then into the catalogue."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import msgspec
import tomli_w
from safetensors.torch import save_file
from torch import Tensor

from app.card import Card
from app.catalogue import Catalogue, number_of, read_card, versions_of
from app.engine.loader import load
from app.engine.modules import eager
from app.engine.runner import Runner
from app.errors import HearthError
from app.settings import Settings
from app.tasks import TASKS, card_inputs, make_codec, resolve
from app.tuning.archive import remove
from app.tuning.job import headline, version_of
from app.tuning.run import Run
from app.tuning.spec import Spec, one_task
from app.weights import checked, sha256


def save_weights(state: dict[str, Tensor], path: Path) -> str:
    """Write safetensors, beside and renamed; returns their SHA-256."""
    beside = path.with_name(f".{path.name}.part")
    save_file({name: value.detach().contiguous().clone() for name, value in state.items()}, beside, metadata={"format": "pt"})
    beside.chmod(0o644)  # safetensors makes it private; a server under another user reads it too
    digest = sha256(beside)
    beside.replace(path)
    return digest


def write(run: Run, spec: Spec, prepared: Path, result: dict[str, Any], settings: Settings) -> Path:
    """Write the model beside `prepared`; returns its folder."""
    beside = prepared.parent / "model" / spec.name
    remove(beside)
    beside.mkdir(parents=True)
    source = run.source
    run.finish()
    name = "model.safetensors" if source.get("architecture") == "transformers" else "weights.safetensors"
    digest = save_weights(run.module.state_dict(), beside / name)
    for part, path in run.parts.items():
        shutil.copyfile(path, beside / part)
    if run.labels:
        (beside / "labels.txt").write_text("\n".join(run.labels) + "\n", encoding="utf-8")
    sample = next(prepared.glob("sample.*"))
    shutil.copyfile(sample, beside / sample.name)
    (beside / "card.toml").write_text(tomli_w.dumps(_card(run, spec, source | {"sha256": digest}, result)), encoding="utf-8")
    (beside / "expected.json").write_bytes(msgspec.json.encode(run.expected(_says(read_card(beside), run.outputs, settings))))
    (beside / "tuned.json").write_bytes(msgspec.json.encode(result))
    return beside


def publish(run: Run, spec: Spec, prepared: Path, result: dict[str, Any], job: str, settings: Settings) -> str:
    """Write the model and put it into the catalogue; its key. Raises Conflict if the name is another task's by now."""
    made = write(run, spec, prepared, result | {"job": job}, settings)
    one_task(spec.name, run.task or run.card.task, Catalogue.read(settings.home).cards.values())  # another may have been quicker
    return move_in(made, settings.home, spec.name, job)


def move_in(made: Path, home: Path, model: str, job: str) -> str:
    """Into `$HEARTH_HOME/models` as the next version of `model`; its key. What this job put there before is replaced."""
    if before := version_of(home, model, job):
        remove(before)
    number = 1 + max((number_of(key) for key in versions_of(model, Catalogue.read(home).cards)), default=0)
    (home / "models").mkdir(parents=True, exist_ok=True)
    while True:
        try:
            made.rename(home / "models" / f"{model}@{number}")
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another job was quicker, or a broken card lies there
                raise
            number += 1
        else:
            return f"{model}@{number}"


def _card(run: Run, spec: Spec, source: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    card = run.card
    return {
        "task": run.task or card.task,
        "source": source,
        "input": {name: list(value) if isinstance(value, tuple) else value for name, value in card.input.items()},
        "limits": card.limits.model_dump(exclude_none=True),
        "serving": {"precision": card.serving.precision, "resident": True},
        "about": {
            "title": f"{spec.name}, tuned from {card.name}",
            "licence": card.about.licence,
            "accuracy": f"{headline(result['metrics'])} on the held-out part",
        },
    }


def _says(card: Card, outputs: tuple[str, ...], settings: Settings) -> dict[str, Any]:
    """What it answers to its sample: proof that what was written can be served."""
    files = checked(card, settings)
    module = load(card, files)
    program = resolve(TASKS[card.task].program)(card, files)
    codec = make_codec(card, files, program.describe(module))
    decoded = codec.decode(card_inputs(card)[0])
    runner = Runner(eager(program, module), program, lambda *_: None)
    answers = []
    for output in runner.run([one.arrays for one in decoded.samples]):
        if isinstance(output, HearthError):
            raise output
        answers.append({name: output[name] for name in outputs})
    return codec.interpret(decoded, answers)
