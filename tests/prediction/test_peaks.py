from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vidcls.data.decoding.plan import Window
from vidcls.prediction.peaks import LOOP_PIXELS, MAX_PEAKS, Peaks


def test_peaks_are_few_and_the_highest_of_their_run() -> None:
    peaks = Peaks(["a", "b"], exit_threshold=0.5)
    course = [0.1, 0.6, 0.9, 0.7, 0.2, 0.6] + [0.0, 0.55] * 20
    for second, p in enumerate(course):
        picture = np.full((1, 8, 8, 3), second, np.uint8)
        peaks.add(Window(float(second), second + 2.0, picture, 1.0), np.float32([p, 0.01 * second]))
    found, loops = peaks.found(skip=None)
    of_a = [(seconds, round(p, 3)) for name, seconds, p in found if name == "a"]
    assert len(of_a) <= MAX_PEAKS + 1 and of_a[:2] == [(3.0, 0.9), (6.0, 0.6)] and of_a == sorted(of_a)
    assert [seconds for name, seconds, _ in found if name == "b"] == [len(course)]  # never 0.5: the best of all
    assert [seconds for seconds, _ in loops] == sorted({seconds for _, seconds, _ in found})
    assert {name for name, *_ in peaks.found(skip="a")[0]} == {"b"}


@pytest.mark.parametrize(
    ("count", "kept"), [(1, [0]), (3, [0, 1, 2]), (6, [0, 1, 2, 3, 4, 5]), (20, [1, 5, 8, 11, 15, 18])]
)
def test_a_loop_is_spread_evenly_over_its_window(count: int, kept: list[int]) -> None:
    """Of 20 frames .x...x..x..x...x.x. six are kept, which show the whole window, at most 160 pixels wide."""
    shades = np.arange(count, dtype=np.uint8) * 12
    frames = np.broadcast_to(shades[:, None, None, None], (count, 200, 200, 3)).copy()
    peaks = Peaks(["a"], exit_threshold=0.5)
    peaks.add(Window(0.0, 2.0, frames, 1.0), np.float32([0.9]))
    frames[:] = 255  # as the decoder's buffer is used again
    ((_, loop),) = peaks.found(skip=None)[1]
    images = [Image.open(io.BytesIO(base64.b64decode(jpeg))) for jpeg in loop]
    assert {image.size for image in images} == {(LOOP_PIXELS, LOOP_PIXELS)}
    assert [round(float(np.asarray(image).mean()) / 12) for image in images] == kept
