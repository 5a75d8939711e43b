"""Texts to learn from: batches of nearly one length, the losses, the metrics, and runs that end alike wherever they were cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from app.card import Card
from app.engine.loader import without_pooler
from app.tasks.text.dataset import Labelled, Scored, TextDataset, Texts, Triplets, spearman
from app.tasks.text.network import TextClassifier
from app.tasks.text.program import TextProgram
from app.tuning import lora
from app.tuning.trainer import Recipe, Training

CONFIG = BertConfig(
    vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=32
)


def card(**source: Any) -> Card:
    return Card(
        name="toy",
        folder=Path("/nowhere"),
        task="text-classification",
        source={"kind": "file"} | source,
        about={"licence": "x"},
    )


def encoder() -> nn.Module:
    torch.manual_seed(3)
    return without_pooler(BertModel(CONFIG))


def classifier() -> TextClassifier:
    return TextClassifier(encoder(), 2)


def texts(count: int, each: int, seed: int = 0) -> Texts:
    """Of 3 to 12 tokens. The second token says the class, 5 or 6; texts that are alike have the same."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, 2, count)
    ids = []
    for target in targets:
        for text in range(each):
            one = random.integers(7, 20, random.integers(3, 13))
            one[1] = 5 + (target if each == 1 else text == 2 or (each == 2 and text == 1 and not target))
            ids.append(one)
    offsets = np.cumsum([0, *map(len, ids)])
    return Texts({"ids": np.concatenate(ids).astype(np.int32), "offsets": offsets, "targets": targets.astype(np.float32)})


def program() -> TextProgram:
    made = TextProgram(card(), {})
    made.padded = True
    return made


def dataset(kind: type[TextDataset], per_epoch: int = 48) -> TextDataset:
    each = {Labelled: 1, Scored: 2, Triplets: 3}[kind]
    options: dict[str, Any] = {"labels": ("no", "yes"), "label_smoothing": 0.1} if kind is Labelled else {}
    return kind(program(), texts(64, each), texts(40, each, 1), per_epoch=per_epoch, seed=0, **options)


@pytest.mark.parametrize(("kind", "each"), [(Labelled, 1), (Scored, 2), (Triplets, 3)])
def test_an_epoch_is_so_many_samples_in_batches_of_nearly_one_length(kind: type[TextDataset], each: int):
    found = dataset(kind)
    assert found.steps(8) == 6
    batches = list(found.batches(8, torch.Generator().manual_seed(0), 0))
    assert [batch["input_ids"].shape[0] for batch in batches] == [8 * each] * 6
    filled = sum(int((batch["texts"] < 8 * each).sum()) for batch in batches) / sum(batch["texts"].numel() for batch in batches)
    assert filled > {1: 0.85, 2: 0.7, 3: 0.6}[each]


def test_epochs_go_on_where_the_last_one_ended_and_all_samples_come():
    found = dataset(Labelled)
    firsts = [
        row[row > 0].tolist()
        for epoch in range(4)
        for batch in found.batches(8, torch.Generator().manual_seed(epoch), epoch)
        for row in batch["input_ids"]
    ]
    counts = {tuple(row): firsts.count(row) for row in firsts}
    assert len(firsts) == 4 * 48 and set(counts.values()) == {3}, "48 of 64 samples four times are all three times"


@pytest.mark.parametrize("kind", [Labelled, Scored, Triplets])
def test_the_loss_falls_and_the_metric_rises(kind: type[TextDataset]):
    module = classifier() if kind is Labelled else encoder()
    found = dataset(kind)
    first = found.score(module.eval())
    before = next(iter(first.values()))
    training = Training(module, found, Recipe(epochs=20, batch_size=16, optimizer="adamw", learning_rate=0.01, seed=1))
    losses = [progress.loss for progress in training]
    assert np.mean(losses[-3:]) < 0.85 * np.mean(losses[:3])
    assert next(iter(training.metrics.values())) > max(0.7, before)
    assert training.metrics["loss"] < first["loss"]


@pytest.mark.parametrize("after", [1, 3, 4, 8])
@pytest.mark.parametrize(
    ("kind", "build"),
    [(Labelled, classifier), (Scored, encoder), (Triplets, encoder), (Labelled, lambda: adapted(classifier()))],
    ids=["labels", "pairs", "triplets", "labels by LoRA"],
)
def test_a_run_that_was_cut_after_any_step_ends_with_the_same_weights(
    kind: type[TextDataset], build: Callable[[], nn.Module], after: int, tmp_path: Path
):
    recipe = Recipe(epochs=3, batch_size=16, optimizer="adamw", learning_rate=0.01, precision="bf16")
    whole = Training(build(), dataset(kind), recipe)
    undisturbed = [(one.step, one.loss, one.metrics) for one in whole]
    cut = Training(build(), dataset(kind), recipe)
    for progress in cut:
        if progress.step == after:
            torch.save(cut.state(), tmp_path / "state.pt")
            break
    other = build()
    torch.manual_seed(99)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    again = Training(other, dataset(kind), recipe)
    again.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [(one.step, one.loss, one.metrics) for one in again] == undisturbed[after:]
    assert all(map(torch.equal, whole.module.state_dict().values(), again.module.state_dict().values()))


def adapted(module: TextClassifier) -> TextClassifier:
    lora.inject(module.encoder, 4)
    return module


def test_lora_teaches_its_matrices_and_the_head_alone_and_leaves_plain_weights():
    module, names = adapted(classifier()), set(classifier().state_dict())
    assert not names >= set(module.state_dict())
    frozen = module.encoder.embeddings.word_embeddings.weight.clone()
    list(Training(module, dataset(Labelled), Recipe(epochs=2, batch_size=16, optimizer="adamw", learning_rate=0.01)))
    assert torch.equal(frozen, module.encoder.embeddings.word_embeddings.weight)
    before = dataset(Labelled).held_out(module)[0]
    lora.merge(module)
    assert set(module.state_dict()) == names
    torch.testing.assert_close(dataset(Labelled).held_out(module)[0], before, rtol=1e-4, atol=1e-5)


def test_what_is_kept_out_comes_in_its_own_order():
    found, module = dataset(Labelled), encoder().eval()
    vectors, targets = found.held_out(module)
    part = texts(40, 1, 1)
    assert torch.equal(targets, part.targets)
    for place in (0, 17, 39):
        with torch.inference_mode():
            hidden = module(torch.from_numpy(part.texts([place])[0]["input_ids"])[None]).last_hidden_state
        torch.testing.assert_close(vectors[place, 0], hidden[0].mean(0), rtol=1e-4, atol=1e-5)


def test_spearman_ranks_with_ties():
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 30.0])) == pytest.approx(1.0)
    # Ranks 2, 3.5, 3.5, 5, 1 and 1.5, 3, 4.5, 4.5, 1.5.
    assert spearman(np.array([1.0, 2, 2, 3, 0]), np.array([5.0, 6, 7, 7, 5])) == pytest.approx(8.25 / (9.5 * 9) ** 0.5)
    assert spearman(np.array([1.0, 2.0]), np.array([3.0, 3.0])) == 0.0
