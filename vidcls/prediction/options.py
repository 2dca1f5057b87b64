"""The options of predict.py: checked before torch is imported, then completed from the run."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vidcls.data.decoding.plan import WindowPlan, check_windows
from vidcls.data.sampling import StoreSpec
from vidcls.errors import UserError, check_choice, check_integer, check_number, check_seed
from vidcls.moderation.aggregation import AGGREGATIONS

if TYPE_CHECKING:
    import pandas as pd

FAR_LONGER = 2.0  # videos longer than so many times the 90th percentile do not count for max_whole_seconds
SEARCHES = ("full", "coarse")
COARSE_WINDOWS = 10  # the default stride of a coarse search, in window lengths


@dataclass(frozen=True)
class SelectOptions:
    """The options of select_videos.py; see conf/select_videos.yaml. Raises `UserError`."""

    count: int
    random_share: float | int
    diverse_share: float | int
    seed: int

    def __post_init__(self) -> None:
        check_integer("count", self.count)
        check_seed("seed", self.seed)
        for name in ("random_share", "diverse_share"):
            check_number(name, getattr(self, name), 0.0, 1.0)
        if (total := self.random_share + self.diverse_share) > 1:
            expected = "random_share + diverse_share to be at most 1"
            raise UserError(expected, f"{total:g}", "Lower one of them.", "random_share")


@dataclass(frozen=True)
class PredictOptions:
    """The options ``predict.*``; see conf/predict.yaml. Raises `UserError`."""

    max_whole_seconds: float | int | None = None
    window_seconds: float | int | None = None
    stride_seconds: float | int | None = None
    max_windows: int = 10_000
    aggregation: str = "max"
    top_k: int = 3
    enter_threshold: float | int = 0.5
    exit_threshold: float | int = 0.4
    min_seconds: float | int = 0.0
    search: str = "full"
    coarse_stride_seconds: float | int | None = None
    coarse_threshold: float | int = 0.2

    def __post_init__(self) -> None:
        durations = ("max_whole_seconds", "window_seconds", "stride_seconds", "min_seconds", "coarse_stride_seconds")
        for name in durations:
            if getattr(self, name) is not None:
                check_number(f"predict.{name}", getattr(self, name))
        if self.window_seconds is not None:
            check_windows(float(self.window_seconds), self._stride(self.window_seconds))
        check_choice("predict.aggregation", self.aggregation, AGGREGATIONS)
        check_choice("predict.search", self.search, SEARCHES)
        check_number("predict.coarse_threshold", self.coarse_threshold, maximum=1.0)
        check_integer("predict.top_k", self.top_k)
        check_integer("predict.max_windows", self.max_windows)
        check_number("predict.enter_threshold", self.enter_threshold, maximum=1.0)
        check_number("predict.exit_threshold", self.exit_threshold, maximum=self.enter_threshold)

    def _stride(self, window_seconds: float | int) -> float:
        return float(window_seconds / 2 if self.stride_seconds is None else self.stride_seconds)

    def complete(self, clip_seconds: float | int | None, manifest: pd.DataFrame) -> PredictOptions:
        """Replaces None, by a run's ``clip_seconds`` and the durations of its videos.

        The longest intact video of the run is classified whole, as in training; but outliers are ignored, as all new
        videos would be classified whole.
        """
        intact = manifest[manifest["status"] == "ok"]
        if intact.empty:
            intact = manifest[manifest["status"] == "partial"]
        seconds = intact["seconds"].astype(float)
        window, max_whole = self.window_seconds, self.max_whole_seconds
        if window is None:
            train = seconds[intact["split"] == "train"]
            window = clip_seconds or round(float((seconds if train.empty else train).median()), 3)
        if max_whole is None:
            limit = FAR_LONGER * float(seconds.quantile(0.9, interpolation="lower"))
            longest = float(seconds[seconds <= limit].max())
            # Half a second more, as containers disagree about when a video ends.
            max_whole = math.ceil(check_number("predict.max_whole_seconds", longest) + 0.5)
            if (far := intact[seconds > limit]).size:
                warnings.warn(
                    f"Videos longer than {max_whole} s will be classified window by window. {len(far)} of the run's "
                    f"videos, such as {far.iloc[0].path}, are much longer and were ignored when choosing this limit; "
                    "set predict.max_whole_seconds to override it.",
                    stacklevel=2,
                )
        return replace(
            self,
            window_seconds=float(window),
            stride_seconds=self._stride(window),
            max_whole_seconds=float(max_whole),
            coarse_stride_seconds=float(
                window * COARSE_WINDOWS if self.coarse_stride_seconds is None else self.coarse_stride_seconds
            ),
        )

    def plan(self, store: StoreSpec) -> WindowPlan:
        """The plan of windows; the options must be complete."""
        assert self.window_seconds is not None and self.stride_seconds is not None
        assert self.max_whole_seconds is not None
        lengths = self.window_seconds, self.stride_seconds, self.max_whole_seconds
        coarse = self.coarse_stride_seconds if self.search == "coarse" else None
        return WindowPlan(store, *lengths, self.max_windows, coarse)
