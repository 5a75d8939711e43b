"""Every format becomes the right pixels; everything else becomes an error that says what to do."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from app.card import Card
from app.errors import BadInput, HearthError, ModelFailed, TooLarge, UnsupportedMedia
from app.tasks.base import Decoded
from app.tasks.image.codec import ImageCodec

# Levels of 255 between a picture decoded at a smaller scale and one decoded whole, then resized; measured here: 3. Without
# telling the resize where the last, partial pixel ends it is 5 to 15. For photographs: tests/models/test_image_exactness.py.
TOLERANCE = 4


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


def scene(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Soft colours with some edges, as in a photograph; each corner is another."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    bars = 40 * (np.sin(25 * x) * np.cos(19 * y) > 0.3)
    return Image.fromarray(
        np.stack([200 * x, 200 * y, 200 * (1 - x) * y], 2).astype(np.uint8) + bars[..., None].astype(np.uint8)
    ).convert(mode)


def whole(raw: bytes, size: tuple[int, int], mode: str = "RGB", side: int = 16) -> np.ndarray:
    """Every pixel decoded, then resized to `size`, then the middle."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert(mode).resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    seen = np.asarray(picture.crop((left, top, left + side, top + side))).astype(int)
    return seen.reshape(side, side, -1)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture
def scales(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The size of every picture as libjpeg gave it."""
    seen: list[tuple[int, int]] = []
    load = JpegImageFile.load

    def watched(self: JpegImageFile) -> Any:
        if self.tile:
            seen.append(self.size)
        return load(self)

    monkeypatch.setattr(JpegImageFile, "load", watched)
    return seen


# Least sizes that are decoded at 1/2, 1/4 and 1/8, with resize 16 and a margin of 2; and sizes that no scale divides.
@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((80, 63), (80, 63)),
        ((80, 64), (40, 32)),
        ((161, 127), (81, 64)),
        ((161, 129), (41, 33)),
        ((301, 255), (76, 64)),
        ((307, 259), (39, 33)),
    ],
)
def test_a_large_jpeg_is_decoded_at_the_smallest_scale_that_is_twice_what_is_wanted(
    size: tuple[int, int], decoded: tuple[int, int], scales: list[tuple[int, int]]
):
    raw = saved(scene(size), "JPEG", quality=95)
    seen = pixels(raw)
    assert scales == [decoded]
    difference = np.abs(seen - whole(raw, (int(16 * size[0] / size[1]), 16)))
    assert difference.max() <= (TOLERANCE if decoded != size else 0)


LARGE: dict[str, tuple[bytes, dict[str, Any]]] = {
    "baseline": (saved(scene((643, 483)), "JPEG", quality=90), {}),
    "progressive": (saved(scene((643, 483)), "JPEG", quality=90, progressive=True), {}),
    "gray": (saved(scene((643, 483), "L"), "JPEG", quality=90), {}),
    "cmyk": (saved(scene((643, 483), "CMYK"), "JPEG", quality=90), {}),
    "several pictures": (saved(scene((643, 483)), "MPO", save_all=True, append_images=[scene((643, 483))]), {}),
    "gray wanted": (saved(scene((643, 483)), "JPEG", quality=90), {"color": "gray"}),
    "gray of gray wanted": (saved(scene((643, 483), "L"), "JPEG", quality=90), {"color": "gray"}),
    "squeezed": (saved(scene((643, 483)), "JPEG", quality=90), {"resize": [16, 40]}),
    "squeezed, on its side": (saved(scene((643, 483)), "JPEG", quality=90, exif=turned(6)), {"resize": [16, 40]}),
    "with a border": (saved(scene((643, 483)), "JPEG", quality=90), {"resize": [10, 12]}),
    **{f"turned {way}": (saved(scene((643, 483)), "JPEG", quality=90, exif=turned(way)), {}) for way in range(1, 9)},
}


@pytest.mark.parametrize(("raw", "input"), LARGE.values(), ids=LARGE)
def test_large_jpegs_of_every_kind_look_as_if_decoded_whole(raw: bytes, input: dict[str, Any], scales: list[tuple[int, int]]):
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).size
    resize = input.get("resize", 16)
    short = min(upright)
    size = (resize[1], resize[0]) if isinstance(resize, list) else tuple(int(resize * side / short) for side in upright)
    scales.clear()
    seen = pixels(raw, **input)
    ((width, height),) = scales
    assert width * height < 643 * 483 / 15
    expected = whole(raw, size, "L" if input.get("color") == "gray" else "RGB")
    assert seen.shape == expected.shape
    assert np.abs(seen - expected).max() <= TOLERANCE


def test_a_jpeg_of_the_wanted_size_is_exactly_what_pillow_decodes():
    raw = saved(scene((16, 16)), "JPEG", quality=90)
    np.testing.assert_array_equal(pixels(raw), np.asarray(Image.open(io.BytesIO(raw))))


def test_the_limit_of_pixels_counts_what_the_header_says_not_what_would_be_decoded():
    with pytest.raises(TooLarge, match=r"1200 x 1000 = 1\.2 megapixels"):
        codec().decode(saved(Image.new("RGB", (1200, 1000)), "JPEG"))
    with pytest.raises(TooLarge, match="is 8000 x 100;"):
        codec().decode(saved(Image.new("RGB", (8000, 100)), "JPEG"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_only_a_png_that_is_tiny_is_decoded_at_once():
    tiny, large = (saved(Image.new("1", size), "PNG") for size in ((64, 64), (900, 900)))
    assert codec().light(tiny)
    text = large[:8] + chunk(b"tEXt", b"\0\0\0\1\0\0\0\1") + large[8:]
    headers = tiny[:33] + large[8:]  # signature and header: 33 bytes
    for raw in (text, headers):
        assert len(raw) < 4096 and Image.open(io.BytesIO(raw)).size == (900, 900)
        assert not codec().light(raw)
    assert not codec().light(large)
    assert not codec().light(saved(Image.new("1", (64, 65)), "PNG"))


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        (b"", BadInput, "empty"),
        (b"hello", UnsupportedMedia, "JPEG"),
        (b"%PDF-1.7 ...", UnsupportedMedia, "JPEG"),
        (saved(halves(size=(640, 480)), "JPEG")[:-2000], BadInput, "truncated"),
        (saved(halves(size=(640, 480)), "JPEG", progressive=True)[:-2000], BadInput, "truncated"),
        (saved(halves(size=(640, 480)), "PNG")[:-60], BadInput, "truncated"),
        (saved(Image.new("1", (2000, 1000)), "PNG"), TooLarge, "2000 x 1000 = 2.0 megapixels; the limit is 1 megapixels"),
        (saved(Image.new("1", (3000, 10)), "PNG"), TooLarge, "64 times"),
    ],
)
def test_what_cannot_be_read_is_told(raw: bytes, error: type[HearthError], words: str):
    with pytest.raises(error) as told:
        codec().decode(raw)
    assert words in told.value.detail


VALID = [saved(halves(), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")]
VALID += [saved(halves(), "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg", "packbits")]


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


@pytest.mark.parametrize("raw", VALID[5:])
def test_a_damaged_byte_anywhere_raises_nothing_else(raw: bytes):
    """Pillow's AVIF and TIFF plugins raise RuntimeError, KeyError and struct.error, which random changes seldom meet."""
    refused = 0
    for place in range(0, len(raw), 1 + len(raw) // 400):
        damaged = bytearray(raw)
        damaged[place] ^= 0xFF
        try:
            codec().decode(bytes(damaged))
        except HearthError:
            refused += 1
    assert refused


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
