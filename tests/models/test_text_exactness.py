"""Text embeddings against transformers with mean pooling: the real MiniLM, and tiny encoders of many kinds, random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from app.catalogue import Catalogue
from app.engine.compute import compiled
from app.engine.loader import load
from app.engine.modules import compile_into, eager, record
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


PACKED = ["bert", "electra", "distilbert", "roberta", "xlm-roberta", "camembert"]
PLAIN = ["mpnet", "modernbert"]
AFTER_PADDING = {"roberta", "xlm-roberta", "camembert", "mpnet"}


def tiny(kind: str) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    options |= {"vocab_size": 100, "max_position_embeddings": 64, "pad_token_id": 1 if kind in AFTER_PADDING else 0}
    if kind == "distilbert":
        options["hidden_dim"] = options.pop("intermediate_size")
    if kind == "modernbert":  # a window shorter than the texts, on two layers of three
        options |= {"local_attention": 8, "bos_token_id": 2, "eos_token_id": 2, "cls_token_id": 2, "sep_token_id": 2}
    model = AutoModel.from_config(AutoConfig.for_model(kind, **options)).eval()
    with torch.no_grad():  # fresh weights are so small that a wrong position would hardly show
        for name, weights in model.named_parameters():
            if weights.dim() == 2 and "LayerNorm" not in name:
                weights.normal_(0, 0.3)
    return model


def made(kind: str, folder: Path, pooling: str = "mean") -> TextProgram:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return TextProgram(CARD.model_copy(update={"input": {"pooling": pooling}}), {"config.json": folder / "config.json"})


def ids(*lengths: int) -> list[Any]:
    return [{"input_ids": np.random.default_rng(n).integers(3, 100, n).astype(np.int64)} for n in lengths]


def collated(program: TextProgram, samples: list[Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in program.collate(samples).items()}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", PACKED + PLAIN)
def test_each_text_of_a_mixed_batch_gets_what_the_model_says_of_it_alone(kind: str, pooling: str, tmp_path: Path):
    model, program, samples = tiny(kind), made(kind, tmp_path, pooling), ids(3, 20, 7, 50, 1)
    assert program.padded == (kind in PLAIN)
    for batch in ([samples[1]], samples):
        with torch.inference_mode():
            together = program.forward(program.networks(model), collated(program, batch))["embedding"]
            for row, sample in enumerate(batch):
                hidden = model(input_ids=torch.from_numpy(sample["input_ids"])[None]).last_hidden_state[0]
                reference = hidden.mean(0) if pooling == "mean" else hidden[0]
                assert float((together[row] - reference).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", PACKED + PLAIN)
def test_a_text_may_be_as_long_as_the_model_has_positions(kind: str, tmp_path: Path):
    model, program = tiny(kind), made(kind, tmp_path)
    most = program.describe(model)["max_tokens"]
    assert most == (62 if kind in AFTER_PADDING else 64)
    with torch.inference_mode():
        found = program.forward(program.networks(model), collated(program, ids(most, 5)))["embedding"]
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("kind", PACKED + PLAIN)
def test_the_padding_of_cuda_graphs_changes_nothing(kind: str, tmp_path: Path):
    program = made(kind, tmp_path)
    network: Any = program.networks(tiny(kind))["encoder"]
    batch = collated(program, ids(3, 20, 7, 30, 1, 2))
    arguments = [batch[name] for name in ("input_ids", "positions", "texts")]
    rows, length = arguments[0].shape
    padded = [
        torch.nn.functional.pad(argument, (0, 9, 0, 2), value=padding)
        for argument, padding in zip(arguments, network.paddings, strict=True)
    ]
    real = batch["texts"] < 6
    with torch.inference_mode():
        assert float((network(*padded)[:rows, :length] - network(*arguments))[real].abs().max()) < 1e-4


@pytest.mark.filterwarnings("ignore")  # OpenVINO traces, which PyTorch calls deprecated
@pytest.mark.parametrize("kind", PACKED)
def test_compiled_by_openvino_each_text_gets_what_the_model_says_of_it_alone(kind: str, tmp_path: Path):
    """Also in batches of other shapes than those that were traced."""
    pytest.importorskip("openvino")
    model, program, traced = tiny(kind), made(kind, tmp_path), ids(3, 20, 7, 50, 1)
    plain = eager(program, model)
    compile_into(tmp_path, "openvino", plain.networks, record(program, plain, traced))  # type: ignore[arg-type]
    runner = Runner(compiled("openvino", "fp32", tmp_path, list(plain.networks), 1), program, lambda *_: None)
    for batch in (traced[1:2], traced, ids(30, 2, 31, 11, 12, 13, 60)):
        outputs: list[Any] = runner.run(batch)
        for sample, output in zip(batch, outputs, strict=True):
            with torch.inference_mode():
                alone = model(input_ids=torch.from_numpy(sample["input_ids"])[None]).last_hidden_state.mean(1)[0].numpy()
            np.testing.assert_allclose(output["embedding"], alone, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_windows_are_not_traced_because_openvino_makes_nan_of_padding_out_of_their_reach(tmp_path: Path):
    program = made("modernbert", tmp_path)
    batch = collated(program, ids(3, 20))
    arguments = tuple(batch[name] for name in ("input_ids", "positions", "texts"))
    with pytest.raises(NotImplementedError, match="windows"):
        torch.jit.trace(program.networks(tiny("modernbert"))["encoder"], arguments)
