"""A picture model that does on demand what a model must not do, and its right answers."""

from __future__ import annotations

from pathlib import Path

import torch
from callers import Question
from safetensors.torch import save_file

from tests.stack.conftest import picture

STALL_S = 2.0
LOOKS_S = 0.25  # app/pool/supervisor.py, _WATCH_S: it looks so often, so what stands still is noticed by so much later at most
SLOW_S = 1.0
_SLOW = 100

LEVERS = (
    "raises",
    "hangs",
    "segfaults",
    "exits",
    "exits with 0",
    "fills memory",
    "gives NaN",
    "gives a row too many",
    "gives a row of 3",
)
_DEADLY = ("hangs", "segfaults", "exits", "exits with 0")
CODES = {name: "poisoned" if name in _DEADLY else "model_failed" for name in LEVERS} | {"fills memory": "out_of_memory"}

_MODEL = '''
"""Classifies 8 x 8 pictures. A picture with full red pulls the lever whose number is its green."""
import ctypes, os, threading, time
import torch
from torch import nn

class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 16)

    def forward(self, x):
        pulled = torch.where(x[:, 0, 0, 0] > 0.999, (x[:, 1, 0, 0] * 255).round(), -1)
        levers = set(pulled.int().tolist())
        if pulled.max() >= 0:
            os.write(2, f"{int((pulled >= 0).sum())} of {len(x)} pull a lever\\n".encode())
        if 0 in levers:
            raise ValueError("a lever was pulled")
        if 1 in levers:
            threading.Event().wait()
        if 2 in levers:
            ctypes.string_at(0)
        if 3 in levers:
            raise SystemExit(3)
        if 4 in levers:
            os._exit(0)
        if SLOW in levers:
            time.sleep(SLOW_S)
        kept = []
        while 5 in levers:
            kept.append(torch.empty(1 << 28))
        scores = self.head(x.flatten(1))
        if 6 in levers:
            scores = torch.where((pulled == 6)[:, None], torch.nan, scores)
        if 7 in levers:
            scores = torch.cat([scores[:1], scores])
        return scores[:, :3] if 8 in levers else scores
'''
_CARD = """
task    = "image-classification"
default = {default}
source  = {{ kind = "module", entry = "Toy" }}
input   = {{ resize = [8, 8], crop = 8, mean = [0, 0, 0], std = [1, 1, 1] }}
limits  = {{ max_batch = 8, max_cost = 8, max_queue = 256, stall_s = {stall_s}, memory_mb = 3000 }}
[about]
licence = "x"
"""


def write(home: Path) -> Path:
    """Two toys with weights of their own: `toy`, the default, and `other`."""
    for seed, name in enumerate(("toy", "other")):
        folder = home / "models" / name
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(_MODEL.replace("SLOW_S", str(SLOW_S)).replace("SLOW", str(_SLOW)))
        (folder / "card.toml").write_text(_CARD.format(default=str(name == "toy").lower(), stall_s=STALL_S))
        (folder / "sample.png").write_bytes(picture(10, 20, 30))
        torch.manual_seed(seed)
        save_file({"head.weight": torch.randn(16, 192), "head.bias": torch.zeros(16)}, folder / "weights.safetensors")
    return home


def slow(number: int) -> bytes:
    """A picture whose right answer takes `SLOW_S`."""
    return picture(255, _SLOW, number)


def poison(lever: str) -> bytes:
    """The picture that pulls it."""
    return picture(255, LEVERS.index(lever), 0)


def wrong(lever: str) -> Question:
    """It is sent alone, and has an error of its own."""
    code = CODES[lever]
    status = {"poisoned": 500, "model_failed": 500, "out_of_memory": 507}[code]
    return Question("/predict/image", poison(lever), "image/png", [{"code": code}], status)
