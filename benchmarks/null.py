"""The null models and the bare route: what is left of a server when the model costs nothing, and what any server must cost.

One is asked for pictures, which a process of its own decodes, one for texts, which the frontend makes ready by itself.

python benchmarks/null.py < answer.json      (a FastAPI route on a free port that reads a body and answers that JSON)
"""

from __future__ import annotations

import io
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvicorn
from common import running
from fastapi import FastAPI, Request
from PIL import Image
from starlette.responses import Response

NAME, TEXT = "null", "null-text"
_CARD = """\
task   = "image-classification"
source = { kind = "module", entry = "Null" }
input  = { resize = [8, 8], crop = 8 }
limits = { max_batch = 64, max_cost = 64 }
[about]
licence = "Apache-2.0"
"""
_MODEL = '''\
"""Constant scores for any picture."""

from torch import Tensor, nn


class Null(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(pixels[:, 0, 0, :1] * 0)
'''


def put_text(home: Path) -> None:
    """Make the card of texts in `home`: BERT without a layer, a row of a small table for each token."""
    from cards import MINILM, folder_of, minilm
    from transformers import BertConfig, BertModel

    folder = folder_of(home, TEXT, MINILM)
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=0, num_attention_heads=1, intermediate_size=8)).save_pretrained(folder)
    shutil.copy(minilm() / "tokenizer.json", folder)
    (folder / "sample.json").write_text(json.dumps({"inputs": "a warm hearth"}))


def put_picture(home: Path) -> None:
    """Make the card of pictures in `home`."""
    import torch
    from safetensors.torch import save_file

    folder = home / "models" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.toml").write_text(_CARD)
    (folder / "model.py").write_text(_MODEL)
    save_file({"head.weight": torch.zeros(10, 1), "head.bias": torch.linspace(0, 1, 10)}, folder / "weights.safetensors")
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)).save(out, "PNG")
    (folder / "sample.png").write_bytes(out.getvalue())


@contextmanager
def routing(answer: Any) -> Iterator[str]:
    """The address of a bare route that gives `answer`, in a process of its own."""
    with running([sys.executable, __file__], r"at (http://\S+)", {}, said=json.dumps(answer)) as (url, _):
        yield url


def main() -> None:
    answer, app = json.load(sys.stdin), FastAPI()

    @app.post("/{path:path}")
    async def route(request: Request) -> Response:
        await request.body()
        return Response(orjson.dumps(answer), media_type="application/json")

    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    # the settings of app/web/process.py
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, server_header=False, backlog=2048)).run([listening])


if __name__ == "__main__":
    main()
