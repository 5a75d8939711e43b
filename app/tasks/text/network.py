"""transformers' text encoders as networks over rows of one or several texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Positions start after the padding id (transformers, create_position_ids_from_input_ids).
_AFTER_PADDING = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta"})


class TextEncoder(nn.Module):
    """A transformers encoder over packed rows."""

    paddings = (0, 0, -1)  # ids, positions, and a text that nobody else belongs to

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.first_position = first_position(module.config)

    def forward(self, input_ids: Tensor, positions: Tensor, texts: Tensor) -> Tensor:
        """[R, L] each, `texts` the number of the text that a token belongs to → hidden states float32 [R, L, D]."""
        together = (texts[:, :, None] == texts[:, None, :])[:, None]
        places = positions + self.first_position
        hidden: Tensor = self.module(input_ids=input_ids, position_ids=places, attention_mask=together).last_hidden_state
        return hidden.float()


class PlainTextEncoder(nn.Module):
    """Any transformers encoder over rows of one text each, which begin with it. Takes the same three tensors."""

    paddings = TextEncoder.paddings

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        config: Any = module.config
        self.padding_id = int(getattr(config, "pad_token_id", None) or 0)
        self._windowed = getattr(config, "sliding_window", None) is not None

    def forward(self, input_ids: Tensor, positions: Tensor, texts: Tensor) -> Tensor:
        """[R, L] each → hidden states float32 [R, L, D]. The module counts positions itself, in some by the padding id."""
        # OpenVINO makes NaN of padding whose window holds no token, and the next layers spread it.
        if self._windowed and torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise NotImplementedError("attention in windows is not traced")
        mask = (texts == texts[:, :1]).long()
        ids = input_ids.masked_fill(mask == 0, self.padding_id)
        hidden: Tensor = self.module(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden.float()


def first_position(config: Any) -> int:
    """The position of a text's first token."""
    return int(config.pad_token_id) + 1 if config.model_type in _AFTER_PADDING else 0
