"""Audio bytes → mono float32 at one rate. PyAV (FFmpeg) does the work; its reach is held to sound files given as bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import chain, groupby

import av
import numpy as np

from app.errors import BadInput, TooLarge, UnsupportedMedia

_SUBTYPES = ("wav", "x-wav", "wave", "vnd.wave", "flac", "x-flac", "mpeg", "mp3", "ogg", "opus", "mp4", "m4a", "x-m4a", "aac")
MEDIA_TYPES = (
    *(f"audio/{subtype}" for subtype in (*_SUBTYPES, "webm", "aiff", "x-aiff")),
    *("video/webm", "video/mp4", "application/ogg"),  # what some programs call sound in these containers
)

# Demuxers that read one file and nothing else: FFmpeg's playlist formats would open further files and addresses.
_FORMATS = "wav,w64,flac,mp3,ogg,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aiff,aac"
_OPTIONS = {
    "format_whitelist": _FORMATS,
    "protocol_whitelist": "none",
    # FFmpeg looks for DTS and its like inside the PCM of a WAV with every demuxer that it has, in 32 packets of it:
    # 3 ms for 6 s at 16 kHz, 40 ms for 3 s of 48 kHz stereo. One packet of that suffices.
    "max_probe_packets": "1",
    "max_size": "16384",  # bytes in a packet of WAV; with FFmpeg's own 4096, Python's share of ten minutes is 200 ms
}
# FFmpeg guesses the container from all it can see, and has taken a tone in a WAV for something else (FFmpeg 8, PyAV 19).
_MAGIC = {  # first bytes, and those from the eighth → demuxer
    (b"RIFF", b"WAVE"): "wav",
    (b"fLaC", b""): "flac",
    (b"OggS", b""): "ogg",
    (b"\x1aE\xdf\xa3", b""): "matroska",
    (b"FORM", b"AIF"): "aiff",
}
_RATES = (1_000, 768_000)  # Hz; beyond them is damage, and a filter from 120 MHz down takes seconds
_QUIETEST = 10 ** (-70 / 20)  # -70 dBFS: below the noise of any microphone, above the dither of 16-bit files
# Float samples should lie within 1, but some programs write them in the range of 32-bit integers, and resampling overshoots
# that. So far, no sum of squares overflows: half an hour of 2**32 adds up to 5e26, and float32 holds 3e38.
_LOUDEST = 2.0**32
_SHORTEST = 400  # samples at 16 kHz that one frame of Wav2Vec2 needs: 25 ms
_STREAMED = 0x7FFF0000  # sizes from here on, and 0, say that the writer could not go back to fill in the true one


def read_audio(raw: bytes, rate: int, max_seconds: float) -> np.ndarray:
    """Decode `raw` to float32 [T] at `rate` Hz, channels averaged.

    Raises BadInput (empty, damaged, cut, silent, not finite, absurdly loud), UnsupportedMedia (no sound in it), TooLarge (longer
    than `max_seconds`).
    """
    if not raw:
        raise BadInput("the body is empty; send the bytes of a recording")
    if demuxer(raw) == "wav":
        _whole(raw)
    try:
        waveform = _decode(raw, rate, max_seconds)
    except MemoryError:
        raise
    except av.FFmpegError as error:
        raise BadInput(
            f"the recording is damaged or of no known format ({error.strerror}); send WAV, FLAC, MP3, OGG, M4A or WebM"
        ) from error
    if not np.isfinite(waveform).all():
        raise BadInput("the recording has samples that are not finite numbers (NaN or infinity); export it again")
    if len(waveform) < _SHORTEST * rate // 16000:
        raise BadInput(f"the recording has {len(waveform) * 10_000 // rate / 10:g} ms of sound; at least 25 ms are needed")
    peak = np.abs(waveform).max()
    if peak > _LOUDEST:
        raise BadInput(
            f"the recording has samples up to {peak:.2g}; the limit is {_LOUDEST:,.0f}: export it with samples between -1 and 1"
        )
    if peak < _QUIETEST:
        raise BadInput("the recording is silent: no sample is above -70 dBFS; check the microphone, or send a louder one")
    return waveform


def _decode(raw: bytes, rate: int, max_seconds: float) -> np.ndarray:
    try:
        container = av.open(io.BytesIO(raw), mode="r", format=demuxer(raw), options=_OPTIONS)
    except MemoryError as error:
        if not isinstance(error, av.FFmpegError):  # FFmpeg's: a header asks for more than it, or our limit, ever gives
            raise
        raise BadInput(
            "the recording's header asks for more memory than one file may have: it is damaged, or far too large; export it again"
        ) from error
    except (av.FFmpegError, ValueError, UnicodeDecodeError) as error:
        raise UnsupportedMedia("these bytes are no recording that can be read; send WAV, FLAC, MP3, OGG, M4A or WebM") from error
    with container:
        if not container.streams.audio:
            raise UnsupportedMedia("the file has no sound in it; send WAV, FLAC, MP3, OGG, M4A or WebM")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise UnsupportedMedia("the sound in the file is of no known kind; send WAV, FLAC, MP3, OGG, M4A or WebM")
        _believable(stream.rate)
        stated_s = float(container.duration or 0) / av.time_base
        if stated_s > max_seconds + 1:
            raise _too_long(stated_s, max_seconds)
        return _mono(container.decode(stream), rate, max_seconds)


def _whole(raw: bytes) -> None:
    """Raise BadInput for a WAV whose header promises more than there is; FFmpeg hears the rest and says nothing.

    A missing 25 ms is borne: some writers count their header in.
    """
    at, per_second = 12, 0
    for _ in range(64):  # chunks; there are two or three
        kind, size = raw[at : at + 4], int.from_bytes(raw[at + 4 : at + 8], "little")
        at += 8
        if kind == b"fmt ":
            per_second = int.from_bytes(raw[at + 8 : at + 12], "little")
        elif kind == b"data":
            there = len(raw) - at
            if per_second and size < _STREAMED and size - there > per_second / 40:
                raise BadInput(f"the recording ends after {there / per_second:.2f} of {size / per_second:.2f} s: send it whole")
            return
        at += size + size % 2


def demuxer(raw: bytes) -> str | None:
    """FFmpeg's name of the container, where its first bytes say it; None: FFmpeg shall look (MP3, MP4, AAC)."""
    return next((name for (first, then), name in _MAGIC.items() if raw.startswith(first) and raw.startswith(then, 8)), None)


