"""predictions.csv, segments.csv and timelines.parquet: what a journal holds, as files that others read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vidcls.data.options import check_class_names
from vidcls.files import csv_bytes, write_atomically
from vidcls.prediction.journal import Journal

SEGMENT_COLUMNS = ("path", "sha256", "class", "start_seconds", "end_seconds", "peak", "peak_seconds")
TEXT, SECONDS = pa.string(), pa.float64()
WINDOW_COLUMNS = {"path": TEXT, "sha256": TEXT, "start_seconds": SECONDS, "end_seconds": SECONDS}
ROW_GROUP = 10_000  # windows of timelines.parquet that are written at once, at least


def prediction_columns(classes: Sequence[str]) -> list[str]:
    """The columns of predictions.csv; raises `UserError` where a class has the name of another column."""
    before = ["path", "sha256", "decision", "predicted"]
    after = ["score", "coverage", "status", "reason", "decoder", "seconds", "windows", "model", "policy"]
    check_class_names(classes)
    return [*before, *classes, *after]


def write_result_files(journal: Journal, classes: Sequence[str]) -> None:
    """Writes the three files into the journal's folder, each whole or not at all, their rows sorted by path."""
    rows, segments = journal.rows(), []
    schema = pa.schema(WINDOW_COLUMNS | dict.fromkeys(classes, pa.float32()))
    timelines = io.BytesIO()
    with pq.ParquetWriter(timelines, schema) as writer:
        pending: list[pa.Table] = []
        for row in rows:
            if (details := journal.details(row["sha256"])) is None:
                continue
            identity, starts, ends = [row["path"], row["sha256"]], details.start_seconds, details.end_seconds
            for name, start, end, peak, at in details.segments:
                segments.append([*identity, name, f"{start:.3f}", f"{end:.3f}", f"{peak:.9g}", f"{at:.3f}"])
            texts = [[text] * len(starts) for text in identity]
            columns: list[Any] = [*texts, starts, ends, *zip(*details.probabilities, strict=True)]
            arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
            pending.append(pa.table(arrays, schema))
            if sum(map(len, pending)) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(pending))
                pending.clear()
        writer.write_table(pa.concat_tables(pending) if pending else schema.empty_table())
    write_atomically(journal.folder / "timelines.parquet", timelines.getvalue())
    tables = {"segments": (segments, SEGMENT_COLUMNS), "predictions": (rows, prediction_columns(classes))}
    for name, (table, header) in tables.items():
        write_atomically(journal.folder / f"{name}.csv", csv_bytes(pd.DataFrame(table, columns=list(header))))
