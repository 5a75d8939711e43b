"""Devices and thread policy."""

from __future__ import annotations

import os
import sys

import torch


def available() -> list[str]:
    """The devices that workers can be placed on: every CUDA device, else the CPU.

    Asks NVML, not the driver (PYTORCH_NVML_BASED_CUDA_CHECK=1), so that no CUDA context is opened in the nursery.
    """
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


def settle(device: str, threads: int | None) -> torch.device:
    """Make this process ready to compute on `device` with `threads` CPU threads (None: one per core on the CPU, one on CUDA)."""
    chosen = torch.device(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or (cores if chosen.type == "cpu" else 1))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        # Exactness before speed: fp32 means fp32 (DESIGN §1), so TF32 stays off.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return chosen


if __name__ == "__main__":
    sys.stdout.write(" ".join(available()))
