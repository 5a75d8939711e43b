"""Training pictures: the three layouts, what augmentation keeps, and how damaged files are named."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.card import Card
from app.errors import BadInput
from app.tasks.image.dataset import ImageDataset, _warp, augment


def card(**input: object) -> Card:
    wanted = {"resize": [32, 32], "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], **input}
    values = {"name": "toy", "folder": "/nowhere", "task": "image-classification", "input": wanted}
    return Card.model_validate({**values, "source": {"kind": "module", "entry": "Net"}, "about": {"licence": "MIT"}})


def jpeg(shade: int, size: tuple[int, int] = (32, 32)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(out, "JPEG")
    return out.getvalue()


def write_npz(path: Path, pictures: list[bytes]) -> None:
    offsets = np.cumsum([0, *map(len, pictures)])
    labels = np.arange(len(pictures), dtype=np.uint8) % 2
    data = np.frombuffer(b"".join(pictures), np.uint8)
    np.savez(path, jpeg=data, offsets=offsets, labels=labels, classes=np.array(["dark", "light"]))


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    for part in ("train", "test"):
        write_npz(tmp_path / f"{part}.npz", [jpeg(30 if i % 2 == 0 else 220) for i in range(20)])
    return tmp_path


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Brightness(torch.nn.Module):
    """Knows the answer: the brighter half is class 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        middle = x.mean((1, 2, 3))
        return torch.stack([-middle, middle], 1)


def test_archives_become_normalised_batches_of_the_asked_size(archives: Path) -> None:
    dataset = ImageDataset.open(archives, card())
    batches = list(dataset.batches(8, rng(), 0))
    assert (len(batches), dataset.steps(8), dataset.labels) == (2, 2, ["dark", "light"])
    assert batches[0]["pixels"].shape == (8, 3, 32, 32)
    assert batches[0]["pixels"].abs().max() <= 2.0
    assert (Brightness()(batches[0]["pixels"]).argmax(1) == batches[0]["target"]).all()


def test_small_pictures_come_first_if_the_recipe_says_so(archives: Path) -> None:
    dataset = ImageDataset.open(archives, card(), sides=[16, 24])
    assert [next(dataset.batches(4, rng(), epoch))["pixels"].shape[-1] for epoch in range(4)] == [16, 24, 32, 32]


def test_the_very_first_batch_may_be_as_large_as_they_will_be(archives: Path) -> None:
    """What has no memory for that fails at once, not after two thirds of the epochs; all chance is the same."""
    plain = ImageDataset.open(archives, card(), sides=[16])
    read = plain._train, plain._held_out, plain.labels, card()
    largest = ImageDataset(*read, augment=True, sides=[16], largest_first=1)
    sizes = [[batch["pixels"].shape[-1] for batch in largest.batches(4, rng(), epoch)] for epoch in (0, 1)]
    assert sizes[0][0] == 32 and set(sizes[0][1:]) == {16} and set(sizes[1]) == {32}
    ours, others = (list(one.batches(4, rng(), 0)) for one in (largest, plain))
    assert all(torch.equal(ours[number]["pixels"], others[number]["pixels"]) for number in (1, 2, 3))
    assert [largest.work(epoch) for epoch in (0, 1)] == [0.25, 1.0]


def test_pictures_that_are_not_changed_are_made_smaller_too(archives: Path) -> None:
    plain = ImageDataset.open(archives, card())
    small = ImageDataset(plain._train, plain._held_out, plain.labels, card(), augment=False, sides=[16])
    assert [next(small.batches(4, rng(), epoch))["pixels"].shape[-1] for epoch in (0, 1)] == [16, 32]


def test_the_same_seed_gives_the_same_batches(archives: Path) -> None:
    dataset = ImageDataset.open(archives, card())
    one, two, other = (next(dataset.batches(16, rng(seed), 0))["pixels"] for seed in (5, 5, 6))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_the_score_is_the_share_of_right_answers(archives: Path) -> None:
    assert ImageDataset.open(archives, card()).score(Brightness())["accuracy"] == 1.0


def test_label_smoothing_keeps_the_loss_of_a_sure_answer_above_zero(archives: Path) -> None:
    batch = next(ImageDataset.open(archives, card()).batches(16, rng(), 0))
    sharp, smooth = (ImageDataset.open(archives, card(), label_smoothing=share).loss(Brightness(), batch) for share in (0.0, 0.1))
    assert smooth > sharp


def test_augmentation_changes_each_picture_its_own_way_and_stays_in_range() -> None:
    pixels = torch.rand(1, 3, 32, 32, generator=rng()).expand(64, -1, -1, -1)
    changed = augment(pixels, 24, rng())
    assert changed.shape == (64, 3, 24, 24)
    assert 0 <= changed.min() <= changed.max() <= 1
    assert len(torch.unique(changed.flatten(1), dim=0)) == 64


def test_class_folders_are_read_as_the_server_reads_pictures(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for label, shade in (("dark", 30), ("light", 220)):
            (tmp_path / part / label).mkdir(parents=True)
            (tmp_path / part / label / "a.jpg").write_bytes(jpeg(shade, (60, 45)))
    dataset = ImageDataset.open(tmp_path, card(resize=40))
    assert dataset.labels == ["dark", "light"]
    assert next(dataset.batches(2, rng(), 0))["pixels"].shape == (2, 3, 32, 32)
    assert dataset.score(Brightness())["accuracy"] == 1.0


def test_idx_files_are_read_without_augmentation(tmp_path: Path) -> None:
    for part in ("train", "t10k"):
        images = np.array([0x803, 6, 4, 4], ">i4").tobytes() + bytes([0, 255] * 48)
        labels = np.array([0x801, 6], ">i4").tobytes() + bytes(range(6))
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    dataset = ImageDataset.open(tmp_path, card(mean=[0.5], std=[0.5], color="gray"))
    batch = next(dataset.batches(6, rng(), 0))
    assert sorted(batch["target"].tolist()) == list(range(6))
    assert set(batch["pixels"].unique().tolist()) == {-1.0, 1.0}


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    write_npz(tmp_path / "train.npz", [jpeg(1), jpeg(2)[:-40]])
    with pytest.raises(BadInput, match=r"train.npz, picture 1: .*take it out of the training data"):
        ImageDataset.open(tmp_path, card())


@pytest.mark.parametrize("name", ["train.npz", "train-images-idx3-ubyte.gz"])
def test_a_damaged_archive_is_named_with_the_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no archive")
    with pytest.raises(BadInput, match=rf"{name}:? is no.*download it again"):
        ImageDataset.open(tmp_path, card())


def test_folders_without_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "train" / "dark").mkdir(parents=True)
    with pytest.raises(BadInput, match="train holds no pictures; put them into one folder per class"):
        ImageDataset.open(tmp_path, card())


def reach(changed: torch.Tensor) -> int:
    """How far from the middle anything of a block there is found, in whole pixels."""
    rows = (changed.amax((0, 1, 3)) > 1e-4).nonzero().flatten()
    return int((rows - changed.shape[2] // 2).abs().max())


def test_pictures_are_moved_by_a_tenth_of_their_side() -> None:
    for side, least, most in ((224, 15, 33), (32, 2, 7)):
        block = torch.zeros(64, 1, side, side)
        block[:, :, side // 2 - 1 : side // 2 + 2, side // 2 - 1 : side // 2 + 2] = 1
        assert least < reach(_warp(block, side, rng())) < most
