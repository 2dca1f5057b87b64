"""report.html: what predict.py found, in one file that needs no network, for the people who decide.

Names of files come from strangers. They reach the page as escaped text only, its scripts and styles are named by their
hashes in a Content-Security-Policy that forbids everything else, and pictures are part of the file.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import itertools
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vidcls.files import write_atomically
from vidcls.moderation.policy import ALLOW, BLOCK, REVIEW

STATUSES = ("ok", "partial", "undecodable")
URGENCY = (BLOCK, REVIEW, ALLOW)
COPIES = 5  # named of one content, at most
Row = dict[str, str]


@dataclass(frozen=True)
class Video:
    """One row of the page. Numbers are None where they are unknown; ``probabilities`` are those of the K classes."""

    row: Row
    score: float | None
    probabilities: list[float | None]
    seconds: float | None
    segments: list[Row]
    details: int | None  # the place of its details among those of all videos, which copies share
    copies: str  # other paths of the same content


def write_report(
    folder: Path, classes: Sequence[str], harmless: str | None, facts: Mapping[str, str], *, most: int, blur: bool
) -> Path:
    """Writes report.html from predictions.csv, segments.csv and details.jsonl of the same folder; gives its path.

    Args:
        folder: as predict.py leaves it. A file that is missing counts as empty.
        classes: the K names, in the order of the probabilities.
        harmless: the class that is not drawn over time; None draws all.
        facts: what was run, shown above everything else.
        most: so many videos get a row, the most urgent first (see `by_urgency`); a note counts the others.
        blur: whether pictures are blurred until somebody wants to see them.

    Raises:
        UserError: the disk is full; a report that was there before stays.
    """
    rows = by_urgency(list(_read_csv(folder / "predictions.csv")))
    page = _environment().get_template("report.html.j2")
    shown = rows[:most]
    segments = _segments(folder / "segments.csv", {row["path"] for row in shown})
    paths: dict[str, list[str]] = {}  # by content; copies are equally urgent, so the first path of any shown is shown
    for row in rows:
        paths.setdefault(row["sha256"], []).append(row["path"])
    contents = {row["sha256"] for row in shown if row["sha256"]}
    details = {
        sha256: _drawn(one, segments.get(paths[sha256][0], []), classes)
        for sha256, one in _details(folder / "details.jsonl", contents)
    }
    places = {sha256: place for place, sha256 in enumerate(details)}
    videos = [
        Video(
            row,
            _number(row["score"]),
            [_number(row[name]) for name in classes],
            _number(row["seconds"]) or None,  # 0 s: nothing is known
            segments.get(row["path"], []),
            places.get(row["sha256"]),
            _others(paths[row["sha256"]], row["path"]) if row["sha256"] else "",
        )
        for row in shown
    ]
    text = page.render(
        page={
            "classes": [visible(name) for name in classes],
            "plotted": [k for k, name in enumerate(classes) if name != harmless],
            "total": len(rows),
        },
        classes=classes,
        facts=facts,
        blur=blur,
        total=len(rows),
        decisions=_counts([row["decision"] for row in rows], URGENCY),
        statuses=_counts([row["status"] for row in rows], STATUSES),
        videos=videos,
        scored=any(video.score is not None for video in videos),
        details=list(details.values()),
    )
    path = folder / "report.html"
    write_atomically(path, text.encode())
    return path


def by_urgency(rows: Sequence[Row]) -> list[Row]:
    """Blocked videos, then those to review, then allowed ones.

    Within these, videos that were not read well come first, then those without a score, then the highest score.

    Example:
        >>> rows = [("review", "ok", "0.4"), ("allow", "ok", "0.1"), ("review", "partial", ""), ("review", "ok", "0.5")]
        >>> names = ("decision", "status", "score")
        >>> [row["score"] for row in by_urgency([dict(zip(names, row)) for row in rows])]
        ['', '0.5', '0.4', '0.1']
    """

    def key(row: Row) -> tuple[int, bool, float]:
        score = _number(row["score"])
        return URGENCY.index(row["decision"]), row["status"] == "ok", -math.inf if score is None else -score

    return sorted(rows, key=key)


def clock(seconds: float | None) -> str:
    """m:ss, or h:mm:ss from an hour on.

    Example:
        >>> clock(59.7), clock(3725.0), clock(None)
        ('1:00', '1:02:05', '–')
    """  # noqa: RUF002 (a dash that means "none")
    if seconds is None:
        return "–"  # noqa: RUF001
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def visible(text: str) -> str:
    r"""The text with every character that would hide or turn others written out, as a name may hold any.

    That is what Unicode calls control and format characters, line ends and lone surrogates, but for the two joiners
    that emojis and some scripts cannot do without.

    Example:
        >>> visible("a\nb \u202egpj.exe")
        'a\\nb \\u202egpj.exe'
    """
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in hidden and letter not in "\u200c\u200d"
        else letter
        for letter in text
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: "" if value is None else value,
    )
    environment.filters |= {"clock": clock, "visible": visible, "source": _source, "probability": _probability}
    return environment


def _source(text: str) -> str:
    """How a Content-Security-Policy allows this script or style alone."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _probability(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"  # noqa: RUF001


def _read_csv(path: Path) -> Iterator[Row]:
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def _number(text: str) -> float | None:
    number = float(text or "nan")
    return number if math.isfinite(number) else None


def _counts(values: Sequence[str], order: Sequence[str]) -> dict[str, int]:
    """How often each value occurs: those of ``order`` first, in any case, then any others."""
    return dict.fromkeys(order, 0) | Counter(values)


def _segments(path: Path, paths: set[str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for segment in _read_csv(path):
        if segment["path"] in paths:
            found.setdefault(segment["path"], []).append(segment)
    return found


def _others(paths: Sequence[str], path: str) -> str:
    """The paths but for ``path``; a viral video has thousands of copies, so only some are named."""
    named = [other for other in paths[: COPIES + 1] if other != path][:COPIES]
    more = len(paths) - 1 - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _details(path: Path, hashes: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of details.jsonl of these contents only, one at a time: the others are many, and hold pictures."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                details = json.loads(line)
                if details["sha256"] in hashes:
                    yield details["sha256"], details


def _drawn(details: dict[str, Any], segments: Sequence[Row], classes: Sequence[str]) -> dict[str, Any]:
    """What the page's script draws of one content; classes as numbers, times in seconds."""
    middles = [(start + end) / 2 for start, end in zip(details["starts"], details["ends"], strict=True)]
    cuts = [(one + other) / 2 for one, other in itertools.pairwise(middles)]
    names = ("start_seconds", "end_seconds", "peak", "peak_seconds")
    found = [[classes.index(one["class"]), *(_number(one[name]) for name in names)] for one in segments]
    peaks = [
        [classes.index(one["class"]), round(one["seconds"], 3), _rounded(one["probability"]), one["jpeg"]]
        for one in details["peaks"]
    ]
    return {
        # The windows' cells, as in `vidcls.moderation.timeline.segments`.
        "cuts": [round(cut, 3) for cut in (0.0, *cuts, details["ends"][-1])],
        "probabilities": [[_rounded(p) for p in column] for column in zip(*details["probabilities"], strict=True)],
        "segments": sorted(found, key=lambda one: one[1]),
        "peaks": sorted(peaks, key=lambda one: one[1]),
    }


def _rounded(probability: float) -> float | None:
    """JSON knows no NaN, and the page no more than four digits."""
    return round(probability, 4) if math.isfinite(probability) else None
