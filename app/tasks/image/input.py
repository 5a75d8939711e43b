"""How a card says what its pictures must look like. Names and meaning are those of torchvision's presets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Side = Annotated[int, Field(ge=1, le=4096)]


class ImageInput(BaseModel):
    """The card's `input` table for pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: Side | tuple[Side, Side] = 256
    """Shorter side after resizing, or [height, width] to squeeze the whole picture into."""
    crop: Side = 224
    """Side of the square cut from the middle."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Of the training pictures, per channel, in 0 … 1."""
    color: Literal["rgb", "gray"] = "rgb"
