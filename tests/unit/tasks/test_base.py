"""What a network gives for a batch is one vector each, always as wide, or it is no answer."""

from __future__ import annotations

import numpy as np
import pytest

from app.errors import ModelFailed
from app.tasks.base import Vectors


def test_vectors_of_the_first_width_pass_and_nothing_else_does():
    vectors = Vectors()
    first = np.zeros((1, 16), np.float32)
    assert vectors.of("scores", first, 1) is first
    assert vectors.of("embedding", np.zeros((2, 4)), 2).shape == (2, 4)
    for shape, count in (((2, 16), 3), ((3, 16), 2), ((2, 3), 2), ((16,), 16), ((2, 16, 1), 2)):
        with pytest.raises(ModelFailed, match="the model gave 'scores'"):
            vectors.of("scores", np.zeros(shape), count)
