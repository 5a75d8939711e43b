"""Which endpoint reads a file, by its name."""

from __future__ import annotations

from pathlib import Path

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}

_NO_PICTURES = {".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".htm", ".pdf"} | {
    *(".db", ".ini", ".log", ".url", ".lnk", ".py", ".sha256", ".md5"),  # Thumbs.db, desktop.ini
}
_PAPERS = {"readme", "license", "licence", "copying", "notice", "authors", "changelog", "makefile"}


def no_picture(path: Path) -> bool:
    """Whether its name says that it is none: a text, a table, or what a system put there."""
    return path.suffix.lower() in _NO_PICTURES or path.name.lower() in _PAPERS


def endpoint_of(path: Path) -> str:
    """Pictures are classified, everything else is heard."""
    return "/predict/image" if path.suffix.lower() in PICTURES else "/transcribe"
