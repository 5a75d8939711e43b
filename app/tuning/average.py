"""The running mean of a module's weights. Knows no loop."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch


class Average:
    """Exponential moving average of a module's weights and buffers (Polyak averaging); with decay 0, the module itself."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self._module = module
        self._decay = decay
        self._copy = deepcopy(module) if decay else module
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step. Early on the average is short, so that random weights are soon forgotten."""
        if not self._decay:
            return
        self._updates += 1
        share = 1 - min(self._decay, self._updates / (self._updates + 10))
        for kept, new in zip(self._copy.state_dict().values(), self._module.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, share)
            else:
                kept.copy_(new)

    @property
    def module(self) -> torch.nn.Module:
        """What to measure."""
        return self._copy

    def state(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {"updates": self._updates, "copy": self._copy.state_dict() if self._decay else {}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on averaging."""
        self._updates = state["updates"]
        if self._decay:
            self._copy.load_state_dict(state["copy"])

    def keep(self) -> None:
        """Give the module the averaged weights."""
        if self._decay:
            self._module.load_state_dict(self._copy.state_dict())
