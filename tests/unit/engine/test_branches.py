"""A network whose course depends on its input cannot be traced: it must stay eager, whatever is faster."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from app.card import About, Card, ModuleSource
from app.engine.choosing import make
from app.engine.order import Order

pytest.importorskip("openvino")
NETWORK = """
from torch import nn
class Moody(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 3)
    def forward(self, x):
        logits = self.head(x.flatten(1))
        return -logits if bool(x.mean() > 0.5) else logits
"""


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_branch_on_the_input_is_not_frozen(tmp_path: Path):
    (tmp_path / "model.py").write_text(NETWORK)
    torch.manual_seed(0)
    save_file({"head.weight": torch.randn(3, 12), "head.bias": torch.zeros(3)}, tmp_path / "weights.safetensors")
    Image.new("RGB", (2, 2), (10, 20, 30)).save(tmp_path / "sample.png")
    card = Card(
        name="moody",
        folder=tmp_path,
        task="image-classification",
        source=ModuleSource(kind="module", entry="Moody"),
        input={"resize": [2, 2], "crop": 2, "mean": [0, 0, 0], "std": [1, 1, 1]},
        about=About(licence="x"),
    )
    files = {"weights": str(tmp_path / "weights.safetensors")}
    order = Order(card.model_dump_json(), files, 2, "fp32", "openvino", str(tmp_path / "home"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the choosing process does
        choice = make(order)
    assert choice.engine == "eager"
    assert "by tracing" in choice.measured["openvino fp32"]["differs"]
