"""Picture bytes → uint8 pixels, scores → labels. Pillow does the work; resize and crop are torchvision's, to the pixel.

Everything is refused as early as it can be: by signature, then by the size that the header states, then by decoding.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from app.card import Card
from app.errors import BadInput, HearthError, TooLarge, UnsupportedMedia
from app.patience import is_scarce
from app.tasks.base import Decoded, Files, Output, Recipe, Sample, unit
from app.tasks.image.input import ImageInput
from app.tasks.labels import best, read_labels

# Of odd metadata, which is not ours to judge. Once and for all: catch_warnings is not made for threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MEDIA_TYPES = tuple(f"image/{name}" for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif"))

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # Pillow takes the header from any chunk before the pixels, and the last one counts
_TINY = (64).to_bytes(4, "big")  # pixels along a side, as a PNG's header writes it: decoding takes 50 µs
_STRIP = 256  # rows
_MARGIN = 2  # decoded this many times as large as resized or larger; why 2: tests/models/test_image_exactness.py
_TURNED = range(2, 9)  # EXIF orientations other than upright
_ON_ITS_SIDE = range(5, 9)
_16_BIT = {"I;16", "I;16B", "I;16L", "I;16N", "I"}


class PictureReader:
    """Picture bytes → pixels; `max_pixels` bounds what the header may claim."""

    seconds_each = 0.2e-6  # 49 megapixels: WebP without loss 2.3 s, PNG 1.8, AVIF 1.7, progressive JPEG 1.4

    def __init__(self, input: ImageInput, max_pixels: float) -> None:
        self._input = input
        self._max_pixels = max_pixels

    @staticmethod
    def prepare() -> None:
        """Import Pillow's plugins, and hold the one that would decode in as many threads as there are cores to one."""
        Image.init()
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1

    def decode(self, item: bytes) -> Decoded:
        """A picture file → one sample: `pixels` uint8 [H, W, C], cost 1. Turned as its EXIF says, transparency on white."""
        pixels = np.asarray(self._read(item))
        return Decoded(samples=(Sample(arrays={"pixels": pixels.reshape(*pixels.shape[:2], -1)}, cost=1.0),))

    def _read(self, item: bytes) -> Image.Image:
        picture = self._open(item)
        try:
            return self._prepare(picture)
        except (HearthError, MemoryError):
            raise
        except Exception as error:  # Pillow's plugins raise whatever their parsers trip over
            if is_scarce(error):
                raise
            if "truncated" in str(error) or isinstance(error, EOFError):
                raise BadInput("the picture is truncated: its file ends too early; send the whole file") from error
            raise _damaged("the picture", error) from error

    def _open(self, raw: bytes) -> Image.Image:
        if not raw:
            raise BadInput("the body is empty; send the bytes of a picture")
        try:
            picture = Image.open(io.BytesIO(raw), formats=FORMATS)
        except MemoryError:
            raise
        except Image.DecompressionBombError as error:
            raise self._too_many("more than 179 million pixels") from error  # 2 x PIL.Image.MAX_IMAGE_PIXELS
        except UnidentifiedImageError as error:
            raise UnsupportedMedia(f"these bytes are no picture that can be read; send one of {', '.join(FORMATS)}") from error
        except Exception as error:  # as in _read
            if is_scarce(error):
                raise
            raise _damaged("the picture's header", error) from error
        width, height = picture.size
        if width * height > self._max_pixels:
            raise self._too_many(f"{width} x {height} = {width * height / 1e6:.1f} megapixels")
        if min(width, height) < 1:
            raise BadInput("the picture has no pixels; send one of at least 1 x 1")
        return picture

    def _too_many(self, size: str) -> TooLarge:
        return TooLarge(f"the picture has {size}; the limit is {self._max_pixels / 1e6:g} megapixels: send a smaller one")

    def _prepare(self, picture: Image.Image) -> Image.Image:
        mode = "L" if self._input.color == "gray" else "RGB"
        if isinstance(picture, JpegImageFile):
            picture = _reduced(picture, mode, self._input)
        if picture.mode in _16_BIT or picture.mode == "F":
            picture = _to_8_bit(picture)
        picture.load()  # some formats turn themselves in here
        if _orientation(picture) in _TURNED:
            picture = ImageOps.exif_transpose(picture)
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        if picture.mode != mode:
            picture = picture.convert(mode)
        size = _resized(picture.size, self._input)
        if size != picture.size:
            picture = picture.resize(size, _FILTERS[self._input.interpolation])
        return _crop(picture, self._input.crop)


