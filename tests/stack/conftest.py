"""Real servers for the stack tests: `hearth serve` on a free port, with toy models in a home of its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import psutil
import pytest
import torch
import uvloop
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import ROOT
from tests.stack.openapi import fits, operations


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What serves: it hears of a socket's error in a way of its own."""
    return {"uvloop": uvloop.new_event_loop}


TOY = '''
"""Classifies 8 x 8 pictures by their brightness. Magenta kills, green is slow, cyan is slower, blue raises."""
import os, signal, time
import torch
from torch import nn

class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 16)

    def forward(self, x):
        flat = x.flatten(1)
        red, green, blue = x[:, 0].mean((1, 2)), x[:, 1].mean((1, 2)), x[:, 2].mean((1, 2))
        if bool(((red > 0.9) & (green < 0.1) & (blue > 0.9)).any()):
            os.kill(os.getpid(), signal.SIGKILL)
        if bool(((red < 0.1) & (green < 0.1) & (blue > 0.9)).any()):
            raise ValueError("blue")
        if bool(((red < 0.1) & (green > 0.9) & (blue < 0.1)).any()):
            time.sleep(0.4)
        if bool(((red < 0.1) & (green > 0.9) & (blue > 0.9)).any()):
            time.sleep(4)
        if bool(((red > 0.9) & (green > 0.9) & (blue < 0.1)).any()):
            time.sleep(18)
        return self.head(flat)
'''
TOY_CARD = """
task    = "image-classification"
default = {default}
source  = {{ kind = "module", entry = "Toy" }}
input   = {{ resize = [8, 8], crop = 8, mean = [0, 0, 0], std = [1, 1, 1] }}
limits  = {{ max_batch = 8, max_cost = 8, max_queue = 256 }}
[about]
licence = "x"
"""
SPEECH_CARD = """
task   = "speech-recognition"
source = { kind = "file", path = ".", architecture = "transformers" }
input  = { window_s = 4, overlap_s = 1 }
limits = { max_batch = 8, max_cost = 120, max_queue = 256 }
[about]
licence = "x"
"""
TEXT_CARD = """
task   = "text-embedding"
source = { kind = "file", path = ".", architecture = "transformers" }
input  = { max_tokens = 16, pooling = "mean" }
limits = { max_batch = 8, max_cost = 512, max_queue = 256 }
[about]
licence = "x"
"""
_VOCABULARY = "a the film was good great fine bad dull poor and very quite rather not plot music end"
WORDS = _VOCABULARY.split()


def wait_for(what: Callable[[], Any], seconds: float = 30) -> Any:
    """Poll until `what()` is true; its value. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.01)
    return found


def picture(red: int, green: int, blue: int) -> bytes:
    """An 8 x 8 PNG of one colour."""
    return saved(Image.new("RGB", (8, 8), (red, green, blue)))


def saved(image: Image.Image) -> bytes:
    """As PNG."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def wave(seconds: float, rate: int = 16000, value: float | None = None) -> bytes:
    """A mono float WAV of noise, or of one value."""
    count = int(seconds * rate)
    return wave_of(np.random.default_rng(0).normal(0, 0.1, count) if value is None else np.full(count, value), rate)


def wave_of(samples: np.ndarray, rate: int = 16000) -> bytes:
    """A mono float WAV."""
    import struct

    data = samples.astype("<f4").tobytes()
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, 1, rate, rate * 4, 4, 32, b"data", len(data)
    )
    return head + data


def write_toys(home: Path) -> None:
    """A picture model with levers, a speech model with random weights, a card whose weights do not fit."""
    torch.manual_seed(0)
    for name, default in (("toy", "true"), ("other", "false"), ("misfit", "false")):
        write_toy(home / "models" / name, default, 3 if name == "misfit" else 16)
    write_speech(home / "models" / "toy-speech")


def write_toy(folder: Path, default: str = "false", rows: int = 16) -> None:
    """A picture model with random weights."""
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(TOY)
    (folder / "card.toml").write_text(TOY_CARD.format(default=default))
    (folder / "sample.png").write_bytes(picture(10, 20, 30))
    (folder / "labels.txt").write_text("\n".join(f"label{n}" for n in range(16)))
    save_file({"head.weight": torch.randn(rows, 192), "head.bias": torch.zeros(rows)}, folder / "weights.safetensors")


