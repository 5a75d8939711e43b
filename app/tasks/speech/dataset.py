"""Recordings with transcripts, for the trainer: of a job, or the Free Spoken Digit Dataset's zip.

Training utterances are made on the fly (`utterances.py`); those kept out are heard as in service, each alone.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.card import Card
from app.errors import BadInput, HearthError
from app.tasks.base import Batch, Files, device_of
from app.tasks.speech import network
from app.tasks.speech.audio import read_audio
from app.tasks.speech.codec import SpeechCodec, usable
from app.tasks.speech.program import SpeechProgram
from app.tasks.speech.transcripts import spelled
from app.tasks.speech.utterances import RATE, Clip, Mix, Utterances

_WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav$")
_DIGITS = Mix(
    alone=(5120, 6400, 8000),  # the middle half of the clips
    joined=(16000, 24000, 32000),
    most=4,
    speed=(0.7, 1.4),
)


class SpeechDataset:
    """Clips for training and clips kept out."""

    labels: Sequence[str] = ()

    def __init__(
        self, train: Sequence[Clip], held_out: Sequence[Clip], card: Card, files: Files, mix: Mix, *, augment: bool = True
    ) -> None:
        """`files`: of them `vocab.json`, with which every transcript can be spelled. No clip is longer than the card's window."""
        self._utterances = Utterances(train, mix, augment=augment)
        self._held_out = held_out
        self._tokens: dict[str, int] = json.loads(files["vocab.json"].read_text(encoding="utf-8"))
        self._usable = usable(self._tokens)
        self._codec = SpeechCodec(card, files, {})
        self._program = SpeechProgram(card, files)

    @classmethod
    def open(cls, path: Path, card: Card, hold_out: Sequence[str] = (), alone: float = 0.5) -> SpeechDataset:
        """Read a zip of `{digit}_{speaker}_{index}.wav`. `hold_out` names speakers kept out of training; empty: each speaker's
        recordings 0 to 4 are kept out. `alone`: share of the batches whose utterances are single digits without pauses.

        Raises BadInput naming the file and what is wrong with it.
        """
        train: list[Clip] = []
        held_out: list[Clip] = []
        try:
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    if not (match := _NAME.search(name)):
                        continue
                    digit, speaker, index = int(match[1]), match[2], int(match[3])
                    clip = read_audio(archive.read(name), RATE, 60), _WORDS[digit]
                    kept_out = speaker in hold_out if hold_out else index < 5
                    (held_out if kept_out else train).append(clip)
        except (OSError, zipfile.BadZipFile) as error:
            raise BadInput(f"{path} is not a readable zip ({error}); download it again") from error
        except HearthError as error:
            raise BadInput(f"{path}, {name}: {error.detail}") from error
        if not train or not held_out:
            raise BadInput("the split leaves no clips for training or none for measuring; check hold_out in tune.toml")
        return cls(train, held_out, card, {"vocab.json": card.folder / "vocab.json"}, replace(_DIGITS, share_alone=alone))

    def steps(self, batch_size: int) -> int:
        """Batches in one epoch."""
        return self._utterances.steps(batch_size)

    def batches(self, batch_size: int, rng: torch.Generator, epoch: int) -> Iterator[Batch]:
        """`waveform`, `samples` as the program collates them; `target` int64 [sum of lengths], `lengths` int64 [B]."""
        random = np.random.default_rng(int(torch.randint(2**31, (), generator=rng)))
        for _ in range(self.steps(batch_size)):
            yield self._collate(self._utterances.batch(batch_size, random))

    def prepare(self, module: nn.Module) -> None:
        """Start the first convolution as windowed cosines in four phases along the mel scale (arXiv:1711.01161); it learns on."""
        first: Any = cast(Any, module).wav2vec2.feature_extractor.conv_layers[0].conv
        count, _, width = first.weight.shape
        mel = torch.linspace(2595 * math.log10(1 + 80 / 700), 2595 * math.log10(1 + 4000 / 700), count // 4)
        hertz = 700 * (10 ** (mel / 2595) - 1)
        time = (torch.arange(width) - (width - 1) / 2) / RATE
        phase = torch.arange(4) * (math.pi / 2)
        waves = torch.cos(2 * math.pi * hertz[:, None, None] * time + phase[:, None]).flatten(0, 1) * torch.hann_window(width)
        with torch.no_grad():
            first.weight[: len(waves), 0] = waves / waves.norm(dim=1, keepdim=True)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Connectionist temporal classification (Graves et al. 2006)."""
        logits, frames = network.logits(module, batch)
        return functional.ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            batch["target"],
            frames,
            batch["lengths"],
            blank=self._tokens["<pad>"],
            zero_infinity=True,
        )

    def score(self, module: nn.Module) -> dict[str, float]:
        """Word and character error rate on the clips kept out, each heard alone; the loss would take as long again."""
        errors = words = wrong = letters = 0
        for wave, text in self._held_out:
            heard = self.transcribe(module, wave)
            errors += edits(heard.split(), text.split())
            words += len(text.split())
            wrong += edits(heard, text)
            letters += len(text)
        return {"word_error_rate": errors / words, "character_error_rate": wrong / letters}

    def transcribe(self, module: nn.Module, wave: np.ndarray) -> str:
        """What the server would answer."""
        arrays = self._codec._sample(wave).arrays
        with torch.inference_mode():
            batch = {
                name: torch.from_numpy(array).to(device_of(module)) for name, array in self._program.collate([arrays]).items()
            }
            found = self._program.forward(self._program.networks(module), batch)
        (output,) = self._program.split({name: tensor.cpu().numpy() for name, tensor in found.items()}, [arrays])
        return "".join(letter for letter, *_ in self._codec._letters(output["token_ids"], output["token_scores"])).strip()

    def _collate(self, clips: Sequence[Clip]) -> Batch:
        arrays = [self._codec._sample(wave).arrays for wave, _ in clips]
        targets = [[self._tokens[token] for token in spelled(text, self._usable)] for _, text in clips]
        return {
            **network.pad(arrays),
            "target": torch.tensor([index for target in targets for index in target]),
            "lengths": torch.tensor([len(target) for target in targets]),
        }


def edits(heard: Sequence[Any], said: Sequence[Any]) -> int:
    """Insertions, deletions and substitutions that turn one sequence into the other (Levenshtein 1966)."""
    row = list(range(len(said) + 1))
    for i, left in enumerate(heard, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(said, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]
