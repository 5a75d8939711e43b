"""LoRA (arXiv:2106.09685) by peft: small matrices beside an encoder's linear layers, merged into them when they have learnt."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def inject(encoder: nn.Module, rank: int) -> None:
    """Put matrices of this rank beside all linear layers of a transformers encoder, in place. Nothing else in it learns then."""
    config: Any = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    inject_adapter_in_model(config, encoder)


def merge(module: nn.Module) -> None:
    """Add each product of two matrices to the weights that it stands beside, and leave plain layers, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())
