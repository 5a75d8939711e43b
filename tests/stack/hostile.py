"""Files that are not what they seem: bombs, files that are two things at once, files that take for ever. Each a few kilobytes."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from tests.stack.conftest import wave

SIDE = 7000  # 49 megapixels: within the limit


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def small(kind: str, **options: object) -> bytes:
    """A picture with something in it."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    return saved(Image.fromarray(pixels), kind, **options)


def sound(container: str, codec: str, seconds: float = 1.0, rate: int = 16_000, layout: str = "mono") -> bytes:
    """A tone, or silence with a click in it where it is long."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = layout
        chunk = np.zeros((1, rate), np.float32)
        chunk[0, :4000] = 0.3 * np.sin(np.arange(4000) / 5)
        for second in range(max(1, round(seconds))):
            frame = av.AudioFrame.from_ndarray(chunk, "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, second * rate, Fraction(1, rate)
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
    return out.getvalue()


def many_scans() -> bytes:
    """A progressive JPEG that refines the same nothing a hundred thousand times: minutes of work in 4 MB."""
    raw = saved(Image.new("L", (SIDE, SIDE), 200), "JPEG", progressive=True, quality=50)
    scans = [at for at in range(len(raw)) if raw[at : at + 2] == b"\xff\xda"]
    last = raw[scans[-1] : -2]
    return raw[:-2] + last * (4_000_000 // len(last)) + raw[-2:]


def gif_of_frames(count: int) -> bytes:
    raw = saved(Image.new("P", (1, 1)), "GIF")
    head, frame = raw[: raw.index(b"\x2c")], raw[raw.index(b"\x2c") : -1]
    return head + frame * count + b";"


def gif_claiming(width: int, height: int) -> bytes:
    raw = small("GIF")
    return raw[:6] + struct.pack("<HH", width, height) + raw[10:]


def bmp_rle(width: int, height: int) -> bytes:
    """Run-length coded: 256 pixels in two bytes."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 4, 0, 0, 256, 0) + bytes(1024)
    data = b"\xff\x01" * 200 + b"\0\1"
    return struct.pack("<2sIHHI", b"BM", 14 + len(head) + len(data), 0, 0, 14 + len(head)) + head + data


def tiff(width: int, height: int, compression: int, strip: bytes, stated: int | None = None) -> bytes:
    """Gray, one strip, which the file says has `stated` bytes."""
    size = len(strip) if stated is None else stated
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, compression), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, height), (279, 4, size)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    where = 8 + len(strip) + len(strip) % 2
    return b"II*\0" + struct.pack("<I", where) + strip.ljust(where - 8, b"\0") + struct.pack("<H", len(tags)) + entries + bytes(4)


def tiff_that_bites_its_tail() -> bytes:
    raw = tiff(8, 8, 1, bytes(64))
    return raw[:-4] + raw[4:8]


