"""Text embeddings against transformers with mean pooling: the real MiniLM, and tiny BERT and RoBERTa with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from app.catalogue import Catalogue
from app.engine.compute import eager
from app.engine.loader import load
from app.engine.runner import Runner
from app.settings import Settings
from app.tasks import make_codec
from app.tasks.text.codec import TextCodec
from app.tasks.text.program import TextProgram
from app.weights import locate

CARD = Catalogue.read(Path("/nowhere")).named("all-minilm-l6-v2")
FILES = locate(CARD, Settings()) or {}


@pytest.fixture(scope="module")
def texts(shared: Path) -> list[str]:
    lines = (shared / "text" / "sentences.txt").read_text().splitlines()
    return [*lines[:1800:12], *[" ".join(line.split()[:150]) for line in lines[1800::10]]]


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(eager(TextProgram(CARD, FILES), load(CARD, FILES)), TextProgram(CARD, FILES), lambda *_: None)


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    made = make_codec(CARD, FILES, {"max_tokens": 256})
    assert isinstance(made, TextCodec)
    return made


def vectors(runner: Runner, samples: Sequence[Any], size: int) -> np.ndarray:
    found: list[Any] = []
    for start in range(0, len(samples), size):
        found += runner.run(samples[start : start + size])
    return np.stack([output["embedding"] for output in found])


def test_embeddings_equal_transformers_with_mean_pooling(texts: list[str], runner: Runner, codec: TextCodec):
    """The lowest cosine over all texts: 1 - 2e-7."""
    folder = FILES["config.json"].parent
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(FILES["tokenizer.json"])), pad_token="[PAD]")
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    samples = [codec.decode(text, truncate=True).samples[0].arrays for text in texts]
    ours = vectors(runner, samples, 16)
    for text, vector in zip(texts, ours, strict=True):
        encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.inference_mode():
            hidden = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).last_hidden_state
        reference = hidden[0].mean(0).numpy()
        cosine = vector @ reference / np.linalg.norm(vector) / np.linalg.norm(reference)
        assert cosine > 0.999999


def test_an_answer_does_not_depend_on_its_neighbours(texts: list[str], runner: Runner, codec: TextCodec):
    samples = [codec.decode(text, truncate=True).samples[0].arrays for text in texts[:64]]
    assert np.abs(vectors(runner, samples, 1) - vectors(runner, samples, 64)).max() <= 1e-5


def test_the_answer_ranks_meaning_as_people_do(shared: Path, runner: Runner, codec: TextCodec):
    """STS-B, first 300 test pairs: the published model reaches 82 on all of them (Spearman)."""
    rows = [line.split("\t") for line in (shared / "text" / "stsb" / "test.tsv").read_text().splitlines()[1:301]]
    samples = [codec.decode(text, truncate=True).samples[0].arrays for row in rows for text in row[1:3]]
    found = vectors(runner, samples, 64)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    cosines = (found[::2] * found[1::2]).sum(1)
    scores = np.array([float(row[0]) for row in rows])
    ranks = [np.argsort(np.argsort(values)) for values in (cosines, scores)]
    assert np.corrcoef(*ranks)[0, 1] > 0.78


def tiny(kind: str) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    options |= {"vocab_size": 100, "max_position_embeddings": 64}
    model = BertModel(BertConfig(**options)) if kind == "bert" else RobertaModel(RobertaConfig(pad_token_id=1, **options))
    return model.eval()


def ids(*lengths: int) -> list[Any]:
    return [{"input_ids": np.random.default_rng(n).integers(3, 100, n).astype(np.int64)} for n in lengths]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_padding_changes_nothing_in_bert_and_roberta(kind: str):
    model, program, samples = tiny(kind), TextProgram(CARD, {}), ids(3, 20, 7, 50, 1)
    with torch.inference_mode():
        together = program.forward(program.networks(model), program.collate(samples))["embedding"]
        for row, sample in enumerate(samples):
            reference = model(input_ids=torch.from_numpy(sample["input_ids"])[None]).last_hidden_state[0].mean(0)
            assert float((together[row] - reference).abs().max()) < 1e-5
    assert program.describe(model)["max_tokens"] == (64 if kind == "bert" else 62)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_padding_of_cuda_graphs_changes_nothing(kind: str):
    program, network = TextProgram(CARD, {}), TextProgram(CARD, {}).networks(tiny(kind))["encoder"]
    batch = program.collate(ids(3, 20, 7, 30, 1, 2))
    arguments = [batch[name] for name in ("input_ids", "positions", "texts")]
    rows, length = arguments[0].shape
    padded = [
        torch.nn.functional.pad(argument, (0, 9, 0, 2), value=padding)
        for argument, padding in zip(arguments, network.paddings, strict=True)
    ]
    with torch.inference_mode():
        assert float((network(*padded)[:rows, :length] - network(*arguments)).abs().max()) < 1e-5


def test_the_first_token_of_each_packed_text_can_stand_for_it():
    model, samples = tiny("bert"), ids(3, 20, 7, 50, 1)
    program = TextProgram(CARD.model_copy(update={"input": {"pooling": "cls"}}), {})
    with torch.inference_mode():
        found = program.forward(program.networks(model), program.collate(samples))["embedding"]
        for row, sample in enumerate(samples):
            reference = model(input_ids=torch.from_numpy(sample["input_ids"])[None]).last_hidden_state[0, 0]
            assert float((found[row] - reference).abs().max()) < 1e-5
