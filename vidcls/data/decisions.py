"""decisions.csv: what reviewers have decided about videos in report.html, one row per video and reviewer."""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from vidcls.errors import UserError

LABEL, UNSURE, BAD_FILE, WITHDRAWN = VERDICTS = ("label", "unsure", "bad_file", "withdrawn")
"""A column of its own, since a class may be called ``unsure`` too. A withdrawn decision takes back an earlier one."""
COLUMNS = ("path", "sha256", "verdict", "label", "reviewer", "seconds", "time", "note", "model", "policy")


def read_decisions(paths: Iterable[Path | str]) -> pd.DataFrame:
    """The latest decision of each reviewer about each content, from the files of any number of reviewers.

    Has the columns `COLUMNS`, sorted by ``sha256`` and ``reviewer``: ``seconds`` is float, ``time`` is UTC, ``label``
    is "" unless ``verdict`` is ``label``. Withdrawn decisions have no row.

    Raises:
        UserError: a file cannot be read, or a row is not a decision; the message names the line.
    """
    rows = [row for path in paths for row in _read(Path(path))]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seconds": float, "time": "datetime64[us, UTC]"})
    # Stable: of two at the same time the later line counts.
    latest = table.sort_values("time", kind="stable").drop_duplicates(["sha256", "reviewer"], keep="last")
    latest = latest[latest["verdict"] != WITHDRAWN]
    return latest.sort_values(["sha256", "reviewer"], ignore_index=True)


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            if missing := sorted(set(COLUMNS) - set(reader.fieldnames or ())):
                raise _bad(path, f"no column {', '.join(missing)}")
            for row in reader:
                try:
                    yield _parse(row)
                except (ValueError, OverflowError) as error:
                    raise _bad(path, f"line {reader.line_num}: {error}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _bad(path, str(error)) from error


def _parse(row: Mapping[Any, Any]) -> dict[str, Any]:
    if None in row or None in row.values():
        raise ValueError("the number of cells is not that of the columns")
    cells: dict[str, Any] = {name: unescape_formula(row[name]) for name in COLUMNS}
    cells["seconds"] = float(cells["seconds"])
    time = datetime.fromisoformat(cells["time"])
    cells["time"] = time.astimezone(UTC)
    faults = {
        f"sha256={cells['sha256']!r}": not re.fullmatch("[0-9a-f]{64}", cells["sha256"]),
        f"verdict={cells['verdict']!r}": cells["verdict"] not in VERDICTS,
        f"label={cells['label']!r} with verdict={cells['verdict']}": (cells["verdict"] == LABEL)
        != bool(cells["label"]),
        "no reviewer": not cells["reviewer"],
        f"seconds={cells['seconds']}": not 0 <= cells["seconds"] < math.inf,
        f"time={row['time']} without its time zone": time.tzinfo is None,
    }
    if wrong := [fault for fault, found in faults.items() if found]:
        raise ValueError(wrong[0])
    return cells


def unescape_formula(cell: str) -> str:
    """The text of a cell, without the apostrophe by which report.html keeps spreadsheets from evaluating it.

    >>> unescape_formula("'=1+1"), unescape_formula("''=1+1"), unescape_formula("'tis")
    ('=1+1', "'=1+1", "'tis")
    """
    return cell[1:] if re.match(r"'+[=+\-@\t\r\n＝＋－＠]", cell) else cell  # noqa: RUF001


def _bad(path: Path, got: str) -> UserError:
    expected = f"a decisions.csv with the columns {', '.join(COLUMNS)}"
    return UserError(expected, f"{path}, {got}", "Export it again from the page.", "bad-decisions")
