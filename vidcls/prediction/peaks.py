"""The pictures at the peaks of a video's timeline."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vidcls.data.decoding.plan import Window

MAX_PEAKS = 8  # pictures kept per class and video


class _Candidate(NamedTuple):
    probability: float
    seconds: float
    picture: UInt8[np.ndarray, "R R 3"]


class Peaks:
    """Per class, the best window of each run of windows with p >= ``exit_threshold``.

    Where there is no such run it is the best window of all. Memory does not grow with the video: at most `MAX_PEAKS`
    pictures are kept per class, and the run that still goes on.
    """

    def __init__(self, classes: Sequence[str], exit_threshold: float) -> None:
        self._classes, self._exit_threshold = classes, exit_threshold
        self._ended: list[list[_Candidate]] = [[] for _ in classes]
        self._running: list[_Candidate | None] = [None for _ in classes]
        self._best: list[_Candidate | None] = [None for _ in classes]

    def add(self, window: Window, probabilities: Float[np.ndarray, " K"]) -> None:
        """Takes the next window, which is one clip."""
        seconds = (window.start_seconds + window.end_seconds) / 2
        picture = window.frames[len(window.frames) // 2].copy()  # a view would keep all frames of the window
        for k, p in enumerate(probabilities.tolist()):
            candidate, running = _Candidate(p, seconds, picture), self._running[k]
            self._best[k] = _higher(self._best[k], candidate)
            if p >= self._exit_threshold:
                self._running[k] = _higher(running, candidate)
            elif running is not None:
                ended = sorted([*self._ended[k], running], key=lambda one: -one.probability)
                self._ended[k], self._running[k] = ended[:MAX_PEAKS], None

    def pictures(self, skip: str | None) -> list[tuple[str, float, float, str]]:
        """(class, middle of the window, probability, JPEG in base64), by class and time, without the class ``skip``."""
        found = []
        for name, ended, running, best in zip(self._classes, self._ended, self._running, self._best, strict=True):
            peaks = [peak for peak in (*ended, running) if peak] or [peak for peak in [best] if peak]
            if name != skip:
                for peak in sorted(peaks, key=lambda one: one.seconds):
                    jpeg = io.BytesIO()
                    Image.fromarray(peak.picture).save(jpeg, "JPEG", quality=85)
                    found.append((name, peak.seconds, peak.probability, base64.b64encode(jpeg.getvalue()).decode()))
        return found


def _higher(one: _Candidate | None, other: _Candidate) -> _Candidate:
    return other if one is None or other.probability > one.probability else one
