"""predictions.csv, segments.csv and timelines.parquet: what a journal holds, as files that others read."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vidcls.data.options import check_class_names
from vidcls.files import write_atomically
from vidcls.prediction.journal import Journal, VideoDetails

SEGMENT_COLUMNS = ("path", "sha256", "class", "start_seconds", "end_seconds", "peak", "peak_seconds")
ROW_GROUP = 10_000  # windows of timelines.parquet that are written at once, at least
WINDOW_COLUMNS = {
    "path": pa.string(),
    "sha256": pa.string(),
    "start_seconds": pa.float64(),
    "end_seconds": pa.float64(),
}


def prediction_columns(classes: Sequence[str]) -> list[str]:
    """The columns of predictions.csv; raises `UserError` where a class has the name of another column."""
    before = ["path", "sha256", "decision", "predicted"]
    after = ["score", "coverage", "status", "reason", "decoder", "seconds", "windows", "model", "policy"]
    check_class_names(classes)
    return [*before, *classes, *after]


def write_result_files(journal: Journal, classes: Sequence[str]) -> None:
    """Writes the three files into the journal's folder, each whole or not at all, their rows sorted by path."""
    rows = journal.rows()
    write_atomically(journal.folder / "predictions.csv", _csv_bytes(prediction_columns(classes), rows))
    segments = []
    schema = pa.schema(WINDOW_COLUMNS | {name: pa.float32() for name in classes})
    part = journal.folder / ".timelines.parquet"
    with pq.ParquetWriter(part, schema) as writer:  # in parts: the windows of an archive need not fit into memory
        pending: list[pa.Table] = []
        for row in rows:
            identity, details = {"path": row["path"], "sha256": row["sha256"]}, journal.details(row["sha256"])
            if details is not None:
                segments += [identity | _segment_cells(*segment) for segment in details.segments]
                pending.append(_timeline(identity, details, schema))
            if sum(map(len, pending)) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(pending))
                pending.clear()
        if pending:
            writer.write_table(pa.concat_tables(pending))
    part.replace(journal.folder / "timelines.parquet")
    write_atomically(journal.folder / "segments.csv", _csv_bytes(SEGMENT_COLUMNS, segments))


def _segment_cells(name: str, start: float, end: float, peak: float, peak_seconds: float) -> dict[str, str]:
    times = {"start_seconds": start, "end_seconds": end, "peak_seconds": peak_seconds}
    return {"class": name, "peak": f"{peak:.9g}", **{column: f"{seconds:.3f}" for column, seconds in times.items()}}


def _timeline(identity: dict[str, str], details: VideoDetails, schema: pa.Schema) -> pa.Table:
    constant = [[text] * len(details.start_seconds) for text in identity.values()]
    columns = [*constant, details.start_seconds, details.end_seconds, *zip(*details.probabilities, strict=True)]
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema)


def _csv_bytes(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> bytes:
    # Python 3.11 does not quote a carriage return, which a file's name may hold.
    quoting: Any = csv.QUOTE_ALL if any("\r" in cell for row in rows for cell in row.values()) else csv.QUOTE_MINIMAL
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n", quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
