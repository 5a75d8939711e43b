"""How a card says what its text model takes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class TextInput(BaseModel):
    """The card's `input` table for text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: Annotated[int, Field(ge=2)] = 512
    """With the special tokens; no more than the model has positions for."""
    pooling: Literal["mean", "cls"] = "mean"
