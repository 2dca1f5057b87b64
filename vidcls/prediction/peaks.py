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
    """Per class, the best window of each run of windows with p >= ``exit_threshold``; without one, the best of all.

    Memory does not grow with the video: the pictures of the best `MAX_PEAKS` runs are kept, and that of the last one.
    """

    def __init__(self, classes: Sequence[str], exit_threshold: float) -> None:
        self._exit_threshold = exit_threshold
        self._runs: dict[str, list[_Candidate]] = {name: [] for name in classes}
        self._best: dict[str, _Candidate] = {}
        self._in_run = dict.fromkeys(classes, False)

    def add(self, window: Window, probabilities: Float[np.ndarray, " K"]) -> None:
        """Takes the next window, which is one clip."""
        seconds = (window.start_seconds + window.end_seconds) / 2
        picture = window.frames[len(window.frames) // 2].copy()  # a view would keep all frames of the window
        for (name, runs), p in zip(self._runs.items(), probabilities.tolist(), strict=True):
            candidate = _Candidate(p, seconds, picture)
            if name not in self._best or p > self._best[name].probability:
                self._best[name] = candidate
            if not p >= self._exit_threshold:
                self._in_run[name] = False
            elif not self._in_run[name]:
                self._in_run[name] = True
                self._runs[name] = [*sorted(runs, key=lambda one: -one.probability)[:MAX_PEAKS], candidate]
            elif p > runs[-1].probability:
                runs[-1] = candidate

    def pictures(self, skip: str | None) -> list[tuple[str, float, float, str]]:
        """(class, middle of the window, probability, JPEG in base64), by class and time, without the class ``skip``."""
        found = []
        for name, runs in self._runs.items():
            for peak in sorted(runs or [self._best[name]], key=lambda one: one.seconds) if name != skip else ():
                jpeg = io.BytesIO()
                Image.fromarray(peak.picture).save(jpeg, "JPEG", quality=85)
                found.append((name, peak.seconds, peak.probability, base64.b64encode(jpeg.getvalue()).decode()))
        return found
