"""Speech recognition: what is trained, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from app.card import Card
from app.engine.loader import build, load
from app.tasks.base import Files
from app.tasks.speech.dataset import SpeechDataset
from app.tasks.speech.transcripts import prepared
from app.tasks.speech.utterances import Mix
from app.tuning import lora
from app.tuning.device import accelerator
from app.tuning.run import Run, recipe
from app.tuning.spec import Spec
from app.tuning.trainer import Training

_PARTS = ("config.json", "vocab.json", "preprocessor_config.json", "tokenizer.json")


def begin(card: Card, files: Files, spec: Spec, folder: Path, report: dict[str, Any], *, goes_on: bool = False) -> Run:
    """`tuning/run.py: Begin`, on what `transcripts.prepare` wrote.

    The vocabulary is the base model's, so what that knows is measured first: weights that hear worse are not kept.
    """
    fresh = spec.start == "fresh"
    module: Any = build(card) if fresh else load(card, files)
    module.requires_grad_(spec.method == "full")
    module.lm_head.requires_grad_(True)
    parts = prepared(folder)
    mix = Mix.of([len(wave) for wave, _ in parts["train"]])
    dataset = SpeechDataset(parts["train"], parts["val"], card, files, mix, augment=spec.augment is not False)
    reached: dict[str, float] = {}
    if fresh:
        dataset.prepare(module)
    elif not goes_on:
        with torch.inference_mode():
            reached = dataset.score(module.to(accelerator().device).eval())
    finish = lora.adapt(module.wav2vec2.encoder, spec)
    return Run(
        card=card,
        module=module,
        training=Training(module, dataset, recipe(spec, len(parts["train"])), reached),
        source={"kind": "file", "path": ".", "architecture": "transformers"},
        outputs=("token_ids", "token_scores"),
        expected=lambda answer: {"text": answer["text"]},
        finish=finish,
        parts={name: files[name] for name in _PARTS if name in files},
    )