def webp_claiming(side: int) -> bytes:
    frame = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (side - 1).to_bytes(3, "little") * 2
    body = b"WEBP" + frame + small("WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def avif_claiming(side: int) -> bytes:
    raw = small("AVIF")
    at = raw.index(b"ispe") + 8
    return raw[:at] + struct.pack(">II", side, side) + raw[at + 8 :]


def flac_claiming_hours() -> bytes:
    raw = bytearray(sound("flac", "flac"))
    raw[22:26] = b"\xff" * 4  # the low half of STREAMINFO's count of samples: 2**32 at 16 kHz are three days
    return bytes(raw)


def ogg_claiming_hours() -> bytes:
    raw = bytearray(sound("ogg", "libopus", rate=48_000))
    at = raw.rindex(b"OggS")
    raw[at + 6 : at + 14] = struct.pack("<q", 48_000 * 36_000)
    raw[at + 22 : at + 26] = bytes(4)
    raw[at + 22 : at + 26] = struct.pack("<I", _ogg_crc(bytes(raw[at:])))
    return bytes(raw)


def _ogg_crc(page: bytes) -> int:
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
    return crc


def mp3_claiming_hours() -> bytes:
    raw = bytearray(sound("mp3", "libmp3lame"))
    at = raw.index(b"Info") if b"Info" in raw else raw.index(b"Xing")
    raw[at + 8 : at + 12] = struct.pack(">I", 1 << 24)  # frames of 36 ms
    return bytes(raw)


def m4a_claiming_hours() -> bytes:
    raw = bytearray(sound("mp4", "aac"))
    for kind in (b"mvhd", b"mdhd"):
        at = raw.index(kind) + 20
        raw[at : at + 4] = b"\x7f\xff\xff\xff"
    at = raw.index(b"stts") + 12
    raw[at : at + 4] = b"\x7f\xff\xff\xff"
    return bytes(raw)


def webm_claiming_hours() -> bytes:
    raw = bytearray(sound("webm", "libopus", rate=48_000))
    at = raw.index(b"\x44\x89\x88") + 3
    raw[at : at + 8] = struct.pack(">d", 36_000_000.0)
    return bytes(raw)


def zipped(files: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


HTML = b"<html><script>alert(1)</script></html>"


def with_chunk(raw: bytes, data: bytes) -> bytes:
    """A WAV with something else before its sound."""
    data += b" " * (len(data) % 2)
    body = raw[8:12] + b"LIST" + struct.pack("<I", len(data)) + data + raw[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_png_chunk(kind: bytes, data: bytes) -> bytes:
    raw = small("PNG")
    return raw[:33] + png_chunk(kind, data) + raw[33:]


def animated(kind: str, count: int) -> bytes:
    """Large frames that differ by one pixel."""
    frames = [Image.new("L" if kind == "TIFF" else "RGB", (500, 500)) for _ in range(count)]
    for number, frame in enumerate(frames):
        frame.putpixel((number, 0), 255 if kind == "TIFF" else (255, 255, 255))
    more = {} if kind == "TIFF" else {"duration": 1}
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], **more)


PICTURES_TOO_LARGE = {
    "GIF of 65535 x 65535": gif_claiming(65_535, 65_535),
    "WebP of 16383 x 16383": webp_claiming(16_383),
    "BMP, runs of 40,000 x 40,000": bmp_rle(40_000, 40_000),
    "TIFF of 60,000 x 60,000": tiff(60_000, 60_000, 1, bytes(8)),
    "JPEG of 65,500 x 65,500": small("JPEG").replace(struct.pack(">HH", 40, 60), struct.pack(">HH", 65_500, 65_500), 1),
}
PICTURES_WITH_A_BOMB = {
    "PNG, 200 MB of text": lambda: with_png_chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(200 << 20))),
    "PNG, 200 MB of a colour profile": lambda: with_png_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(200 << 20))),
    "PNG of 200 frames": lambda: animated("PNG", 200),
    "WebP of 200 frames": lambda: animated("WEBP", 200),
    "AVIF of 10 frames": lambda: animated("AVIF", 10),
    "TIFF of 200 pages": lambda: animated("TIFF", 200),
}
RECORDINGS_TOO_LONG = {
    "FLAC": flac_claiming_hours,
    "Ogg": ogg_claiming_hours,
    "MP3": mp3_claiming_hours,
    "WebM": webm_claiming_hours,
    "an hour in Opus": lambda: sound("ogg", "libopus", 3600, 48_000),
    "an hour in FLAC": lambda: sound("flac", "flac", 3600),
    "minutes in MP3": lambda: sound("mp3", "libmp3lame", 120),
    "minutes in M4A": lambda: sound("mp4", "aac", 120),
    "minutes in ADTS": lambda: sound("adts", "aac", 120),
    "minutes in WebM": lambda: sound("webm", "libopus", 120, 48_000),
    "minutes in AIFF": lambda: sound("aiff", "pcm_mulaw", 120, 8000),
}
PICTURES_REFUSED = {
    "AVIF claiming 60,000 x 60,000": avif_claiming(60_000),
    "TIFF whose strip claims 4 GB": tiff(SIDE, SIDE, 1, bytes(8), 0xFFFFFFF0),
    "TIFF, LZW of nothing": tiff(SIDE, SIDE, 5, b"\x80\x0b" * 50),
    "TIFF, deflate too short": tiff(SIDE, SIDE, 8, zlib.compress(bytes(1000))),
    "TIFF, deflate in a bad strip": tiff(SIDE, SIDE, 8, b"\x78\x9c" + b"\xff" * 100),
    "GIF that is a script": b"GIF89a/*" + bytes(8) + b"*/=1;alert(1)//" + HTML,
    "PDF": b"%PDF-1.7\n" + small("JPEG"),
    "ZIP": zipped({"a.png": small("PNG")}),
    "ICO": saved(Image.new("RGB", (64, 64)), "ICO"),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3),
    "SVG": b"<svg xmlns='x'><image href='file:///etc/passwd'/></svg>",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file",
    "HTML": HTML,
}
PICTURES_TAKEN = {
    "JPEG that is a ZIP": small("JPEG") + zipped({"x/../../y": b"x"}),
    "PNG that is a page": small("PNG")[:33] + png_chunk(b"tEXt", b"Comment\0" + HTML) + small("PNG")[33:],
    "GIF of 100,000 frames": gif_of_frames(100_000),
    "GIF with a page behind it": small("GIF") + HTML,
    "TIFF that bites its tail": tiff_that_bites_its_tail(),
    "49 megapixels in 50 kB": saved(Image.new("P", (SIDE, SIDE)), "PNG"),
}
RECORDINGS_TAKEN = {
    "WAV that is a page": with_chunk(wave(1), HTML),
    "M4A that claims hours, which nobody believes": m4a_claiming_hours(),
    "WAV that is a ZIP": wave(1) + zipped({"a": b"x"}),
}
RECORDINGS_REFUSED = {
    "page that begins as a WAV": b"RIFF" + struct.pack("<I", 1 << 20) + b"WAVE" + HTML,
    "WAV of negative size": wave(1)[:40] + b"\xff\xff\xff\x7f" + wave(1)[44:1000],
    "playlist in an Ogg": b"OggS" + b"#EXTM3U\nfile:///etc/passwd\n" * 20,
    "concat script": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "MP4 that points elsewhere": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + b"\0\0\0\x10moov" + bytes(8),
    "JPEG": small("JPEG"),
}
