"""The folder that predict.py writes: rows as they are done, whole files whatever happens, and where to go on.

Three files only grow, line by line: details.jsonl, segments.csv and, last for each video, its row in predictions.csv.
A video counts as done once that row is there; a killed run leaves at most half a line, which the next one cuts off.
timelines.parquet and report.html cannot grow and are made from them at the end, also after Ctrl-C.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vidcls.errors import UserError
from vidcls.files import write_atomically

SEGMENT_COLUMNS = ("path", "sha256", "class", "start_seconds", "end_seconds", "peak", "peak_seconds")
ROW_GROUP = 10_000  # windows, at least, that are written to timelines.parquet at once
Row = dict[str, str]


def prediction_columns(classes: Sequence[str]) -> list[str]:
    """The columns of predictions.csv.

    Raises:
        UserError: a class has the name of another column.

    Example:
        >>> prediction_columns(["bad", "safe"])[2:6]
        ['decision', 'predicted', 'bad', 'safe']
    """
    before = ["path", "sha256", "decision", "predicted"]
    after = ["score", "coverage", "status", "reason", "decoder", "seconds", "windows", "model", "policy"]
    taken = {*before, *after, *SEGMENT_COLUMNS} & set(classes)
    if taken:
        raise UserError(
            "classes that are not named as a column of predictions.csv",
            ", ".join(sorted(taken)),
            "Rename that class's folder and train again.",
        )
    return [*before, *classes, *after]


class PredictionFolder:
    """An output folder, new or to be continued.

    Args:
        folder: where it is.
        classes: the K names.
        identity: all that results depend on, as plain values; a folder is continued only by the same.

    Attributes:
        rows: of predictions.csv, by path.
        segments: of segments.csv, by the content's SHA-256; without the path.

    Raises:
        UserError: the folder holds something else, or predictions made otherwise.
    """

    def __init__(self, folder: Path, classes: Sequence[str], identity: dict[str, Any]) -> None:
        self.folder = folder
        self.columns = prediction_columns(classes)
        self.classes = list(classes)
        try:
            self._check_identity(identity)
        except (OSError, ValueError) as error:
            raise UserError(
                "output= to be a folder that can be written", f"{folder}: {error}", "Give another."
            ) from error
        self._lock = (folder / "predict.json").open()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process ends
        except OSError:
            raise UserError(
                "an output folder that no other process writes to",
                str(folder),
                "Wait for it, or give another output=DIR.",
            ) from None
        self.rows: dict[str, Row] = {}
        self.segments: dict[str, list[Row]] = {}
        self._recover()
        self._predictions, self._segments, self._details = (
            (folder / name).open("a", encoding="utf-8", newline="")
            for name in ("predictions.csv", "segments.csv", "details.jsonl")
        )

    def _check_identity(self, identity: dict[str, Any]) -> None:
        path = self.folder / "predict.json"
        if path.exists():
            before = json.loads(path.read_text())
            other = [name for name in identity if before.get(name) != json.loads(json.dumps(identity[name]))]
            if other:
                raise UserError(
                    f"an output folder made with the same {', '.join(other)}",
                    f"{self.folder}, made with {', '.join(f'{name}={before.get(name)}' for name in other)}",
                    "Give another output=DIR, or the same settings to continue that one.",
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(
                "output= to be a new or empty folder, or one of predict.py",
                f"{self.folder}, which holds other files",
                "Give another output=DIR.",
            )
        else:
            write_atomically(path, json.dumps(identity, indent=2).encode())

    def _recover(self) -> None:
        """Reads what is done, and cuts off what an interrupted run left unfinished."""
        self.rows = {row["path"]: row for row in self._read("predictions.csv", self.columns)}
        self.segments, speakers = {}, dict[str, str]()
        for segment in self._read("segments.csv", SEGMENT_COLUMNS):
            path, sha256 = segment.pop("path"), segment["sha256"]
            # What is left of a file's earlier content does not count, and one of several copies speaks for all.
            if path in self.rows and self.rows[path]["sha256"] == sha256 and speakers.setdefault(sha256, path) == path:
                self.segments.setdefault(sha256, []).append(segment)
        detailed = {details["sha256"] for details in self.details()}
        for path, row in list(self.rows.items()):
            if row["windows"] != "0" and row["sha256"] not in detailed:  # somebody has removed them: judge it again
                del self.rows[path]
        _write_csv(self.folder / "predictions.csv", self.columns, self.rows.values())
        _write_csv(self.folder / "segments.csv", SEGMENT_COLUMNS, self._all_segments(self.rows.values()))
        hashes = {row["sha256"] for row in self.rows.values()}
        part = self.folder / ".details.jsonl"
        with part.open("w", encoding="utf-8") as file:
            for details in self.details():
                if details["sha256"] in hashes:
                    hashes.remove(details["sha256"])
                    file.write(json.dumps(details) + "\n")
        part.replace(self.folder / "details.jsonl")

    def _read(self, name: str, columns: Sequence[str]) -> Iterator[Row]:
        path = self.folder / name
        if path.exists():
            text = path.read_bytes().decode(errors="replace")
            text = text[: text.rfind("\n") + 1]
            for row in csv.DictReader(io.StringIO(text, newline="")):
                if set(row) == set(columns) and None not in row.values():
                    yield row

    def _all_segments(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            for segment in self.segments.get(row["sha256"], []):
                yield {**segment, "path": row["path"], "sha256": row["sha256"]}

    def details(self) -> Iterator[dict[str, Any]]:
        """The lines of details.jsonl, one at a time: they may be many, and hold pictures."""
        path = self.folder / "details.jsonl"
        if path.exists():
            with path.open(encoding="utf-8") as file:
                for line in file:
                    try:
                        yield json.loads(line)
                    except ValueError:  # half a line, or a damaged one
                        continue

    def write(self, row: Row, segments: Sequence[Row], details: dict[str, Any] | None) -> None:
        """Adds one video, in place of what its path had before.

        ``details`` is None where they are there already, or where the video has none.

        Raises:
            UserError: the disk is full, or gone.
        """
        try:
            if details is not None:
                self._details.write(json.dumps(details) + "\n")
            self.segments[row["sha256"]] = list(segments)
            self._segments.write(_csv_lines(SEGMENT_COLUMNS, self._all_segments([row])))
            for file in (self._details, self._segments):
                file.flush()
            self._predictions.write(_csv_lines(self.columns, [row]))
            self._predictions.flush()
        except OSError as error:
            raise UserError(
                f"room for results in {self.folder}",
                str(error.strerror),
                "Make some, then give the same command: what is done is kept.",
            ) from error
        self.rows[row["path"]] = row

    def copy(self, row: Row, path: str) -> None:
        """Adds a video that has the content of another one, whose ``row`` is given."""
        self.write({**row, "path": path}, self.segments.get(row["sha256"], []), None)

    def close(self) -> None:
        """Leaves every file whole: one row per path, and timelines.parquet."""
        for file in (self._predictions, self._segments, self._details):
            file.close()
        self._recover()
        self._write_timelines()
        self._lock.close()

    def _write_timelines(self) -> None:
        """timelines.parquet: path, sha256, start_seconds, end_seconds and one column per class; one row per window."""
        paths: dict[str, list[str]] = {}
        for row in self.rows.values():
            paths.setdefault(row["sha256"], []).append(row["path"])
        schema = pa.schema(
            {"path": pa.string(), "sha256": pa.string(), "start_seconds": pa.float64(), "end_seconds": pa.float64()}
            | {name: pa.float32() for name in self.classes}
        )
        part = self.folder / ".timelines.parquet"
        with pq.ParquetWriter(part, schema) as writer:
            pending: list[pd.DataFrame] = []
            for details in self.details():
                for path in paths.get(details["sha256"], []):
                    table = pd.DataFrame(details["probabilities"], columns=self.classes, dtype="float32")
                    table["path"], table["sha256"] = path, details["sha256"]
                    table["start_seconds"], table["end_seconds"] = details["starts"], details["ends"]
                    pending.append(table)
                if sum(map(len, pending)) >= ROW_GROUP:
                    writer.write_table(pa.Table.from_pandas(pd.concat(pending), schema, preserve_index=False))
                    pending.clear()
            if pending:
                writer.write_table(pa.Table.from_pandas(pd.concat(pending), schema, preserve_index=False))
        part.replace(self.folder / "timelines.parquet")


def _csv_lines(columns: Sequence[str], rows: Iterable[Row], header: bool = False) -> str:
    text = io.StringIO(newline="")
    plain = csv.DictWriter(text, columns, lineterminator="\n")
    quoted = csv.DictWriter(text, columns, lineterminator="\n", quoting=csv.QUOTE_ALL)
    if header:
        plain.writeheader()
    for row in rows:  # Python 3.11 does not quote a carriage return, which a file's name may hold
        (quoted if any("\r" in cell for cell in row.values()) else plain).writerow(row)
    return text.getvalue()


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    write_atomically(path, _csv_lines(columns, rows, header=True).encode())
