"""Where a run computes, and what that is called. All that accelerate is told stands here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState

from app import __version__
from app.settings import export

_LIBRARIES = ("torch", "torchvision", "numpy", "transformers", "tokenizers", "accelerate", "peft", "safetensors")


def choose(devices: Sequence[str]) -> None:
    """Hold this process to the first of the devices that a setting names; `auto`: CUDA where there is one. Before all else."""
    if devices and devices[0] != "auto":
        export("ACCELERATE_TORCH_DEVICE", devices[0])


def accelerator() -> Accelerator:
    """CUDA where there is one, else the CPU; one of several processes where `accelerate launch` or torchrun started this one.

    Precision is the loop's own business: accelerate keeps one for the whole process, and a job may train a head in fp32 and then
    the network in bf16. The schedule counts our steps, whatever the number of processes.
    """
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, as in serving; bf16 is the fast one
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        step_scheduler_with_optimizer=False,
        # Networks may have weights that a loss does not reach (auxiliary heads, wav2vec2's mask).
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def meet() -> None:
    """Wait until all processes of this training, if there are several, have come so far: the first one may still be writing, and
    a launcher ends all where one ends.
    """
    PartialState().wait_for_everyone()


def leave() -> None:
    """The last thing that a process of several does, when all are done; it does not return from there, and returns at once where
    there is one. Ending as usual, Python and the libraries take things down while gloo's threads live, which aborts now and then
    ("terminate called without an active exception"), and the launcher calls the training failed (pytorch/pytorch#179291).
    """
    meet()
    if PartialState().num_processes > 1:
        PartialState().destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def described(device: torch.device) -> dict[str, Any]:
    """`device`, and what it is sold as."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": str(device), "device_name": name}


def memory(device: torch.device) -> dict[str, int]:
    """Bytes that this process holds now; on CUDA also the most that its tensors took of the device."""
    held = {"memory_bytes": psutil.Process().memory_info().rss}
    return held | ({"device_memory_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {})


def versions() -> dict[str, str]:
    """Of all that has a part in the numbers, as far as it is installed."""
    found = {"hearth": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | ({"cuda": str(torch.version.cuda)} if torch.cuda.is_available() else {})


@cache
def _processor() -> str:
    """Linux keeps it in a file; elsewhere Python may know."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
