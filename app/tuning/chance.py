"""The global random states: what dropout, and augmentation in NumPy, draw from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def state(device: torch.device) -> dict[str, Any]:
    """Of this process: tensors and plain values."""
    name, keys, position, gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [name, [int(key) for key in keys], int(position), int(gauss), float(cached)],
    }


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Draw on from what `state` gave."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
