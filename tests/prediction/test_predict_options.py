from __future__ import annotations

import math
import warnings
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidcls.errors import UserError
from vidcls.prediction.options import PredictOptions

MANIFEST = pd.DataFrame(
    {
        "status": ["ok", "ok", "partial", "undecodable", "ok"],
        "split": ["train", "train", "train", "train", "test"],
        "seconds": [4.0, 5.0, 6.0, 900.0, 7.2],
    }
)


def lengths(options: PredictOptions) -> tuple[Any, ...]:
    return options.window_seconds, options.stride_seconds, options.max_whole_seconds


def test_defaults_are_what_training_saw() -> None:
    assert lengths(PredictOptions().complete(None, MANIFEST)) == (4.5, 2.25, 8.0)  # of intact videos
    assert lengths(PredictOptions().complete(2, MANIFEST)) == (2.0, 1.0, 8.0)
    given = PredictOptions(window_seconds=3, stride_seconds=1, max_whole_seconds=0)
    assert lengths(given.complete(2, MANIFEST)) == (3.0, 1.0, 0.0)


def manifest_of(seconds: list[float], status: str = "ok") -> pd.DataFrame:
    columns = {"path": [f"{number}.mp4" for number in range(len(seconds))], "seconds": seconds}
    return pd.DataFrame(columns | {"status": status, "split": "train"})


@settings(deadline=None)
@given(st.lists(st.floats(1, 60), min_size=2, max_size=50), st.floats(130, 1e6))
def test_one_odd_training_video_does_not_turn_windows_off(seconds: list[float], odd: float) -> None:
    """Whatever it is: a new video that is longer than all of the others is still classified in windows."""
    with pytest.warns(UserWarning, match="much longer and were ignored"):
        options = PredictOptions().complete(None, manifest_of([*seconds, odd]))
    assert options.max_whole_seconds is not None and options.max_whole_seconds <= max(seconds) + 1.5


@settings(deadline=None)
@given(st.lists(st.floats(10, 20), min_size=1, max_size=50))
def test_without_an_odd_one_all_videos_of_the_run_are_classified_whole(seconds: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = PredictOptions().complete(None, manifest_of(seconds))
    assert options.max_whole_seconds is not None and options.max_whole_seconds >= max(seconds) + 0.5


def test_a_damaged_video_says_nothing_about_durations() -> None:
    both = pd.concat([manifest_of([4.0, 5.0]), manifest_of([9000.0], "partial")])
    assert lengths(PredictOptions().complete(None, both)) == (4.5, 2.25, 6.0)
    assert lengths(PredictOptions().complete(None, manifest_of([4.0], "partial"))) == (4.0, 2.0, 5.0)
    with pytest.raises(UserError) as error:
        PredictOptions(window_seconds=1).complete(None, manifest_of([math.nan]))
    assert error.value.code == "predict.max_whole_seconds"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"window_seconds": 0}, "predict.window_seconds"),
        ({"window_seconds": 2, "stride_seconds": 3}, "stride-longer-than-window"),
        ({"stride_seconds": -1}, "predict.stride_seconds"),
        ({"max_whole_seconds": -1}, "predict.max_whole_seconds"),
        ({"aggregation": "median"}, "predict.aggregation"),
        ({"aggregation": "top-k mean"}, "predict.aggregation"),
        ({"top_k": 0}, "predict.top_k"),
        ({"enter_threshold": 1.1}, "predict.enter_threshold"),
        ({"enter_threshold": 0.5, "exit_threshold": 0.6}, "predict.exit_threshold"),
        ({"exit_threshold": -0.1}, "predict.exit_threshold"),
        ({"min_seconds": -1.0}, "predict.min_seconds"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError) as error:
        PredictOptions(**options)
    assert error.value.code == code


def test_a_stride_longer_than_the_runs_window_is_refused() -> None:
    with pytest.raises(UserError) as error:
        PredictOptions(stride_seconds=5.5).complete(None, MANIFEST)
    assert error.value.code == "stride-longer-than-window"
