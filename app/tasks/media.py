"""Which endpoint reads a file, by its name."""

from __future__ import annotations

from pathlib import Path

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}


def endpoint_of(path: Path) -> str:
    """Pictures are classified, everything else is heard."""
    return "/predict/image" if path.suffix.lower() in PICTURES else "/transcribe"
