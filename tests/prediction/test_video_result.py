"""What `build_result` makes of a video: it is allowed only where all of it was seen, and nothing of it was harmful."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vidcls.data.decoding.plan import Window
from vidcls.data.decoding.result import DecodeResult
from vidcls.moderation.aggregation import AGGREGATIONS
from vidcls.moderation.policy import Policy
from vidcls.prediction.options import PredictOptions
from vidcls.prediction.peaks import Peaks
from vidcls.prediction.video_result import build_result

CLASSES = ("harmful", "safe")
SUPPORT, ERROR = {"harmful": 9, "safe": 9}, {"before": 0.0, "after": 0.0}
POLICY = Policy("m", CLASSES, "safe", 1.0, {"harmful": 0.4}, {"harmful": 0.8}, {}, SUPPORT, ERROR)
PICTURE = np.zeros((1, 8, 8, 3), np.uint8)
VALID = [(0.0, 1.0), (0.1, 0.9), (0.6, 0.4), (1.0, 0.0)]
INVALID = [(math.nan, math.nan), (0.0, math.inf), (0.0, 0.0)]


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["ok", "partial", "undecodable", "died", ""]),
    st.sampled_from([0.0, 0.5, 0.999, 1.0]),
    st.lists(st.sampled_from(VALID + INVALID), max_size=4),
    st.booleans(),
    st.sampled_from(AGGREGATIONS),
)
def test_only_a_video_that_was_seen_completely_is_allowed(
    status: str, coverage: float, rows: list[tuple[float, float]], opened: bool, aggregation: str
) -> None:
    """Any status, damage, timeline without windows, or value that is no probability is for review or blocked."""
    decoded = DecodeResult(status, "" if status == "ok" else "why", "pyav", 4.0 * len(rows), coverage)
    windows = [(4.0 * i, 4.0 * i + 4.0, np.array(row, np.float32)) for i, row in enumerate(rows)]
    peaks = Peaks(CLASSES, 0.4) if opened else None
    for start, end, row in windows if peaks else ():
        peaks.add(Window(start, end, PICTURE, 1.0), row)
    options = PredictOptions(4.0, 4.0, 4.0, aggregation=aggregation)
    for policy in (POLICY, None):
        cells, _ = build_result(decoded, windows, peaks, model="m", classes=CLASSES, policy=policy, options=options)
        assert cells["decision"] in ("allow", "review", "block")
        assert (cells["reason"] == "") == (cells["decision"] == "allow")
        seen = status == "ok" and coverage == 1 and opened and len(rows) > 0
        if cells["decision"] == "allow":
            assert policy is not None and seen and not set(rows) & set(INVALID)
            assert aggregation != "max" or max(row[0] for row in rows) < 0.4
        if not seen:
            assert cells["decision"] == "review"
        if coverage < 1 or status != "ok":
            assert cells["status"] != "ok"
