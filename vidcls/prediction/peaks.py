"""The frames at the peaks of a video's timeline, as short loops."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vidcls.data.decoding.plan import Window
from vidcls.data.pictures import jpeg_base64

MAX_PEAKS = 8  # per class and video
LOOP_FRAMES = 6  # per peak
LOOP_PIXELS = 160  # the longer side, at most


class _Candidate(NamedTuple):
    probability: float
    seconds: float
    loop: UInt8[np.ndarray, "_ R R 3"]


class Peaks:
    """Per class, the best window of each run of windows with p >= ``exit_threshold``, or the best of all.

    Memory is constant: only the frames of the best `MAX_PEAKS` runs and of the last one are kept.
    """

    def __init__(self, classes: Sequence[str], exit_threshold: float) -> None:
        self._exit_threshold = exit_threshold
        self._runs: dict[str, list[_Candidate]] = {name: [] for name in classes}
        self._best: dict[str, _Candidate] = {}
        self._in_run = dict.fromkeys(classes, False)

    def add(self, window: Window, probabilities: Float[np.ndarray, " K"]) -> None:
        """Adds the next window, which must be one clip."""
        seconds = (window.start_seconds + window.end_seconds) / 2
        count = len(window.frames)
        evenly = (np.arange(min(LOOP_FRAMES, count)) + 0.5) * count / min(LOOP_FRAMES, count)
        loop = window.frames[evenly.astype(int)]  # a copy: a view would keep all frames of the window
        for (name, runs), p in zip(self._runs.items(), probabilities.tolist(), strict=True):
            candidate = _Candidate(p, seconds, loop)
            if name not in self._best or p > self._best[name].probability:
                self._best[name] = candidate
            if not p >= self._exit_threshold:
                self._in_run[name] = False
            elif not self._in_run[name]:
                self._in_run[name] = True
                self._runs[name] = [*sorted(runs, key=lambda one: -one.probability)[:MAX_PEAKS], candidate]
            elif p > runs[-1].probability:
                runs[-1] = candidate

    def found(self, skip: str | None) -> tuple[list[tuple[str, float, float]], list[tuple[float, list[str]]]]:
        """The peaks by class and time, without the class ``skip``, and a loop for each of their windows.

        A peak is (class, middle of its window, probability); a loop is (middle of its window, evenly spaced frames as
        JPEGs in base64).
        """
        kept = {name: runs or [self._best[name]] for name, runs in self._runs.items() if name != skip}
        loops = {peak.seconds: peak.loop for runs in kept.values() for peak in runs}
        peaks = sorted((name, peak.seconds, peak.probability) for name, runs in kept.items() for peak in runs)
        return peaks, [(seconds, [encode_jpeg(frame) for frame in loops[seconds]]) for seconds in sorted(loops)]


def encode_jpeg(frame: UInt8[np.ndarray, "R R 3"]) -> str:
    image = Image.fromarray(frame)
    image.thumbnail((LOOP_PIXELS, LOOP_PIXELS))
    return jpeg_base64(image, quality=70)
