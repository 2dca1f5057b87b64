"""Files of decisions, as the page of predict.py exports them."""

from __future__ import annotations

import csv
from pathlib import Path

from vidcls.data.decisions import COLUMNS


def decisions(path: Path, *rows: tuple[str, str, str]) -> Path:
    """A decisions.csv; a row is (content, reviewer, label or verdict), each a minute later than the one before."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        for minute, (sha256, reviewer, said) in enumerate(rows):
            verdict = said if said in ("unsure", "bad_file") else "label"
            time = f"2026-03-01T10:{minute:02}:00Z"
            cells = {"path": f"{sha256[:4]}.mp4", "sha256": sha256, "verdict": verdict, "seconds": "1"}
            label = said if verdict == "label" else ""
            writer.writerow(cells | {"label": label, "reviewer": reviewer, "time": time})
    return path