class ImageCodec(PictureReader):
    """The codec of image models."""

    def __init__(self, card: Card, files: Files, meta: dict[str, Any], max_pixels: float = 50_000_000) -> None:
        super().__init__(ImageInput(**card.input), max_pixels)
        self.recipe = Recipe(card.task, self._input.model_dump_json(), max_pixels)
        self._labels = read_labels(files, meta)

    def light(self, item: bytes) -> bool:
        """A PNG whose header says that it is tiny; of other formats, size in bytes says too little."""
        return item.startswith(_HEAD) and max(item[16:20], item[20:24]) <= _TINY and len(item) < 4096 and item.count(b"IHDR") == 1

    def interpret(self, decoded: Decoded, outputs: Sequence[Output], *, top_k: int = 5, normalize: bool = True) -> dict[str, Any]:
        """`scores` [C] → the `top_k` labels, best first; or `embedding` [D], of length 1 if `normalize`."""
        output = outputs[0]
        if "embedding" in output:
            return {"embedding": unit(output["embedding"]) if normalize else output["embedding"]}
        return best(output["scores"], self._labels, top_k)


def _damaged(part: str, error: Exception) -> BadInput:
    """What the caller hears of Pillow's complaint; its names for its limits on texts in a PNG say nothing to them."""
    if "MAX_TEXT_" in str(error):
        return BadInput("the picture carries over 1 MiB of text in a piece, or 64 MiB in all: save it without its metadata")
    return BadInput(f"{part} is damaged ({error}); send it again, or convert it to JPEG or PNG")


def _orientation(picture: Image.Image) -> Any:
    return picture.getexif().get(ExifTags.Base.Orientation)


def _reduced(picture: JpegImageFile, mode: str, wanted: ImageInput) -> Image.Image:
    """A JPEG that is far larger than wanted, already resized: decoded by libjpeg at 1/2, 1/4 or 1/8. Any other as it is.

    What libjpeg gives is rounded up to whole pixels, so the resize is told where in them the picture ends.
    """
    on_its_side = _orientation(picture) in _ON_ITS_SIDE
    size = _resized(picture.size[::-1] if on_its_side else picture.size, wanted)
    size = size[::-1] if on_its_side else size
    width, height = (math.ceil(_MARGIN * side) for side in size)
    if min(picture.size[0] // width, picture.size[1] // height) < 2:
        return picture
    drafted = picture.draft(mode, (width, height))  # the smallest scale that is not smaller than this
    if drafted is None:
        return picture
    return (picture if picture.mode == mode else picture.convert(mode)).resize(
        size, _FILTERS[wanted.interpolation], box=drafted[1]
    )


def _to_8_bit(picture: Image.Image) -> Image.Image:
    """16-bit gray → 8-bit (Pillow's own conversion clips at 255); 32-bit floats are taken as 0 … 1 or 0 … 255."""
    values = np.asarray(picture)
    if picture.mode == "F":
        if not np.isfinite(values).all():
            raise ValueError("its pixels are not all finite numbers")
        share = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
    else:
        share = 1 / 257 if values.max(initial=0) > 255 or picture.mode != "I" else 1.0
    levels = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), _STRIP):  # of the whole at once, a copy in double precision would be 400 MB
        levels[row : row + _STRIP] = np.clip(np.rint(values[row : row + _STRIP] * share), 0, 255)
    exif = picture.getexif()
    small = Image.fromarray(levels, "L")
    small.getexif().update(exif)
    return small


def _resized(size: tuple[int, int], wanted: ImageInput) -> tuple[int, int]:
    """torchvision.transforms.functional.resize: the shorter side becomes `resize`, the longer one is cut down to an integer."""
    if isinstance(wanted.resize, tuple):
        return (wanted.resize[1], wanted.resize[0])
    width, height = size
    short, long = min(width, height), max(width, height)
    longer = max(1, int(wanted.resize * long / short))
    if longer > 64 * wanted.resize:
        raise TooLarge(f"the picture is {width} x {height}; at most 64 times as long as wide is allowed: crop it")
    return (wanted.resize, longer) if width <= height else (longer, wanted.resize)


def _crop(picture: Image.Image, side: int) -> Image.Image:
    """torchvision.transforms.functional.center_crop: pads with black where the picture is smaller, rounds half to even."""
    width, height = picture.size
    if width < side or height < side:
        left, top = max(0, side - width) // 2, max(0, side - height) // 2
        padded = Image.new(picture.mode, (max(width, side), max(height, side)))
        padded.paste(picture, (left, top))
        picture = padded
        width, height = picture.size
    if width == height == side:
        return picture
    top, left = round((height - side) / 2.0), round((width - side) / 2.0)
    return picture.crop((left, top, left + side, top + side))
