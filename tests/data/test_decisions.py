"""What people decided, read back from the files that the page exports."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest

from vidcls.data.decisions import COLUMNS, read_decisions, unescape_formula
from vidcls.errors import UserError

ONE, TWO = "0" * 63 + "1", "0" * 63 + "2"
ROW = {
    "path": "a/b.mp4", "sha256": ONE, "verdict": "label", "label": "fight", "reviewer": "Ada", "seconds": "2.5",
    "time": "2026-03-01T10:00:00.000Z", "note": "", "model": "3f9a0c77d1e2", "policy": "none",
}  # fmt: skip


def write(path: Path, *changes: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(ROW | change for change in changes)
    return path


def test_the_latest_decision_of_each_reviewer_counts(tmp_path: Path) -> None:
    later, latest = "2026-03-01T11:00:00+00:00", "2026-03-01T13:00:00+01:30"  # 11:30 UTC
    first = write(tmp_path / "1.csv", {"time": latest, "label": "safe"}, {"sha256": TWO}, {"reviewer": "Bo"})
    second = write(
        tmp_path / "2.csv",
        {"time": later, "label": "adult"},
        {"sha256": TWO, "verdict": "withdrawn", "label": "", "time": later},
        {"sha256": TWO, "reviewer": "Bo", "verdict": "unsure", "label": ""},
    )
    for files in ([first, second], [second, first]):
        table = read_decisions(files)
        assert list(table.columns) == list(COLUMNS)
        found = table[["sha256", "reviewer", "verdict", "label"]].to_numpy().tolist()
        assert found == [[ONE, "Ada", "label", "safe"], [ONE, "Bo", "label", "fight"], [TWO, "Bo", "unsure", ""]]
        assert table["time"][0] == pd.Timestamp("2026-03-01T11:30:00Z") and table["seconds"][0] == 2.5


def test_of_two_at_the_same_time_the_later_line_counts(tmp_path: Path) -> None:
    assert read_decisions([write(tmp_path / "1.csv", {}, {"label": "safe"})])["label"].tolist() == ["safe"]


def test_no_decisions(tmp_path: Path) -> None:
    for paths in ([], [write(tmp_path / "1.csv")]):
        table = read_decisions(paths)
        assert table.empty and list(table.columns) == list(COLUMNS) and table["time"].dt.tz is not None


def test_hostile_texts_come_back(tmp_path: Path) -> None:
    texts = {"path": '"\r\n=,.mp4', "label": "unsure", "reviewer": "'tis \u202e <b>", "note": "''=cmd|' /C calc'!A0"}
    (row,) = read_decisions([write(tmp_path / "1.csv", texts)]).to_dict("records")
    assert {name: row[name] for name in texts} == texts | {"note": "'=cmd|' /C calc'!A0"}
    assert row["verdict"] == "label"  # of a class that is called unsure


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@a", "\t=1", "\r", "'=1", "''@", "'", "", "'a", "a=1", "=1"])
def test_each_text_has_an_escaped_form(text: str) -> None:
    assert unescape_formula(f"'{text}" if text.lstrip("'")[:1] in tuple("=+-@\t\r＝") else text) == text  # noqa: RUF001


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": ""},
        {"sha256": ONE.replace("1", "A")},
        {"sha256": ONE[:12]},
        {"verdict": "Label"},
        {"label": ""},
        {"verdict": "bad_file"},
        {"reviewer": ""},
        {"seconds": "nan"},
        {"seconds": "-1"},
        {"seconds": "soon"},
        {"time": "yesterday"},
        {"time": "2026-03-01T10:00:00"},
        {"time": "0001-01-01T00:00:00+14:00"},
    ],
)
def test_a_row_that_is_no_decision_is_named_with_its_line(tmp_path: Path, change: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"1\.csv, line 3") as error:
        read_decisions([write(tmp_path / "1.csv", {}, change)])
    assert error.value.code == "bad-decisions"


@pytest.mark.parametrize("content", [None, b"", b"path,label\na,b\n", b"\xff\xfe", b'"'])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "1.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_decisions([path])
    assert error.value.code == "bad-decisions"


@pytest.mark.parametrize("cells", ["a,b", ",".join(["x"] * 11)])
def test_a_row_of_another_length_is_refused(tmp_path: Path, cells: str) -> None:
    path = write(tmp_path / "1.csv", {})
    path.write_text(path.read_text() + cells + "\n")
    with pytest.raises(UserError, match="line 3"):
        read_decisions([path])
