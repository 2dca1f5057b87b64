from __future__ import annotations

import numpy as np

from vidcls.data.decoding.plan import Window
from vidcls.prediction.peaks import MAX_PEAKS, Peaks


def test_peaks_are_few_and_the_highest_of_their_run() -> None:
    peaks = Peaks(["a", "b"], exit_threshold=0.5)
    course = [0.1, 0.6, 0.9, 0.7, 0.2, 0.6] + [0.0, 0.55] * 20
    for second, p in enumerate(course):
        picture = np.full((1, 8, 8, 3), second, np.uint8)
        peaks.add(Window(float(second), second + 2.0, picture, 1.0), np.float32([p, 0.01 * second]))
    found = peaks.pictures(skip=None)
    of_a = [(seconds, round(p, 3)) for name, seconds, p, _ in found if name == "a"]
    assert len(of_a) <= MAX_PEAKS + 1 and of_a[:2] == [(3.0, 0.9), (6.0, 0.6)] and of_a == sorted(of_a)
    assert [seconds for name, seconds, _, _ in found if name == "b"] == [len(course)]  # never 0.5: the best of all
    assert {name for name, *_ in peaks.pictures(skip="a")} == {"b"}
