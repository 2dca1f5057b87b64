"""From a video's windows to its result: scores, decision, segments and pictures."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from vidcls.data.decoding.result import USABLE, DecodeResult
from vidcls.moderation.aggregation import repeat_for_unread, video_class, video_score
from vidcls.moderation.policy import REVIEW, Decision, Policy, decide, harmful_scores
from vidcls.moderation.timeline import segments
from vidcls.prediction.journal import VideoDetails
from vidcls.prediction.options import PredictOptions
from vidcls.prediction.peaks import Peaks

# Start and end of each window, in seconds, and its probabilities followed by its clip vector.
TimedOutputs = list[tuple[float, float, Float[np.ndarray, " Q"]]]
NO_POLICY = "no policy: fit one with evaluate.py run=DIR policy.safe_class=CLASS"


def read_fraction(windows: TimedOutputs, seconds: float) -> float:
    """The fraction of a video of ``seconds`` that its windows cover, 0..1; they must be in order."""
    end, unread = 0.0, 0.0
    for start, own_end, _ in windows:
        unread += max(start - end, 0)
        end = max(end, own_end)
    unread += max(seconds - end, 0)
    return 1 - unread / seconds if seconds > 0 else 1.0


def timeline_end(status: str, seconds: float, last_end: float) -> float:
    """Where a video's timeline ends, in seconds; its last window, where a worker may have been lost before the end."""
    return seconds if status == "ok" else last_end


def build_result(
    decoded: DecodeResult,
    windows: TimedOutputs,
    peaks: Peaks | None,
    *,
    model: str,
    classes: Sequence[str],
    policy: Policy | None,
    options: PredictOptions,
) -> tuple[dict[str, str], VideoDetails | None]:
    """The cells and details of one video for `Journal.write`; without a policy every video is marked for review."""
    if decoded.status == "ok" and decoded.coverage < 1:
        decoded = replace(decoded, status="partial", reason=f"only {decoded.coverage:.3f} of its frames are intact")
    cells = dict.fromkeys(("predicted", *classes, "score"), "") | {
        "coverage": f"{decoded.coverage:.6g}",
        "status": decoded.status,
        "decoder": decoded.decoder,
        "seconds": f"{decoded.seconds:.6f}",
        "windows": "0",
        "model": model,
        "policy": policy.identity if policy else "",
    }
    aggregation = options.aggregation, options.top_k
    details, probabilities = None, np.full((1, len(classes)), np.nan, np.float32)
    if peaks is not None and windows and decoded.status in USABLE:  # an undecodable video may have windows too
        starts, ends, rows = zip(*windows, strict=True)
        outputs = np.stack(rows)  # [W, K + P]
        probabilities = outputs[:, : len(classes)]
        length = ends[0] - starts[0]
        until = timeline_end(decoded.status, decoded.seconds, ends[-1])
        if options.aggregation != "max" and options.stride_seconds:
            stride = float(options.stride_seconds)
            probabilities = repeat_for_unread(probabilities, np.array(starts), until - length, stride)
        scores = video_score(probabilities, *aggregation)
        cells |= {name: f"{p:.9g}" for name, p in zip(classes, scores.tolist(), strict=True)}
        best = int(scores.argmax())
        if policy is not None:
            best = video_class(probabilities, classes.index(policy.safe_class), *aggregation)
            cells["score"] = f"{max(harmful_scores(policy, probabilities, *aggregation).values()):.9g}"
        cells |= {"predicted": classes[best] if np.isfinite(scores).all() else "", "windows": str(len(windows))}
        thresholds = options.enter_threshold, options.exit_threshold, options.min_seconds
        found = [
            (name, segment.start_seconds, segment.end_seconds, segment.peak, segment.peak_seconds)
            for k, name in enumerate(classes)
            if policy is None or name != policy.safe_class
            for segment in segments(np.array(starts), length, until, outputs[:, k], *thresholds)
        ]
        highest = peaks.found(skip=policy.safe_class if policy else None)
        vector = [float(f"{value:.6g}") for value in outputs[:, len(classes) :].mean(axis=0)]
        details = VideoDetails(list(starts), list(ends), outputs[:, : len(classes)].tolist(), found, *highest, vector)
    if policy is not None:
        decision = decide(policy, probabilities, decoded.status, decoded.reason, *aggregation)
    else:
        decision = Decision(REVIEW, f"{decoded.status}: {decoded.reason}" if decoded.status != "ok" else NO_POLICY)
    reasons = [decision.reason] * bool(decision.reason)
    if options.search == "coarse" and windows and (share := read_fraction(windows, decoded.seconds)) < 0.9995:
        # Not "looked at": windows that would show the picture of the one before again are not read either.
        reasons.append(f"coarse search: windows of {share:.1%} of its time were read")
    return cells | {"decision": decision.decision, "reason": "; ".join(reasons)}, details
