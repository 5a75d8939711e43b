"""Weights and network must fit, whatever kind of card it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from app.card import Card
from app.engine.loader import load
from app.errors import ModelFailed


@pytest.fixture
def speech(tmp_path: Path) -> tuple[Card, Path]:
    config = Wav2Vec2Config(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,),
        conv_kernel=(10,),
        conv_stride=(5,),
        num_feat_extract_layers=1,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2ForCTC(config).save_pretrained(tmp_path)
    source, about = {"kind": "file"}, {"licence": "x"}
    return Card(name="m", folder=tmp_path, task="speech-recognition", source=source, about=about), tmp_path


@pytest.mark.parametrize("gone", ["lm_head.weight", "wav2vec2.encoder.layers.0.attention.q_proj.bias"])
def test_a_missing_tensor_is_named_and_not_made_up(speech: tuple[Card, Path], gone: str):
    card, folder = speech
    files = {"config.json": folder / "config.json"}
    weights = load_file(folder / "model.safetensors")
    load(card, files)
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFailed, match=gone):
        load(card, files)


def test_what_only_training_needs_may_be_missing(speech: tuple[Card, Path]):
    card, folder = speech
    weights = load_file(folder / "model.safetensors")
    weights.pop("wav2vec2.masked_spec_embed", None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert not load(card, {"config.json": folder / "config.json"}).training
