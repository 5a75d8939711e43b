"""Precision on a GPU, and the nursery that must not touch it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import torch

from app.engine.device import settle
from tests.conftest import ROOT
from tests.gpu.conftest import NEEDS_GPU, shipped

pytestmark = NEEDS_GPU


def test_fp32_means_fp32():
    """TF32 keeps ten bits of the fraction: errors near 1e-3 where fp32's lie near 1e-6."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    settle("cuda:0", 1)
    torch.manual_seed(0)
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    exact = a.double() @ b.double()
    assert float(((a.cuda() @ b.cuda()).cpu() - exact).abs().max() / exact.abs().max()) < 1e-5
    picture, kernel = torch.randn(4, 64, 32, 32), torch.randn(64, 64, 3, 3)
    exact = torch.nn.functional.conv2d(picture.double(), kernel.double())
    ours = torch.nn.functional.conv2d(picture.cuda(), kernel.cuda()).cpu()
    assert float((ours - exact).abs().max() / exact.abs().max()) < 1e-5


def test_embeddings_in_bf16_point_where_fp32_points():
    model = shipped("all-minilm-l6-v2")
    exact, rounded = model.runner("cpu").run(model.samples), model.runner("cuda", "bf16").run(model.samples)
    for one, other in zip(exact, rounded, strict=True):
        a, b = one["embedding"], other["embedding"]  # type: ignore[index]
        assert float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) >= 0.999


def test_the_nursery_opens_no_context_and_its_children_can():
    """A context opened before the fork would leave every child without a GPU."""
    program = """
import os, sys
from importlib import import_module
from app.engine.nursery import _FOR_ALL, _FOR_MODULES
for name in (*_FOR_ALL, *_FOR_MODULES):
    import_module(name)
import torch
from app.engine.device import available
assert available()[0] == "cuda:0", available()
assert not torch.cuda.is_initialized()
if (pid := os.fork()) == 0:
    os._exit(0 if float(torch.ones(3, device="cuda").sum()) == 3 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    environment = os.environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
