"""Journals of made-up predictions, and the reports of them."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers.page import Page
from vidcls.prediction.html_report import write_report
from vidcls.prediction.journal import Journal, VideoDetails
from vidcls.prediction.result_files import prediction_columns

CLASSES = ["adult", "fight", "safe"]
FACTS = {"Model": "3f9a0c77d1e2", "Policy": "<b>none</b>"}
HOSTILE = sorted(
    [
        'x"><script>alert(1)</script>.mp4',
        "</script><script>alert(2)//.mp4",
        "<img src=x onerror=alert(3)>/<!--.mp4",
        "' onclick='alert(4)'.mp4",
        "{{ 7 * 7 }}{% raw %}&amp;&lt;.mp4",
        "two\nlines\tand a tab.mp4",
        "holiday\u202e4pm.exe",
        "مقطع/فيديو.mp4",
        "👨\u200d👩\u200d👧 family.mp4",
        "]]>\u2028\ufeff\x00\x1b[31m.mp4",
    ]
)


def sha256_of(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()


def jpeg(path: str) -> str:
    """Another picture for each path."""
    shade = bytes.fromhex(sha256_of(path))[0]
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), shade, np.uint8)).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


class Predictions:
    """A journal of videos with windows of 4 s, one each 2 s."""

    def __init__(self, path: Path, classes: list[str] | None = None) -> None:
        self.path = path
        self.classes = classes or CLASSES
        self.journal = Journal(path, {})

    def video(
        self,
        path: str,
        decision: str = "allow",
        score: float | None = 0.1,
        windows: list[list[float]] | None = None,
        status: str = "ok",
        reason: str = "",
        segments: Sequence[tuple[str, float, float, float, float]] = (),
        copies: Sequence[str] = (),
        loop: Sequence[str] = (),
    ) -> None:
        windows = [[0.1] * (len(self.classes) - 1) + [0.8]] if windows is None else windows
        cells = dict.fromkeys(prediction_columns(self.classes)[2:], "") | {"decision": decision}
        cells |= {
            "model": "3f9a0c77d1e2",
            "policy": "",
            "status": status,
            "reason": reason,
            "windows": str(len(windows)),
            "seconds": "0.000000",
        }
        paths, sha256 = [path, *copies], sha256_of(path)
        details = None
        if windows:
            highest = np.max(windows, axis=0)
            cells |= {name: f"{p:.9g}" for name, p in zip(self.classes, highest, strict=True)}
            cells |= {"predicted": self.classes[-1], "score": "" if score is None else f"{score:.9g}"}
            cells |= {"seconds": f"{2 * len(windows) + 2}"}
            starts = [2.0 * n for n in range(len(windows))]
            peak, jpegs = (self.classes[0], 2.0, windows[0][0]), list(loop) or [jpeg(path)]
            details = VideoDetails(
                starts, [start + 4 for start in starts], windows, list(segments), [peak], [(2.0, jpegs)]
            )
        self.journal.write(dict.fromkeys(paths, ""), sha256, cells, details)

    def report(self, **options: Any) -> Page:
        """The page that `write_report` writes, parsed."""
        return Page(self.write_report(**options).read_text(encoding="utf-8"))

    def write_report(
        self,
        safe_class: str | None = "safe",
        max_videos: int = 500,
        loops_megabytes: float | int = 24,
        blur: bool = False,
    ) -> Path:
        """The page as a file, for a browser; parsing 5,000 videos takes as long as writing them."""
        path = write_report(
            self.journal,
            self.classes,
            safe_class,
            FACTS,
            max_videos=max_videos,
            loops_megabytes=loops_megabytes,
            blur=blur,
        )
        assert path == self.path / "report.html"
        return path

    @property
    def url(self) -> str:
        return (self.path / "report.html").as_uri()


def some(predictions: Predictions) -> None:
    """Videos of every kind, in an order that is not that of the page."""
    predictions.video("calm.mp4", "allow", 0.04)
    predictions.video("unsure.mp4", "review", 0.5, reason="fight 0.500 >= 0.450")
    predictions.video("a/fight.mp4", "block", 0.91, reason="fight 0.910 >= 0.850")
    predictions.video("empty.mp4", "review", None, [], "undecodable", "undecodable: no frames")
    predictions.video("calmer.mp4", "allow", 0.3)
    predictions.video("half.mp4", "review", 0.2, None, "partial", "partial: the file ends early")
    predictions.video(
        "long.mp4",
        "block",
        0.97,
        [[0.1, 0.2, 0.7], [0.02, 0.97, 0.01], [0.1, 0.6, 0.3], [0.9, 0.05, 0.05]],
        reason="fight 0.970 >= 0.850",
        segments=[("adult", 7.0, 10.0, 0.9, 8.0), ("fight", 3.0, 7.0, 0.97, 4.0)],
    )


ORDER = ["long.mp4", "a/fight.mp4", "empty.mp4", "half.mp4", "unsure.mp4", "calmer.mp4", "calm.mp4"]
