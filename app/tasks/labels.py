"""Scores → labels, for every task that classifies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.errors import ModelFailed
from app.tasks.base import Files


def read_labels(files: Files, meta: dict[str, Any]) -> list[str]:
    """`labels.txt` beside the card, or what came with the weights; empty if neither says."""
    if "labels.txt" in files:
        return files["labels.txt"].read_text(encoding="utf-8").splitlines()
    return list(meta.get("labels") or [])


def best(scores: np.ndarray, labels: Sequence[str], top_k: int) -> dict[str, Any]:
    """`scores` [C] → `predictions`: the `top_k` labels, best first. Raises ModelFailed if there are other than C labels."""
    if labels and len(labels) != len(scores):
        raise ModelFailed(f"the model gave {len(scores)} scores for {len(labels)} labels; mend its labels.txt")
    order = np.argsort(-scores, kind="stable")[:top_k]
    pairs = zip(order.tolist(), scores[order].tolist(), strict=True)
    return {"predictions": [{"label": labels[i] if labels else str(i), "index": i, "score": score} for i, score in pairs]}
