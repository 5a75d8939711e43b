"""How a card says what its speech model takes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class SpeechInput(BaseModel):
    """The card's `input` table for speech."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sampling_rate: Literal[16000] = 16000
    normalize: bool = True
    """Zero mean and unit variance per window, as Wav2Vec2FeatureExtractor's `do_normalize`."""
    window_s: Annotated[float, Field(gt=1, le=120)] = 30.0
    """Longer recordings are cut into windows of this length."""
    overlap_s: Annotated[float, Field(gt=0)] = 5.0
    """Context at each cut that is heard by both windows and whose frames are dropped from each outer side."""
