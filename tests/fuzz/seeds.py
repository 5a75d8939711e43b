"""Small good files of each kind, made here: what the fuzzers begin from, beside the corpus."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.stack import hostile
from tests.stack.conftest import wave

_MODELS = Path(__file__).resolve().parents[2] / "models"


def pictures() -> Sequence[bytes]:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8))
    found = [hostile.saved(pixels, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")]
    found += [hostile.saved(pixels.convert(mode), "PNG") for mode in ("L", "LA", "RGBA", "P", "1", "I;16")]
    found += [hostile.saved(pixels, "TIFF", compression=kind) for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")]
    found += [hostile.saved(pixels, "JPEG", progressive=True), hostile.saved(pixels.convert("CMYK"), "JPEG")]
    found += [hostile.saved(pixels, "WEBP", lossless=True), hostile.saved(pixels.convert("F"), "TIFF")]
    found += [hostile.gif_of_frames(3), hostile.bmp_rle(16, 16), hostile.tiff_that_bites_its_tail()]
    exif = Image.Exif()
    exif[274] = 6
    return [*found, hostile.saved(pixels, "JPEG", exif=exif), hostile.saved(pixels, "PNG", exif=exif)]


def recordings() -> Sequence[bytes]:
    made = [("flac", "flac", 16_000), ("mp3", "libmp3lame", 16_000), ("ogg", "libopus", 48_000), ("mp4", "aac", 16_000)]
    made += [("webm", "libopus", 48_000), ("aiff", "pcm_s16be", 8_000), ("wav", "pcm_mulaw", 8_000), ("adts", "aac", 16_000)]
    found = [wave(0.1), *(hostile.sound(container, codec, 1, rate) for container, codec, rate in made)]
    many = [("wav", "pcm_s16le", 4000, "stereo"), ("wav", "pcm_f32le", 4000, "7.1")]
    many += [("flac", "flac", 8000, "7.1"), ("adts", "aac", 16_000, "5.1")]
    return [*found, *(hostile.sound(container, codec, 1, rate, layout) for container, codec, rate, layout in many)]


def archives() -> Sequence[bytes]:
    files = {"cats/a.txt": b"a" * 300, "dogs/b.csv": b"text,label\nx,y\n", "../out": b"x", ".hidden": b"y"}
    found = [hostile.zipped(dict(list(files.items())[:count])) for count in (1, 2, 4)]
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode, format=tarfile.PAX_FORMAT if mode == "w" else tarfile.GNU_FORMAT) as archive:
            for name, data in list(files.items())[:2]:
                info = tarfile.TarInfo(name if mode != "w" else "é" * 60 + name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        found.append(out.getvalue())
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as zipped:
        zipped.writestr("a.txt", b"a" * 100)
    return [*found, out.getvalue()]


def cards() -> Sequence[bytes]:
    return [path.read_bytes() for path in sorted(_MODELS.glob("*/card.toml"))]


CARD_WORDS = [
    b"[",
    b"[[",
    b"]",
    b"=",
    b'"""',
    b"'",
    b"nan",
    b"inf",
    b"1e999",
    b"\\u",
    b"kind",
    b"limits.",
    b"input",
    b"9" * 30,
    b"1979-05-27",
]


def forms() -> Sequence[bytes]:
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\nxyz\r\n'
    field = b'--b\r\nContent-Disposition: form-data; name="spec"\r\n\r\n{}\r\n'
    strange = b"--b\r\nContent-Disposition: form-data; name=file; filename*=UTF-8''%ff%00\r\n\r\nx\r\n"
    end = b"--b--\r\n"
    found = [b"b\n" + body + end for body in (part, part * 2, part * 6, field + part, strange, part + field, b"")]
    return [*found, *(b"b; charset=%s\n" % codec + strange + field + end for codec in (b"utf-8", b"punycode", b"undefined"))]


FORM_WORDS = [
    b"\r\n",
    b"--b",
    b"--b--",
    b'filename="',
    b"filename*=",
    b"; name=",
    b"\0",
    b"; charset=utf-16",
    b"; charset=idna",
    b"Content-Disposition",
]


def bodies() -> Sequence[bytes]:
    embed = [{"inputs": "a text", "model": "m", "truncate": True}, {"inputs": ["a", "b"], "dimensions": 3, "encoding": "base64"}]
    predict = [{"inputs": ["a", "b"], "top_k": 5, "timeout_ms": 100}, {"timeout_ms": None, "model": None, "inputs": "é"}]
    spec = [{"name": "photos", "base": "toy", "method": "head", "epochs": 3, "learning_rate": 0.1, "traffic": 0.5}]
    found = [b"%d" % kind + json.dumps(value).encode() for kind, values in enumerate((embed, predict, spec)) for value in values]
    return [*found, b"3model=a&top_k=3&timeout_ms=5", b"4model=a&words=true", b"5normalize=0&encoding=base64"]


JSON_WORDS = [
    b"{",
    b"[",
    b'"',
    b"null",
    b"1e400",
    b"-0",
    b"1",
    b"\\ud800",
    b"\\u00e9",
    b"NaN",
    b"[" * 100,
    b'{"inputs":',
    b'"inputs": ["a"], ',
    b'"inputs": "b", ',
    b'"model": "n", ',
    b', "model": null',
    b', "timeout_ms": 7',
    b', "inputs": []',
    b"&model=b",
    b"%00",
    b"%ff",
    b"9" * 400,
    b"\xff",
]


def tables() -> Sequence[bytes]:
    csv = b'text,label,split\n"a, b",x,train\nc,y,val\n'
    pairs = b"sentence1\tsentence2\tscore\na\tb\t0.5\nc\td\t1\n"
    lines = b'{"text": "a", "label": "x"}\n{"text": "b", "label": 3}\n'
    recordings = b"file,transcript,split\na.wav,ONE TWO,train\nb.wav,x,test\n"
    idx = struct.pack(">HBBIII", 0, 8, 3, 2, 3, 4) + bytes(24)
    found = [b"\n" + csv, b"a\n" + csv, b"bb\n" + lines, b"ccc\n" + pairs, b"\n" + recordings, b"dddd\n" + idx]
    return [*found, b"rrrr\n" + gzip.compress(idx)]
