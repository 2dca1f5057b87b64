"""The windows of a video that shows another picture at each moment."""

from __future__ import annotations

import numpy as np

from vidcls.data.decoding.plan import WindowPlan
from vidcls.data.sampling import StoreSpec


def window_starts(seconds: float, window_seconds: float, stride_seconds: float) -> np.ndarray:
    plan = WindowPlan(StoreSpec(1, 8), window_seconds, stride_seconds, max_whole_seconds=0.0, max_windows=10**6)
    starts, total = plan.choose_windows(np.arange(0.0, max(seconds, stride_seconds), stride_seconds / 4), seconds)
    assert total is None
    return starts
