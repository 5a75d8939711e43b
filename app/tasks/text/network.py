"""transformers' text encoders as networks over rows of one or several texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from app.tasks.text.input import first_position


class TextEncoder(nn.Module):
    """A transformers encoder over packed rows."""

    paddings = (0, 0, -1)  # ids, positions, and a text that nobody else belongs to

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        config: Any = module.config
        self.first_position = first_position(config.to_dict())

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


class TextClassifier(nn.Module):
    """An encoder, and a linear layer over the vector of a text. What is trained and written; `program.py` runs the two."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        config: Any = encoder.config
        self.classifier = nn.Linear(int(config.hidden_size), classes)


class Classifier(nn.Module):
    """The linear layer as a network."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, embedding: Tensor) -> Tensor:
        """float32 [B, D] → class probabilities float32 [B, C]."""
        scores: Tensor = self.layer(embedding.to(self.layer.weight.dtype)).float().softmax(1)
        return scores
