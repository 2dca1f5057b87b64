"""Random predictions of a split."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st


@st.composite
def splits(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with frequent ties, 0 and 1 among them, and labels; classes may be absent or never predicted."""
    k, n = draw(st.integers(2, 6)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = rng.integers(0, 5, size=(n, k)).astype(float)  # also probabilities of 0 and 1
    weights[weights.sum(axis=1) == 0, 0] = 1.0
    labels = rng.choice(draw(st.lists(st.integers(0, k - 1), min_size=1, max_size=k)), size=n)
    return weights / weights.sum(axis=1, keepdims=True), labels