def _mono(frames: Iterator[av.AudioFrame], rate: int, max_seconds: float) -> np.ndarray:
    """Channels averaged, at `rate`; where rate or channels change on the way, a new resampler takes over."""
    parts: list[np.ndarray] = []
    count = 0
    for (heard, *_), alike in groupby(frames, key=lambda frame: (frame.sample_rate, frame.layout.name, frame.format.name)):
        _believable(heard)
        # A second at a time: codecs' frames are short. Side by side: of channels one behind the other PyAV reads more than there
        # are, and memory that is not theirs, from the eighth on (PyAV 18).
        resampler = av.AudioResampler(format="flt", rate=rate, frame_size=rate)
        for frame in chain(alike, [None]):  # None: what is left
            if frame is not None:
                frame.pts = None  # gaps in time stamps are not ours to fill
            for piece in resampler.resample(frame):
                with np.errstate(over="ignore", invalid="ignore"):  # what is infinite is refused
                    beside = piece.to_ndarray().reshape(-1, piece.layout.nb_channels)
                    channels = np.ascontiguousarray(beside.T)  # along rows, the mean is six times as fast
                    parts.append(channels.mean(axis=0, dtype=np.float32))
                count += len(parts[-1])
            if count > max_seconds * rate:
                raise _too_long(count / rate, max_seconds)
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _believable(rate: int) -> None:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise BadInput(
            f"the recording claims {rate:,} samples a second; {_RATES[0]:,} to {_RATES[1]:,} are read: export it again"
        )


def _too_long(seconds: float, limit: float) -> TooLarge:
    return TooLarge(f"the recording lasts {seconds / 60:.1f} minutes or more; the limit is {limit / 60:g}: send it in parts")
