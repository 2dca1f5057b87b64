"""search=coarse: classifies sparse windows of a long video first, then all windows around those that look harmful."""

from dataclasses import dataclass, replace

import numpy as np

from vidcls.data.decoding.plan import Spans
from vidcls.data.decoding.result import LOST, USABLE
from vidcls.errors import UserError
from vidcls.metrics.calibration import calibrate
from vidcls.moderation.policy import Policy
from vidcls.prediction.options import PredictOptions
from vidcls.prediction.video_result import TimedOutputs, read_fraction
from vidcls.prediction.video_stream import VideoFound


@dataclass(frozen=True)
class CoarseSearch:
    """Chooses the spans for the second pass, and joins both passes; with ``predict.search=full`` there is only one.

    Raises:
        UserError: the search is coarse, and there is no policy that says which classes are harmful.
    """

    options: PredictOptions
    policy: Policy | None

    def __post_init__(self) -> None:
        if self.options.search == "coarse" and self.policy is None:
            remedy = "Fit one with evaluate.py run=DIR policy.safe_class=CLASS, or give predict.search=full."
            raise UserError("a policy, for predict.search=coarse", "none", remedy, "search-without-policy")

    def spans(self, found: VideoFound) -> Spans | None:
        """The spans for the second pass: around each window that looks harmful, up to the next ones; None for none."""
        decoded, windows, _ = found
        sparse = self.options.search == "coarse" and len(windows) > 1 and read_fraction(windows, windows[-1][1]) < 1
        if self.policy is None or not sparse or decoded.status not in USABLE:
            return None
        harmful = [k for k, name in enumerate(self.policy.classes) if name != self.policy.safe_class]
        rows = np.stack([outputs[: len(self.policy.classes)] for *_, outputs in windows])
        highest = calibrate(rows, self.policy.temperature)[:, harmful].max(axis=1)
        likely = np.flatnonzero(highest >= self.options.coarse_threshold).tolist()
        last = len(windows) - 1
        return tuple((windows[max(i - 1, 0)][0], windows[min(i + 1, last)][1]) for i in likely) or None

    @staticmethod
    def join(first: VideoFound, second: VideoFound) -> VideoFound:
        """The windows of both passes, each once, and the worse of their decode results."""
        decoded, windows, peaks = second
        if decoded.status in LOST:  # the first pass still counts
            return replace(first[0], status="partial", reason=decoded.reason), first[1], first[2]
        by_start: dict[float, tuple[float, float, np.ndarray]] = {one[0]: one for one in (*first[1], *windows)}
        joined: TimedOutputs = [by_start[start] for start in sorted(by_start)]
        return first[0] if first[0].status != "ok" else decoded, joined, peaks
