"""LoRA (arXiv:2106.09685) by peft: small matrices beside a network's layers, merged into them when they have learnt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from app.errors import Invalid
from app.tuning.spec import Spec


def adapt(network: nn.Module, spec: Spec, layers: str = "all-linear") -> Callable[[], object]:
    """Where the spec wants LoRA, put it into the network; returns what merges it at the end. `layers`: `inject` says."""
    if spec.method != "lora":
        return nothing
    inject(network, spec.rank or 16, layers)
    return lambda: merge(network)


def nothing() -> None:
    """Nothing is left to be done."""


def beside(network: nn.Module, head: nn.Module, run: Callable[[], object]) -> str:
    """Pattern of the names of all layers of an image classifier that can have matrices beside them, but for its head.

    `run` has the network see a picture: whatever reads a layer's weights without calling it (Swin's attention) would pass the
    matrices by (and what does both must not be here). Nor can they be merged into a layer, or weights, that stand in two places.
    Raises Invalid if nothing is left.
    """
    layers = Counter(layer for _, layer in network.named_modules(remove_duplicate=False))
    weights = Counter(id(weight) for _, weight in network.named_parameters(remove_duplicate=False))
    alone = {layer for layer in layers if layer is not head and _plain(layer) and layers[layer] == weights[id(layer.weight)] == 1}
    called: set[nn.Module] = set()
    hooks = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in alone]
    run()
    for hook in hooks:
        hook.remove()
    if not called:
        raise Invalid(
            "spec: method: lora: beside its classifier the network has no linear layer or convolution that can have matrices: a "
            "plain one, without groups or dilation, that it calls and that stands in one place; use head or full"
        )
    return "|".join(re.escape(name) for name, layer in network.named_modules() if layer in called)


def _plain(layer: nn.Module) -> bool:
    """No subclass of it. Of convolutions peft copies no dilation, and merges none that has groups; one defined without its
    channels does not know them.
    """
    if type(layer) is nn.Conv2d:
        return layer.weight.shape[1] == layer.in_channels and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    return type(layer) is nn.Linear


def inject(network: nn.Module, rank: int, layers: str = "all-linear") -> None:
    """Put matrices of this rank beside the layers whose names match, in place; all linear ones is for transformers' encoders.
    Nothing else in the network learns then.
    """
    torch.backends.mha.set_fastpath_enabled(False)  # of nn.TransformerEncoderLayer: it reads weights without calling layers
    from peft import LoraConfig, inject_adapter_in_model  # two seconds, for those who want it

    config: Any = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers)
    inject_adapter_in_model(config, network)


def merge(module: nn.Module) -> None:
    """Add each product of two matrices to the weights that it stands beside, and leave plain layers, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())
    torch.backends.mha.set_fastpath_enabled(True)
