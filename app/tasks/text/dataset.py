"""Texts to learn from, for the trainer: with labels, as scored pairs, or as triplets. They come as token ids (`examples.py`).

Texts of nearly one length make a batch, so that hardly anything is padded; which batch comes when is drawn anew for each epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.tasks.base import Arrays, Batch, device_of
from app.tasks.measures import beside
from app.tasks.text.network import PlainTextEncoder, TextClassifier
from app.tasks.text.program import TextProgram

_POOL = 32  # batches whose samples are sorted by length together
_SCORED = 128  # texts per forward when nothing is learnt
_COMPARED = 32  # samples that one value of the held-out loss compares with each other: a usual batch
_SCALE = 20.0  # of cosines in both losses, as in Sentence-BERT's examples and in CoSENT's

Part = Mapping[str, np.ndarray]
"""`ids`, `offsets`, `targets` of `examples.py: prepared`."""


class Texts:
    """One part: samples of so many texts each."""

    def __init__(self, part: Part) -> None:
        self._ids = part["ids"].astype(np.int64)
        self._offsets = part["offsets"]
        self.targets = torch.from_numpy(part["targets"])
        self.each = (len(self._offsets) - 1) // max(1, len(self.targets))
        lengths = np.diff(self._offsets).reshape(-1, self.each)
        self.lengths = torch.from_numpy(lengths.max(1))

    def __len__(self) -> int:
        return len(self.targets)

    def texts(self, samples: Sequence[int]) -> list[Arrays]:
        """All first texts, then all second ones, and so on."""
        places = [sample * self.each + text for text in range(self.each) for sample in samples]
        return [{"input_ids": self._ids[self._offsets[place] : self._offsets[place + 1]]} for place in places]


class TextDataset:
    """What the three kinds have in common. `module` is a `TextClassifier`, or an encoder of transformers."""

    labels: Sequence[str] = ()

    def __init__(self, program: TextProgram, train: Texts, held_out: Texts, *, per_epoch: int, seed: int) -> None:
        """`per_epoch`: samples of an epoch; the next one takes the next so many, in an order drawn by `seed`."""
        self._program = program
        self._train = train
        self._held_out = held_out
        self._per_epoch = min(len(train), per_epoch)
        self._order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))

    def steps(self, batch_size: int) -> int:
        """Batches in one epoch; the last, short one is left out."""
        return self._per_epoch // batch_size

    def batches(self, batch_size: int, rng: torch.Generator, epoch: int) -> Iterator[Batch]:
        """`input_ids`, `positions`, `texts` int64 [texts, L], `pooling` float32 [texts, texts * L], `target` float32 [B]."""
        places = (epoch * self._per_epoch + torch.arange(self._per_epoch)) % len(self._order)
        drawn = self._order[places][torch.randperm(self._per_epoch, generator=rng)][: self.steps(batch_size) * batch_size]
        batches: list[Tensor] = []
        for pool in torch.split(drawn, batch_size * _POOL):
            batches += torch.split(pool[self._train.lengths[pool].argsort(stable=True)], batch_size)
        for place in torch.randperm(len(batches), generator=rng).tolist():
            yield self._batch(self._train, batches[place].tolist())

    def prepare(self, module: nn.Module) -> None:
        """Nothing to know before the first step."""

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Each kind has its own."""
        raise NotImplementedError

    def score(self, module: nn.Module) -> dict[str, float]:
        """Each kind has its own."""
        raise NotImplementedError

    def vectors(self, module: nn.Module, batch: Batch) -> Tensor:
        """float32 [texts, D], as in service. Only the encoder itself runs in the precision of the training."""
        encoder = PlainTextEncoder(module.encoder if isinstance(module, TextClassifier) else module)
        hidden = encoder(batch["input_ids"], batch["positions"], batch["texts"])
        with torch.autocast(hidden.device.type, enabled=False):
            pooled: Tensor = batch["pooling"] @ hidden.flatten(0, 1)
        return pooled

    def held_out(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """What is kept out: vectors float32 [N, texts, D], targets [N]."""
        return self.embedded(module, self._held_out)

    def learnt(self, module: nn.Module, most: int) -> tuple[Tensor, Tensor]:
        """The same of the first epoch's samples, but of so many at most."""
        return self.embedded(module, self._train, self._order[: min(self._per_epoch, most)])

    @torch.no_grad()
    def embedded(self, module: nn.Module, part: Texts, samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Vectors float32 [N, texts, D] and targets [N] of these samples, or of all; on the CPU, computed where the module is."""
        device = device_of(module)
        samples = torch.arange(len(part)) if samples is None else samples
        order = part.lengths[samples].argsort(stable=True)
        found: list[Tensor] = []
        for chunk in torch.split(order, max(1, _SCORED // part.each)):
            batch = {name: value.to(device) for name, value in self._batch(part, samples[chunk].tolist()).items()}
            found.append(torch.stack(self.vectors(module, batch).cpu().chunk(part.each), 1))
        return torch.cat(found)[order.argsort()], part.targets[samples]

    def _batch(self, part: Texts, samples: Sequence[int]) -> Batch:
        arrays = self._program.collate(part.texts(samples))
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | {"target": part.targets[samples]}


class Labelled(TextDataset):
    """Texts with classes, for `TextClassifier`."""

    def __init__(
        self,
        program: TextProgram,
        train: Texts,
        held_out: Texts,
        labels: Sequence[str],
        *,
        label_smoothing: float,
        **options: Any,
    ) -> None:
        super().__init__(program, train, held_out, **options)
        self.labels = labels
        self._label_smoothing = label_smoothing

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy."""
        classifier: Any = module.classifier
        vectors = self.vectors(module, batch)
        with torch.autocast(vectors.device.type, enabled=False):
            return functional.cross_entropy(classifier(vectors), batch["target"].long(), label_smoothing=self._label_smoothing)

    def score(self, module: nn.Module) -> dict[str, float]:
        """Top-1 accuracy on the texts that are kept out, and what `measures.beside` adds."""
        classifier: Any = module.classifier
        vectors, targets = self.held_out(module)
        logits = classifier(vectors[:, 0].to(device_of(module))).cpu()
        return {"accuracy": float((logits.argmax(1) == targets).float().mean()), **beside(logits, targets)}


class Scored(TextDataset):
    """Pairs of texts and how alike they are: the order of the scores is learnt (CoSENT, kexue.fm/archives/8847)."""

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """log(1 + Σ exp(cosine of the less alike - cosine of the more alike)), over all pairs of pairs."""
        one, other = self.vectors(module, batch).chunk(2)
        return _disorder(functional.cosine_similarity(one, other), batch["target"])

    def score(self, module: nn.Module) -> dict[str, float]:
        """Spearman's correlation of cosines and scores, on the pairs that are kept out; and the loss of them."""
        vectors, targets = self.held_out(module)
        cosines = functional.cosine_similarity(vectors[:, 0], vectors[:, 1])
        losses = [_disorder(cosines[some], targets[some]) for some in _compared(len(targets))]
        return {"spearman": spearman(cosines.numpy(), targets.numpy()), "loss": float(torch.stack(losses).mean())}


class Triplets(TextDataset):
    """A text, one that is like it, and one that is not: to be told among all of the batch (arXiv:1705.00652)."""

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the own positive among all positives and all negatives."""
        return _confusion(*functional.normalize(self.vectors(module, batch)).chunk(3))

    def score(self, module: nn.Module) -> dict[str, float]:
        """How many anchors are nearer to their positive than to their negative, of those kept out; and the loss of them."""
        vectors = self.held_out(module)[0]
        anchors, positives, negatives = vectors.unbind(1)
        nearer = functional.cosine_similarity(anchors, positives) > functional.cosine_similarity(anchors, negatives)
        losses = [_confusion(*functional.normalize(vectors[some], dim=2).unbind(1)) for some in _compared(len(vectors))]
        return {"accuracy": float(nearer.float().mean()), "loss": float(torch.stack(losses).mean())}


def _disorder(cosines: Tensor, scores: Tensor) -> Tensor:
    """CoSENT's loss of pairs, [N] each."""
    cosines = _SCALE * cosines
    worse = (cosines[:, None] - cosines[None, :])[scores[:, None] < scores[None, :]]
    return torch.cat([worse.new_zeros(1), worse]).logsumexp(0)


def _confusion(anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """The loss of triplets, [N, D] of length 1 each."""
    with torch.autocast(anchors.device.type, enabled=False):
        alike = _SCALE * anchors @ torch.cat([positives, negatives]).T
    return functional.cross_entropy(alike, torch.arange(len(anchors), device=anchors.device))


def _compared(count: int) -> list[slice]:
    """So many samples in groups of about a batch, each from all over them: tables are often sorted."""
    groups = -(-count // _COMPARED)
    return [slice(first, None, groups) for first in range(groups)]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of ranks; equal values share the mean of theirs. 0 where all are equal."""
    first, second = _ranks(one), _ranks(other)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: np.ndarray = (ends - (counts - 1) / 2)[place]
    return ranks
