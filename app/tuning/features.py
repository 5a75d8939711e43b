"""Training the head alone: what the rest of the network sees of each sample is computed once, and then only a layer learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.tasks.base import Batch, device_of
from app.tasks.image.network import ImageNetwork
from app.tasks.measures import beside
from app.tuning.run import recipe
from app.tuning.spec import Spec, filled
from app.tuning.trainer import Training

_ROWS = 64  # pictures per forward


class Features:
    """A `Dataset` of vectors, for the last linear layer of a classifier."""

    def __init__(
        self, train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], labels: Sequence[str], label_smoothing: float
    ) -> None:
        """float32 [N, D] and int64 [N] each."""
        self.labels = labels
        self._train = train
        self._held_out = held_out
        self._label_smoothing = label_smoothing

    def steps(self, batch_size: int) -> int:
        """Batches in one epoch; the last, short one is left out."""
        return len(self._train[1]) // batch_size

    def batches(self, batch_size: int, rng: torch.Generator, epoch: int) -> Iterator[Batch]:
        """Shuffled: `features` float32 [B, D], `target` int64 [B]."""
        vectors, targets = self._train
        order = torch.randperm(len(targets), generator=rng)
        for index in order[: self.steps(batch_size) * batch_size].view(-1, batch_size):
            yield {"features": vectors[index], "target": targets[index]}

    def prepare(self, module: nn.Module) -> None:
        """Nothing to know before the first step."""

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(module(batch["features"]), batch["target"], label_smoothing=self._label_smoothing)

    def score(self, module: nn.Module) -> dict[str, float]:
        """Top-1 accuracy on what was kept out, and what `measures.beside` adds."""
        vectors, targets = self._held_out
        logits = module(vectors.to(device_of(module))).cpu()
        return {"accuracy": float((logits.argmax(1) == targets).float().mean()), **beside(logits, targets)}


def head_training(
    classifier: nn.Linear, vectors: Mapping[str, tuple[Tensor, Tensor]], labels: Sequence[str], spec: Spec, task: str
) -> Training:
    """Of the last layer alone, on the vectors of `train` and `val`: as the spec says if that is all it wants, else as usual."""
    wanted = spec
    if spec.method != "head":
        wanted = filled(Spec(name=spec.name, base=spec.base, method="head", metric=spec.metric, seed=spec.seed), task)
    dataset = Features(vectors["train"], vectors["val"], labels, wanted.label_smoothing or 0.0)
    return Training(classifier, dataset, recipe(wanted, len(vectors["train"][1])))


@torch.inference_mode()
def features(network: ImageNetwork, pixels: Tensor) -> Tensor:
    """uint8 [N, H, W, C] → what the classifier sees, float32 [N, D], on the CPU; computed where the network is."""
    device = device_of(network)
    seen = [network(pixels[start : start + _ROWS].to(device))[1].cpu() for start in range(0, len(pixels), _ROWS)]
    return torch.cat(seen).clone()