def write_speech(folder: Path) -> None:
    """A tiny Wav2Vec2 with random weights."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        vocab_size=6,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    (folder / "card.toml").write_text(SPEECH_CARD)
    (folder / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1, "A": 2, "B": 3, "C": 4, "D": 5}))
    (folder / "sample.wav").write_bytes(wave(0.5))


def write_text(folder: Path) -> None:
    """A tiny BERT with random weights, and the vocabulary of WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    vocabulary = special | {word: number for number, word in enumerate(WORDS, 4)}
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "card.toml").write_text(TEXT_CARD)
    (folder / "sample.json").write_text('{"inputs": "a good film"}')


class Clients:
    """Threads that ask, each in its own way (`_run`), until told to stop."""

    def __init__(self, server: Server, count: int = 4) -> None:
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(server.url, number)) for number in range(count)]

    def _run(self, url: str, number: int) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Server:
    """One `hearth serve` and what a test needs to know of it."""

    def __init__(self, home: Path, *, under: Sequence[str] = (), **settings: str) -> None:
        """`under`: a command that runs the server's, such as `prlimit`. Names without HEARTH_ are variables like any other."""
        self.home = home
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEARTH_")}
        environment |= {
            "PYTHONPATH": str(ROOT),
            "HEARTH_HOME": str(home),
            "HEARTH_PORT": "0",
            "HEARTH_PROFILE": "starter",
            "HEARTH_COMPUTE": "eager",  # exact answers at once; what is chosen in the background has tests of its own
            "HEARTH_PRECISION": "fp32",
            "COLUMNS": "200",
        }
        self.process = subprocess.Popen(
            [*under, sys.executable, "-P", "-m", "app", "serve"],
            env=environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.said.extend(lines)

    def __enter__(self) -> Server:
        operations()  # while the server begins: no request shall wait for it
        try:
            self.url = wait_for(self._address, 120)
        except AssertionError:
            self.kill()
            raise AssertionError("".join(self.said)) from None
        self.http = httpx.Client(base_url=self.url, timeout=30, event_hooks={"response": [fits]})
        return self

    def _address(self) -> str | None:
        assert self.process.poll() is None, "".join(self.said)
        found = re.search(r"Hearth is at (http://\S+)", "".join(self.said))
        return found and found[1]

    def __exit__(self, *_: object) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(5)

    @property
    def log(self) -> str:
        return "".join(self.said)

    def children(self) -> dict[str, psutil.Process]:
        """Our processes by name."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found[child.name()] = child
        return found

    def dead(self) -> list[psutil.Process]:
        """Children of the supervisor that have ended and that nobody has let go."""
        with contextlib.suppress(psutil.NoSuchProcess):  # one is let go just now
            return [one for one in psutil.Process(self.process.pid).children() if one.status() == psutil.STATUS_ZOMBIE]
        return []

    def model(self, name: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.http.get(f"/models/{name}").json()
        return answer

    def worker(self, name: str = "toy") -> int:
        """The pid of the model's one worker."""
        pid: int = self.model(name)["workers"][0]["pid"]
        return pid

    def metric(self, start: str) -> float:
        """The sum of the samples in /metrics whose lines start so."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(start))

    def hang_up(self) -> None:
        """SIGHUP; returns when cards and keys were read anew."""
        said = self.log.count("cards: ")
        self.process.send_signal(signal.SIGHUP)
        wait_for(lambda: self.log.count("cards: ") > said)

    def predict(self, raw: bytes, **query: Any) -> httpx.Response:
        return self.http.post("/predict/image", content=raw, params=query, headers={"content-type": "image/png"})


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_toys(home)
    return home


@pytest.fixture(scope="module")
def server(toys: Path) -> Iterator[Server]:
    """A server with toys of three modalities, shared by the tests of a module."""
    with Server(
        toys, HEARTH_MODELS="toy,toy-speech,all-minilm-l6-v2", HEARTH_MAX_BODY_MB="8", HEARTH_MAX_AUDIO_MIN="1"
    ) as server:
        yield server
