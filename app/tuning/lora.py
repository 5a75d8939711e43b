"""LoRA (arXiv:2106.09685) by peft: small matrices beside an encoder's linear layers, merged into them when they have learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from app.tuning.spec import Spec


def adapt(encoder: nn.Module, spec: Spec) -> Callable[[], object]:
    """Where the spec wants LoRA, put it into the encoder; returns what merges it at the end."""
    if spec.method != "lora":
        return nothing
    inject(encoder, spec.rank or 16)
    return lambda: merge(encoder)


def nothing() -> None:
    """Nothing is left to be done."""


def inject(encoder: nn.Module, rank: int) -> None:
    """Put matrices of this rank beside all linear layers of a transformers encoder, in place. Nothing else in it learns then."""
    from peft import LoraConfig, inject_adapter_in_model  # two seconds, for those who want it

    config: Any = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    inject_adapter_in_model(config, encoder)


def merge(module: nn.Module) -> None:
    """Add each product of two matrices to the weights that it stands beside, and leave plain layers, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())
