"""Writes the results in a journal to predictions.csv, segments.csv and timelines.parquet."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vidcls.data.options import check_class_names
from vidcls.files import csv_writer, replacing
from vidcls.prediction.journal import Journal

SEGMENT_COLUMNS = ("path", "sha256", "class", "start_seconds", "end_seconds", "peak", "peak_seconds")
TEXT, SECONDS = pa.string(), pa.float64()
WINDOW_COLUMNS = {"path": TEXT, "sha256": TEXT, "start_seconds": SECONDS, "end_seconds": SECONDS}
ROW_GROUP = 10_000  # windows of timelines.parquet that are written at once, at least


def prediction_columns(classes: Sequence[str]) -> list[str]:
    """The columns of predictions.csv; raises `UserError` if a class has the name of another column."""
    before = ["path", "sha256", "decision", "predicted"]
    after = ["score", "coverage", "status", "reason", "decoder", "seconds", "windows", "model", "policy"]
    check_class_names(classes)
    return [*before, *classes, *after]


def write_result_files(journal: Journal, classes: Sequence[str]) -> None:
    """Writes the three files into the journal's folder, atomically, their rows sorted by path."""
    schema = pa.schema(WINDOW_COLUMNS | dict.fromkeys(classes, pa.float32()))
    folder, columns = journal.folder, prediction_columns(classes)
    with (
        replacing(folder / "timelines.parquet") as timelines,
        replacing(folder / "segments.csv") as segments,
        replacing(folder / "predictions.csv") as predictions,
        pq.ParquetWriter(timelines, schema) as writer,
    ):
        write_segment, write_row = csv_writer(segments, SEGMENT_COLUMNS), csv_writer(predictions, columns)
        windows: list[list[Any]] = [[] for _ in schema.names]  # columns of what is not written yet

        def flush() -> None:
            arrays = [pa.array(column, kind) for column, kind in zip(windows, schema.types, strict=True)]
            writer.write_table(pa.table(arrays, schema))
            for column in windows:
                column.clear()

        for row, details in journal.rows_and_details():
            write_row([row[name] for name in columns])
            if details is None:
                continue
            identity, starts, ends = [row["path"], row["sha256"]], details.start_seconds, details.end_seconds
            for name, start, end, peak, at in details.segments:
                write_segment([*identity, name, f"{start:.3f}", f"{end:.3f}", f"{peak:.9g}", f"{at:.3f}"])
            texts = [[text] * len(starts) for text in identity]
            cells: list[Any] = [*texts, starts, ends, *zip(*details.probabilities, strict=True)]
            for column, values in zip(windows, cells, strict=True):
                column += values
            if len(windows[0]) >= ROW_GROUP:
                flush()
        flush()
