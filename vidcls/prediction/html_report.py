"""report.html: the results of predict.py in one file that needs no network, in which reviewers make decisions."""

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidcls.data.decoding.result import LOST
from vidcls.files import write_atomically
from vidcls.moderation.policy import ALLOW, BLOCK, REVIEW
from vidcls.moderation.timeline import cell_cuts
from vidcls.pages import number, render_page, visible
from vidcls.prediction.journal import Journal, VideoDetails
from vidcls.prediction.video_result import timeline_end

STATUSES = ("ok", "partial", *LOST)
URGENCY = (BLOCK, REVIEW, ALLOW)
MAX_COPIES = 5  # paths of one content that are listed
ROWS_AT_ONCE = 200  # of the table; more on demand
Row = dict[str, str]


def write_report(
    journal: Journal,
    classes: Sequence[str],
    safe_class: str | None,
    facts: Mapping[str, str],
    *,
    max_videos: int,
    loops_megabytes: float | int,
    blur: bool,
) -> Path:
    """Writes report.html into the journal's folder, and returns its path.

    Only the ``max_videos`` most urgent videos get a row, and as many of these as fit into ``loops_megabytes`` get
    loops; others get single frames. ``safe_class`` is not plotted over time, ``facts`` are shown at the top, and
    ``blur`` shows pictures blurred and grey at first.
    """
    shown, counts = most_urgent(journal.rows(), max_videos), journal.counts()
    paths = journal.copies({row["sha256"] for row in shown} - {""})
    decisions, statuses = Counter(dict.fromkeys(URGENCY, 0)), Counter(dict.fromkeys(STATUSES, 0))
    for (status, decision), count in counts.items():
        decisions[decision] += count
        statuses[status] += count
    details, room = dict[str, dict[str, Any]](), loops_megabytes * 1e6
    for row in shown:
        sha256 = row["sha256"]
        if sha256 not in details and (found := journal.details(sha256)) is not None:
            room -= sum(len(jpeg) for _, loop in found.loops for jpeg in loop)
            until = timeline_end(row["status"], float(row["seconds"]), found.end_seconds[-1])
            details[sha256] = _details(found, classes, until, with_loops=room >= 0)
    indices = {sha256: index for index, sha256 in enumerate(details)}
    page = {
        "classes": [visible(name) for name in classes],
        "labels": list(classes),
        "plotted": [k for k, name in enumerate(classes) if name != safe_class],
        "total": decisions.total(),
        "atOnce": ROWS_AT_ONCE,
        "videos": [
            [row["path"], row["sha256"], indices.get(row["sha256"]), _facts(row, paths)]  # copies share their details
            for row in shown
        ],
        **{name: shown[0][name] if shown else "" for name in ("model", "policy")},
    }
    content = render_page(
        Path(__file__).parent,
        "report",
        page=page,
        num_contents=len(paths),
        classes=classes,
        facts=facts,
        blur=blur,
        total=decisions.total(),
        decisions=decisions,
        statuses=statuses,
        videos=shown,
        num_segments={sha256: len(found["segments"]) for sha256, found in details.items()},
        scored=any(number(row["score"]) is not None for row in shown),
        details=list(details.values()),
    )
    path = journal.folder / "report.html"
    write_atomically(path, content)
    return path


def most_urgent(rows: Iterable[Row], count: int) -> list[Row]:
    """Block, review, allow; within these first incompletely decoded videos, then those without score, then by score."""

    def key(row: Row) -> tuple[int, bool, float]:
        score = number(row["score"])
        return URGENCY.index(row["decision"]), row["status"] == "ok", -math.inf if score is None else -score

    return heapq.nsmallest(count, rows, key=key)


def _facts(row: Row, paths: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The facts about a single video on the page."""
    copies = ""
    if row["sha256"]:  # a viral video has thousands of copies, so only some are listed
        same = paths[row["sha256"]]
        listed = [other for other in same[: MAX_COPIES + 1] if other != row["path"]][:MAX_COPIES]
        more = len(same) - 1 - len(listed)
        copies = ", ".join(listed) + (f" and {more} more" if more else "")
    facts = {"Same content": copies, "Coverage": row["coverage"], "Decoder": row["decoder"], "SHA-256": row["sha256"]}
    return {name: visible(value) for name, value in facts.items() if value}


def _details(details: VideoDetails, classes: Sequence[str], until: float, with_loops: bool) -> dict[str, Any]:
    """The data that the page's script plots for one content up to ``until``; classes as numbers, times in seconds."""
    cuts = cell_cuts(np.array(details.start_seconds), np.array(details.end_seconds), until)
    segments = [[classes.index(name), *map(_rounded, values)] for name, *values in details.segments]
    peaks = [[classes.index(name), *map(_rounded, values)] for name, *values in details.peaks]
    return {
        "cuts": [_rounded(cut) for cut in cuts.tolist()],  # the cells of windows, as `segments` has them
        "probabilities": [[_rounded(p) for p in column] for column in zip(*details.probabilities, strict=True)],
        "segments": sorted(segments, key=lambda one: one[1]),
        "peaks": sorted(peaks, key=lambda one: one[1]),
        "loops": [[_rounded(at), loop if with_loops else [loop[len(loop) // 2]]] for at, loop in details.loops],
    }


def _rounded(value: float) -> float | None:
    """JSON has no NaN, and the page shows at most three digits."""
    return round(value, 4) if math.isfinite(value) else None
