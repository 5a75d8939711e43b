"""How a card says what its text model takes, and what of that the model can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# Positions start after the padding id (transformers, create_position_ids_from_input_ids).
_AFTER_PADDING = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta"})


class TextInput(BaseModel):
    """The card's `input` table for text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: Annotated[int, Field(ge=2)] = 512
    """With the special tokens; no more than the model has positions for."""
    pooling: Literal["mean", "cls"] = "mean"


def first_position(config: Mapping[str, Any]) -> int:
    """The position of a text's first token, by what `config.json` holds."""
    return int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in _AFTER_PADDING else 0


def most_tokens(wanted: TextInput, config: Mapping[str, Any]) -> int:
    """How many tokens a text may have: what the card says, but no more than there are positions."""
    positions = config.get("max_position_embeddings")
    return wanted.max_tokens if positions is None else min(wanted.max_tokens, int(positions) - first_position(config))
