from __future__ import annotations

import numpy as np
import pytest
from helpers.windows import window_starts
from hypothesis import given, settings
from hypothesis import strategies as st

from vidcls.moderation.timeline import Segment, segments

PROBABILITY = st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0])


Timeline = tuple[np.ndarray, float, float, np.ndarray]  # starts, window, the video's end, probabilities


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    window = draw(st.floats(0.5, 10.0))
    stride = window * draw(st.floats(0.2, 1.0))
    end = draw(st.floats(0.1, 60.0))
    starts = window_starts(end, window, stride)
    values = draw(st.lists(PROBABILITY, min_size=len(starts), max_size=len(starts)))
    return starts, window, end, np.array(values)


def covered(found: list[Segment], seconds: np.ndarray) -> np.ndarray:
    return np.array([any(one.start_seconds <= s < one.end_seconds for one in found) for s in seconds])


def shown(values: list[float], enter: float = 0.8, leave: float = 0.5, shortest: float = 0.0) -> list[Segment]:
    """Of windows of 4 s each 2 s: cells are cut at 3 5 7 ..., the first from 0, the last to the end."""
    end = 4.0 + 2.0 * (len(values) - 1)
    return segments(window_starts(end, 4.0, 2.0), 4.0, end, np.array(values), enter, leave, shortest)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.2, 0.3], []),
        ([0.6, 0.7, 0.7], []),  # above the exit threshold, never above the other
        ([0.9, 0.1, 0.1], [Segment(0.0, 3.0, 0.9, 2.0)]),
        ([0.1, 0.1, 0.9], [Segment(5.0, 8.0, 0.9, 6.0)]),
        ([0.1, 0.8, 0.5, 0.4], [Segment(3.0, 7.0, 0.8, 4.0)]),  # both bounds belong to the segment
        ([0.6, 0.9, 0.6, 0.9, 0.1], [Segment(3.0, 9.0, 0.9, 4.0)]),  # the first of equal peaks
        ([0.9, 0.4, 0.9, 0.1], [Segment(0.0, 3.0, 0.9, 2.0), Segment(5.0, 7.0, 0.9, 6.0)]),
        ([0.9, 0.4, 0.6, 0.7], [Segment(0.0, 3.0, 0.9, 2.0)]),
        ([0.9, 0.95, 0.9], [Segment(0.0, 8.0, 0.95, 4.0)]),
        ([0.9], [Segment(0.0, 4.0, 0.9, 2.0)]),
    ],
)
def test_segments(values: list[float], expected: list[Segment]) -> None:
    assert shown(values) == expected


def test_a_video_shorter_than_its_window_is_one_segment_with_its_peak_inside() -> None:
    assert segments(np.zeros(1), 4.0, 1.5, np.array([0.9]), 0.5, 0.5, 0.0) == [Segment(0.0, 1.5, 0.9, 0.75)]


def test_short_segments_are_dropped() -> None:
    values = [0.1, 0.9, 0.1, 0.9, 0.9, 0.1]
    assert [one.start_seconds for one in shown(values, shortest=2.0)] == [3.0, 7.0]
    assert [one.start_seconds for one in shown(values, shortest=2.1)] == [7.0]
    assert shown(values, shortest=4.1) == []


def test_no_window_loses_its_segment_to_rounding_or_to_the_last_window_being_moved_back() -> None:
    for end in (10.0, 10.1, 10.7, 11.9):  # 10.1: starts 0 0.7 ... and the last one close to the one before
        starts = window_starts(end, 1.0, 0.7)
        for window in range(len(starts)):
            values = np.zeros(len(starts))
            values[window] = 0.9
            assert len(segments(starts, 1.0, end, values, 0.5, 0.5, 0.7)) == 1


@settings(deadline=None)
@given(timelines(), PROBABILITY, PROBABILITY, st.floats(0.0, 5.0))
def test_segments_are_disjoint_sorted_and_within_the_video(
    timeline: Timeline, one: float, other: float, shortest: float
) -> None:
    starts, window, end, values = timeline
    enter, leave = max(one, other), min(one, other)
    found = segments(starts, window, end, values, enter, leave, shortest)
    edges = [edge for segment in found for edge in (segment.start_seconds, segment.end_seconds)]
    assert edges == sorted(set(edges))  # each is longer than nothing and no two of them touch
    assert all(0 <= edge <= end for edge in edges)
    for segment in found:
        assert segment.start_seconds <= segment.peak_seconds < segment.end_seconds
        assert enter <= segment.peak <= values.max()
    if shortest == 0:
        peaks = [segment.peak for segment in found]
        assert max(peaks, default=None) == (values.max() if values.max() >= enter else None)


@settings(deadline=None)
@given(timelines(), PROBABILITY, PROBABILITY, st.floats(0.0, 5.0), st.data())
def test_more_probability_or_lower_bounds_never_show_less(
    timeline: Timeline, one: float, other: float, shortest: float, data: st.DataObject
) -> None:
    starts, window, end, values = timeline
    enter, leave = max(one, other), min(one, other)
    raised = values.copy()
    raised[data.draw(st.integers(0, len(values) - 1))] = 1.0
    seconds = np.linspace(0, end, 97, endpoint=False)
    before = covered(segments(starts, window, end, values, enter, leave, shortest), seconds)
    for after in (
        segments(starts, window, end, raised, enter, leave, shortest),
        segments(starts, window, end, values, (enter + leave) / 2, leave, shortest),
        segments(starts, window, end, values, enter, leave / 2, shortest),
        segments(starts, window, end, values, enter, leave, shortest / 2),
    ):
        assert (covered(after, seconds) >= before).all()


def test_what_lies_between_and_after_windows_is_of_the_earlier_one() -> None:
    """Where no picture appears no window is read: the last one stays on the screen, be it for an hour."""
    starts = np.array([0.0, 2.0, 20.0])

    def of(*values: float) -> list[tuple[float, float]]:
        found = segments(starts, 4.0, 3600.0, np.array(values), 0.8, 0.5, 0.0)
        return [(segment.start_seconds, segment.end_seconds) for segment in found]

    assert of(0.9, 0.1, 0.1) == [(0.0, 3.0)] and of(0.1, 0.9, 0.1) == [(3.0, 20.0)]
    assert of(0.1, 0.1, 0.9) == [(20.0, 3600.0)] and of(0.9, 0.9, 0.9) == [(0.0, 3600.0)]


def test_a_picture_that_stays_makes_no_other_segment_longer() -> None:
    """From second 4 to 64, so that windows every second are left out there."""
    starts, values = np.array([0.0, 1, 2, 3, 4, 63, 64, 65]), np.array([0.0, 0.9, 0, 0, 0.9, 0, 0, 0])
    found = segments(starts, 2.0, 67.0, values, 0.5, 0.4, min_seconds=5.0)
    assert [(segment.start_seconds, segment.end_seconds) for segment in found] == [(4.5, 63.0)]
