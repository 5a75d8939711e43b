"""A classifier in service: read from one file, packed like embeddings, and the same by whatever computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from app.card import Card
from app.engine.agreement import agree
from app.engine.compute import compiled
from app.engine.loader import load, without_pooler
from app.engine.modules import compile_into, eager, record
from app.engine.runner import Runner
from app.errors import ModelFailed
from app.tasks.base import Arrays, Files
from app.tasks.text.network import TextClassifier
from app.tasks.text.program import TextClassifierProgram

CONFIG = BertConfig(
    vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=32
)
TEXTS: list[Arrays] = [{"input_ids": np.random.default_rng(n).integers(4, 20, n)} for n in (3, 20, 7, 12, 9)]


def card(**source: Any) -> Card:
    values: dict[str, Any] = {"source": {"kind": "file"} | source, "about": {"licence": "x"}}
    return Card(name="toy", folder=Path("/nowhere"), task="text-classification", **values)


@pytest.fixture
def module() -> TextClassifier:
    torch.manual_seed(3)
    return TextClassifier(without_pooler(BertModel(CONFIG)), 3).eval()


@pytest.fixture
def files(module: TextClassifier, tmp_path: Path) -> Files:
    with torch.no_grad():
        module.classifier.weight.mul_(20)  # scores that differ
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    CONFIG.save_pretrained(tmp_path)
    return {name: tmp_path / name for name in ("config.json", "model.safetensors")}


def test_a_mixed_batch_says_of_each_text_what_the_network_says_of_it_alone(module: TextClassifier, files: Files):
    program, read = TextClassifierProgram(card(classes=3), files), load(card(classes=3), files)
    assert not program.padded and program.collate(TEXTS)["input_ids"].shape[0] < len(TEXTS), "packed"
    outputs: Any = Runner(eager(program, read), program, lambda *_: None).run(TEXTS)
    for text, output in zip(TEXTS, outputs, strict=True):
        with torch.inference_mode():
            hidden = module.encoder(input_ids=torch.from_numpy(text["input_ids"])[None]).last_hidden_state
            alone = module.classifier(hidden.mean(1)).softmax(1)[0].numpy()
        assert output.keys() == {"scores"}
        np.testing.assert_allclose(output["scores"], alone, atol=1e-5)


def test_what_it_tells_of_itself(files: Files):
    read = load(card(classes=3), files)
    parameters = sum(parameter.numel() for parameter in read.parameters())
    told = TextClassifierProgram(card(classes=3), files).describe(read)
    assert told == {"classes": 3, "dimensions": 16, "max_tokens": 32, "parameters": parameters}


@pytest.mark.filterwarnings("ignore")  # OpenVINO traces, which PyTorch calls deprecated
def test_openvino_says_the_same(files: Files, tmp_path: Path):
    pytest.importorskip("openvino")
    program, read = TextClassifierProgram(card(classes=3), files), load(card(classes=3), files)
    plain = eager(program, read)
    compile_into(tmp_path, "openvino", plain.networks, record(program, plain, TEXTS))  # type: ignore[arg-type]
    fast = compiled("openvino", "fp32", tmp_path, list(plain.networks), 1)
    runners = [Runner(compute, program, lambda *_: None) for compute in (plain, fast)]
    for batch in (TEXTS, TEXTS[1:2]):
        expected: Any = runners[0].run(batch)
        assert agree(expected, runners[1].run(batch)) == ""


def test_weights_that_are_no_classifiers_are_told(files: Files):
    with pytest.raises(ModelFailed, match=r"source.classes"):
        load(card(), files)
    with pytest.raises(ModelFailed, match="does not fit the network"):
        load(card(classes=4), files)
