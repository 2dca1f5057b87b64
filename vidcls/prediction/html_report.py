"""report.html: what predict.py found, in one file that needs no network, for the people who decide."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidcls.data.decoding.result import LOST
from vidcls.files import write_atomically
from vidcls.moderation.policy import ALLOW, BLOCK, REVIEW
from vidcls.pages import number, render_page, visible
from vidcls.prediction.journal import Journal, VideoDetails

STATUSES = ("ok", "partial", *LOST)
URGENCY = (BLOCK, REVIEW, ALLOW)
MAX_COPIES = 5  # paths of one content that are named
Row = dict[str, str]


def write_report(
    journal: Journal,
    classes: Sequence[str],
    safe_class: str | None,
    facts: Mapping[str, str],
    *,
    max_videos: int,
    blur: bool,
) -> Path:
    """Writes report.html into the journal's folder, and returns its path.

    Only the ``max_videos`` most urgent videos get a row. ``safe_class`` is not drawn over time, ``facts`` are shown
    above everything else, and ``blur`` hides pictures until they are clicked.
    """
    shown, counts = most_urgent(journal.rows(), max_videos), journal.counts()
    paths = journal.copies({row["sha256"] for row in shown} - {""})
    decisions, statuses = Counter(dict.fromkeys(URGENCY, 0)), Counter(dict.fromkeys(STATUSES, 0))
    for (status, decision), count in counts.items():
        decisions[decision] += count
        statuses[status] += count
    contents = {row["sha256"]: journal.details(row["sha256"]) for row in shown}
    details = {sha256: _details(one, classes) for sha256, one in contents.items() if one is not None}
    places = {sha256: place for place, sha256 in enumerate(details)}
    videos = [
        {
            "row": row,
            "num_segments": len(details[row["sha256"]]["segments"]) if row["sha256"] in details else 0,
            "details": places.get(row["sha256"]),  # which copies share
            "copies": _others(paths[row["sha256"]], row["path"]) if row["sha256"] else "",
        }
        for row in shown
    ]
    page = {
        "classes": [visible(name) for name in classes],
        "plotted": [k for k, name in enumerate(classes) if name != safe_class],
        "total": decisions.total(),
    }
    content = render_page(
        Path(__file__).parent,
        "report",
        page=page,
        classes=classes,
        facts=facts,
        blur=blur,
        total=decisions.total(),
        decisions=decisions,
        statuses=statuses,
        videos=videos,
        scored=any(number(row["score"]) is not None for row in shown),
        details=list(details.values()),
    )
    path = journal.folder / "report.html"
    write_atomically(path, content)
    return path


def most_urgent(rows: Iterable[Row], count: int) -> list[Row]:
    """Block, review, allow; within these first what was not decoded completely, then no score, then the highest."""

    def key(row: Row) -> tuple[int, bool, float]:
        score = number(row["score"])
        return URGENCY.index(row["decision"]), row["status"] == "ok", -math.inf if score is None else -score

    return heapq.nsmallest(count, rows, key=key)


def _others(paths: Sequence[str], path: str) -> str:
    # A viral video has thousands of copies, so only some are named.
    named = [other for other in paths[: MAX_COPIES + 1] if other != path][:MAX_COPIES]
    more = len(paths) - 1 - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _details(details: VideoDetails, classes: Sequence[str]) -> dict[str, Any]:
    """What the page's script draws of one content; classes as numbers, times in seconds."""
    middles = [(start + end) / 2 for start, end in zip(details.start_seconds, details.end_seconds, strict=True)]
    cuts = [(one + other) / 2 for one, other in itertools.pairwise(middles)]
    segments = [[classes.index(name), *map(_rounded, values)] for name, *values in details.segments]
    peaks = [[classes.index(name), *map(_rounded, values), jpeg] for name, *values, jpeg in details.peaks]
    return {
        # The windows' cells, as in `vidcls.moderation.timeline.segments`.
        "cuts": [_rounded(cut) for cut in (0.0, *cuts, details.end_seconds[-1])],
        "probabilities": [[_rounded(p) for p in column] for column in zip(*details.probabilities, strict=True)],
        "segments": sorted(segments, key=lambda one: one[1]),
        "peaks": sorted(peaks, key=lambda one: one[1]),
    }


def _rounded(value: float) -> float | None:
    """JSON has no NaN, and the page shows at most three digits."""
    return round(value, 4) if math.isfinite(value) else None
