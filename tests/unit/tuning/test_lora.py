"""LoRA beside the layers of image classifiers. That of encoders is in `tasks/text/test_dataset.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.nn.utils import weight_norm
from torchvision import models

from app.catalogue import read_card
from app.engine.loader import build
from app.errors import Invalid
from app.tasks.image.network import classifier
from app.tuning import lora
from app.tuning.process import attempt
from app.tuning.store import Store
from tests.unit.tuning.test_own_networks import characters, own_network
from tests.unit.tuning.test_tuner import a_job, kill

RANK = 2


class Attending(nn.Module):
    """Two layers that can have matrices, and what cannot. The head's name ends like another's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.apart = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.around = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.normed = weight_norm(nn.Conv2d(8, 8, 1))
        self.twice = nn.Sequential(again := nn.Conv2d(8, 8, 1), nn.ReLU(), again)
        self.one, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.other.weight = self.one.weight
        self.norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.read = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 8)
        self.top = nn.Module()
        self.top.fc = nn.Linear(8, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] → [B, 2]."""
        seen = self.normed(self.around(self.wide(self.apart(self.first(pixels)))))
        seen = self.norm(self.other(self.one(self.twice(seen)))).flatten(2).mT
        seen = functional.linear(self.attention(seen, seen, seen)[0].mean(1), self.read.weight, self.read.bias)
        return self.top.fc(self.fc(seen).relu())


def adapted(network: nn.Module, head: nn.Linear, picture: torch.Tensor) -> set[str]:
    """The names of what learns then."""
    lora.inject(network, RANK, lora.beside(network, head, lambda: network(picture)))
    head.requires_grad_(True)
    return {name for name, value in network.named_parameters() if value.requires_grad}


def moved(network: nn.Module, names: set[str]) -> None:
    with torch.no_grad():
        for name in names:
            network.get_parameter(name).normal_(std=0.3)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_matrices_stand_beside_plain_layers_that_are_called_and_the_head_learns_as_it_is():
    torch.manual_seed(0)
    network, pixels = Attending().eval(), torch.rand(4, 3, 8, 8)
    before, said = {name: value.clone() for name, value in network.state_dict().items()}, network(pixels)
    learns = adapted(network, network.top.fc, pixels)
    torch.testing.assert_close(network(pixels), said, msg="the matrices say nothing before they learn")
    matrices = {f"{layer}.lora_{side}.default.weight" for layer in ("first", "fc") for side in "AB"}
    assert learns == matrices | {"top.fc.weight", "top.fc.bias"}
    moved(network, learns)
    said = network(pixels)
    lora.merge(network)
    torch.testing.assert_close(network(pixels), said, rtol=1e-4, atol=1e-5)
    after = network.state_dict()
    assert list(after) == list(before)
    assert {name for name in before if not torch.equal(after[name], before[name])} == {
        "first.weight",
        "fc.weight",
        "top.fc.weight",
        "top.fc.bias",
    }
    assert torch.linalg.matrix_rank((after["first.weight"] - before["first.weight"]).flatten(1)) == RANK


@pytest.mark.parametrize(
    ("name", "side", "layers"),
    [("resnet18", 64, 20), ("vgg11_bn", 32, 10), ("inception_v3", 75, 94), ("mobilenet_v2", 32, 35), ("swin_t", 32, 28)],
)
def test_what_is_measured_with_matrices_is_what_is_served_without(name: str, side: int, layers: int):
    """Layers: of ResNet, VGG and Inception all but the heads, of others not the depthwise convolutions and no attention."""
    torch.manual_seed(0)
    more = {"init_weights": False} if name == "inception_v3" else {}
    network, pixels = models.get_model(name, num_classes=2, **more).eval(), torch.rand(2, 3, side, side)
    names = list(network.state_dict())
    learns = adapted(network, classifier(network), pixels)
    assert len(learns) == 2 * layers + 2
    moved(network, {one for one in learns if "lora_B" in one})
    with torch.inference_mode():
        said = network(pixels)
        lora.merge(network)
        assert list(network.state_dict()) == names
        torch.testing.assert_close(network(pixels), said, rtol=1e-3, atol=1e-3 * float(said.abs().max()))


class Encoder(nn.Module):
    """As it answers, torch reads the weights of this layer's layers, where it may, and calls none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 8, H, W] → [B, 2]."""
        return self.head(self.encoder(pixels.flatten(2).mT).mean(1))


def test_no_short_cut_leaves_the_matrices_out():
    torch.manual_seed(0)
    network, pixels = Encoder().eval(), torch.rand(4, 8, 3, 3)
    with torch.inference_mode():
        before = network(pixels)
    moved(network, {one for one in adapted(network, network.head, pixels) if "lora_B" in one})
    with torch.inference_mode():
        said = network(pixels)
        lora.merge(network)
        assert not torch.allclose(said, before, atol=1e-3)
        torch.testing.assert_close(network(pixels), said, rtol=1e-4, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    "network",
    [nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), nn.Sequential(nn.Conv2d(3, 3, 8, groups=3), nn.Flatten(), nn.Linear(3, 2))],
    ids=["all head", "groups alone"],
)
def test_a_network_in_which_nothing_can_have_matrices_is_told_so(network: nn.Sequential):
    with pytest.raises(Invalid, match=r"no linear layer or convolution that can have matrices.*use head or full"):
        lora.beside(network, network[-1], lambda: network(torch.rand(1, 3, 8, 8)))


CONVOLUTIONS = """from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, (3, 28)), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(208, 10)
        )
"""


def test_a_picture_model_learns_by_it_and_ends_with_the_same_weights_when_it_is_killed(home: Path, tmp_path: Path):
    """Rows of a picture are few numbers: what the matrices say beside the first convolution is enough to tell its bands."""
    own_network(home, CONVOLUTIONS)
    torch.manual_seed(0)
    folder = home / "models" / "first"
    save_file(build(read_card(folder)).state_dict(), first := folder / "weights.safetensors")
    store, made, data = Store.of(home), [], characters(tmp_path / "idx")
    for disturbed in (False, True):
        tuner = a_job(home, store, data, "first", method="lora", rank=4, epochs=4, batch_size=20, learning_rate=0.01)
        tuner._settings = tuner._settings.model_copy(update={"checkpoint_s": 0.1})
        tuner.check()
        if disturbed:
            kill(tuner, "train", "app.tuning.process", "save")
            assert (tuner._folder / "checkpoint.pt").exists()
        assert attempt(tuner.train, store, tuner._job.id, tuner._folder) == 0
        result = store.get(tuner._job.id).result
        assert result["metrics"]["accuracy"] == 1.0 and result["spec"]["rank"] == 4
        made.append(load_file(home / "models" / f"tones@{result['version']}" / "weights.safetensors"))
    assert all(np.array_equal(made[0][name], made[1][name]) for name in made[0])
    before = load_file(first)
    assert {name for name in before if not np.array_equal(before[name], made[0][name])} == {
        "0.weight",
        "3.weight",
        "6.weight",
        "6.bias",
    }
