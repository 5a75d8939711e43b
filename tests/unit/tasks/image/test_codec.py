"""Every format becomes the right pixels; everything else becomes an error that says what to do."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from app.card import Card
from app.errors import BadInput, HearthError, ModelFailed, TooLarge, UnsupportedMedia
from app.tasks.base import Decoded
from app.tasks.image.codec import ImageCodec


def codec(**input: Any) -> ImageCodec:
    card = Card(
        name="m",
        folder=Path("/x"),
        task="image-classification",
        source={"kind": "file"},
        input={"resize": 16, "crop": 16, **input},
        about={"licence": "x"},
    )
    return ImageCodec(card, {}, {}, max_pixels=1_000_000)


def halves(mode: str = "RGB", size: tuple[int, int] = (64, 32)) -> Image.Image:
    """Left red, right blue."""
    picture = Image.new("RGB", size, (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, size[0] // 2, size[1]))
    return picture.convert(mode)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def pixels(raw: bytes, **input: Any) -> np.ndarray:
    (sample,) = codec(**input).decode(raw).samples
    return sample.arrays["pixels"].astype(int)


@pytest.mark.parametrize(
    "raw",
    [
        saved(halves(), "JPEG", quality=95, subsampling=0),
        saved(halves(), "JPEG", quality=95, subsampling=0, progressive=True),
        saved(halves("CMYK"), "JPEG", quality=95),
        saved(halves(), "PNG"),
        saved(halves("P"), "PNG"),
        saved(halves("RGBA"), "PNG"),
        saved(halves(), "WEBP", lossless=True),
        saved(halves(), "GIF"),
        saved(halves(), "BMP"),
        saved(halves(), "TIFF"),
        saved(halves(), "AVIF", quality=95),
    ],
    ids=["jpeg", "progressive", "cmyk", "png", "palette", "rgba", "webp", "gif", "bmp", "tiff", "avif"],
)
def test_every_format_shows_the_same_picture(raw: bytes):
    seen = pixels(raw, resize=[16, 16])
    assert seen.shape == (16, 16, 3)
    np.testing.assert_allclose(seen[:, :6].mean((0, 1)), [255, 0, 0], atol=12)
    np.testing.assert_allclose(seen[:, -6:].mean((0, 1)), [0, 0, 255], atol=12)


def test_exif_turns_the_picture_upright():
    exif = Image.Exif()
    for orientation, column in ((1, (255, 0, 0)), (3, (0, 0, 255))):
        exif[0x0112] = orientation
        seen = pixels(saved(halves(), "JPEG", exif=exif, quality=95, subsampling=0), resize=[16, 16])
        np.testing.assert_allclose(seen[:, :6].mean((0, 1)), column, atol=12)
    exif[0x0112] = 6
    seen = pixels(saved(halves(), "JPEG", exif=exif, quality=95, subsampling=0), resize=[16, 16])
    np.testing.assert_allclose(seen[:6].mean((0, 1)), [255, 0, 0], atol=12)


def test_transparency_is_laid_on_white():
    assert (pixels(saved(Image.new("RGBA", (20, 20), (9, 9, 9, 0)), "PNG")) == 255).all()
    palette = Image.new("P", (20, 20), 0)
    assert (pixels(saved(palette, "PNG", transparency=0)) == 255).all()


def test_sixteen_bits_are_scaled_not_clipped():
    gray = Image.fromarray(np.full((20, 20), 32896, np.uint16))
    assert (pixels(saved(gray, "PNG")) == 128).all()
    assert (pixels(saved(gray, "TIFF")) == 128).all()


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP"):
        seen = pixels(saved(frames[0], kind, save_all=True, append_images=frames[1:]))
        np.testing.assert_allclose(seen.mean((0, 1)), [255, 0, 0], atol=8)


def test_gray_models_get_one_channel_and_small_pictures_a_black_border():
    assert pixels(saved(halves(), "PNG"), color="gray").shape == (16, 16, 1)
    seen = pixels(saved(Image.new("RGB", (8, 8), "white"), "PNG"), resize=8, crop=16)
    assert seen[4:12, 4:12].min() == 255
    assert seen[:4].max() == 0


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        (b"", BadInput, "empty"),
        (b"hello", UnsupportedMedia, "JPEG"),
        (b"%PDF-1.7 ...", UnsupportedMedia, "JPEG"),
        (saved(halves(size=(640, 480)), "JPEG")[:-2000], BadInput, "truncated"),
        (saved(halves(size=(640, 480)), "PNG")[:-60], BadInput, "truncated"),
        (saved(Image.new("1", (2000, 1000)), "PNG"), TooLarge, "2000 x 1000 = 2.0 megapixels; the limit is 1 megapixels"),
        (saved(Image.new("1", (3000, 10)), "PNG"), TooLarge, "64 times"),
    ],
)
def test_what_cannot_be_read_is_told(raw: bytes, error: type[HearthError], words: str):
    with pytest.raises(error) as told:
        codec().decode(raw)
    assert words in told.value.detail


VALID = [saved(halves(), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(VALID), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6), st.floats(0.05, 1))
def test_damaged_files_raise_nothing_else(raw: bytes, changes: list[tuple[float, int]], kept: float):
    damaged = bytearray(raw)
    for where, value in changes:
        damaged[int(where * len(damaged))] = value
    try:
        (sample,) = codec().decode(bytes(damaged[: int(len(damaged) * kept)])).samples
    except HearthError:
        return
    assert sample.arrays["pixels"].shape == (16, 16, 3)


def test_scores_become_labels_best_first():
    toy = codec()
    toy._labels = ["a", "b", "c"]
    output = {"scores": np.array([0.2, 0.5, 0.3], np.float32)}
    told = toy.interpret(Decoded(samples=()), [output], top_k=2)
    assert [(p["label"], p["index"]) for p in told["predictions"]] == [("b", 1), ("c", 2)]
    assert len(toy.interpret(Decoded(samples=()), [output], top_k=9)["predictions"]) == 3
    with pytest.raises(ModelFailed, match="3 labels"):
        toy.interpret(Decoded(samples=()), [{"scores": np.zeros(4)}])


def test_embeddings_have_length_one_unless_told_otherwise():
    output = {"embedding": np.array([3.0, 4.0], np.float32)}
    np.testing.assert_allclose(codec().interpret(Decoded(samples=()), [output])["embedding"], [0.6, 0.8])
    assert codec().interpret(Decoded(samples=()), [output], normalize=False)["embedding"] is output["embedding"]
