"""What it costs to resume a prediction over a million URLs that is 99 % done: listing and planning, and the results.

python experiments/scale/million.py             about two minutes; --count 1000000 --kind parquet
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from vidcls.data.options import FetchLimits
from vidcls.prediction import pipeline  # noqa: F401 (loads torch, whose memory counts)
from vidcls.prediction.catalogue import location_version
from vidcls.prediction.html_report import write_report
from vidcls.prediction.inputs import Inputs, plan_videos
from vidcls.prediction.journal import Journal, VideoDetails
from vidcls.prediction.result_files import prediction_columns, write_result_files

CLASSES = ["adult", "harmful", "safe"]


def url(number: int) -> str:
    """A URL of about the usual length."""
    return f"https://videos.example.com/uploads/2026/11/{number % 30:02}/creator_{number % 5003:05}_{number:010}.mp4"


def write_list(path: Path, count: int) -> None:
    """A list of ``count`` URLs, as a .txt, .csv or .parquet."""
    urls = [url(number) for number in range(count)]
    if path.suffix == ".txt":
        path.write_text("\n".join(urls))
    elif path.suffix == ".csv":
        pd.DataFrame({"url": urls}).to_csv(path, index=False)
    else:
        pd.DataFrame({"url": urls}).to_parquet(path)


def fill_journal(folder: Path, count: int) -> None:
    """A journal with results of ``count`` videos of one window, as predict.py leaves it."""
    Journal(folder, {}).close()
    cells = dict.fromkeys(prediction_columns(CLASSES)[2:], "0.123456789") | {"windows": "1", "status": "ok"}
    details = VideoDetails([0.0], [10.0], [[0.2, 0.3, 0.5]], [("harmful", 0.0, 10.0, 0.6, 5.0)], [], [])
    texts = [json.dumps(cells | {"decision": one, "reason": "harmful 0.61"}) for one in ("allow", "review", "block")]
    limits, timeline = json.dumps(None), json.dumps(asdict(details))
    with closing(sqlite3.connect(folder / "journal.sqlite")) as database, database:
        for number in range(count):
            sha256 = hashlib.sha256(str(number).encode()).hexdigest()
            row = (number + 1, sha256, texts[number % 3], timeline, limits)
            database.execute("INSERT INTO results VALUES (?, ?, ?, ?, ?)", row)
            database.execute(
                "INSERT INTO videos VALUES (?, ?, ?)",
                (url(number).encode(), number + 1, location_version(url(number), f"5000000 {sha256[:32]}")),
            )


def measured(function: Callable[..., Any], *arguments: Any) -> dict[str, float]:
    """Seconds and peak memory in MB of a function in a process of its own, which has loaded torch."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (function, arguments))


def _measure(function: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    started, cpu = time.perf_counter(), time.process_time()
    result = function(*arguments)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak, "before_mb": before, "result": result}


def plan(source: Path, output: Path) -> int:
    """Lists all videos and finds those that are left; gives their number."""
    with closing(Journal(output, {})) as journal:
        return len(plan_videos(Inputs(str(source), FetchLimits()), journal, Console(quiet=True)).videos)


def write_results(output: Path) -> int:
    """Writes predictions.csv, segments.csv, timelines.parquet and report.html."""
    with closing(Journal(output, {})) as journal:
        write_result_files(journal, CLASSES)
        write_report(journal, CLASSES, "safe", {}, max_videos=500, loops_megabytes=24, blur=False)
        return sum(journal.counts().values())


def main() -> None:
    """Prints a row per step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="+", default=["txt", "csv", "parquet"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), {}
        fill_journal(folder / "out", options.count * 99 // 100)
        for kind in options.kinds:
            write_list(folder / f"list.{kind}", options.count)
            rows[f"plan, from a .{kind}"] = measured(plan, folder / f"list.{kind}", folder / "out")
        rows["plan, nothing done"] = measured(plan, folder / f"list.{options.kinds[0]}", folder / "new")
        rows["write results"] = measured(write_results, folder / "out")
    print(pd.DataFrame(rows).T.round(1).to_markdown())


if __name__ == "__main__":
    main()
