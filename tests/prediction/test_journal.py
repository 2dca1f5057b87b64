from __future__ import annotations

import gc
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from vidcls.data.options import RESERVED_CLASS_NAMES
from vidcls.errors import UserError
from vidcls.files import Owner
from vidcls.prediction.journal import Journal, VideoDetails, check_output
from vidcls.prediction.result_files import SEGMENT_COLUMNS, WINDOW_COLUMNS, prediction_columns, write_result_files

CLASSES = ["bad", "safe"]
VERSIONS = dict.fromkeys("abc", "")
DETAILS = VideoDetails([0.0, 1.5], [2.0, 3.5], [[0.25, 0.75], [1.0, 0.0]], [("bad", 1.25, 3.5, 1.0, 2.5)], [], [])


def result(
    decision: str = "allow", details: VideoDetails | None = DETAILS
) -> tuple[dict[str, str], VideoDetails | None]:
    windows = 0 if details is None else len(details.start_seconds)
    cells = dict.fromkeys(prediction_columns(CLASSES)[2:], "") | {"decision": decision, "windows": str(windows)}
    return cells, details


def test_what_is_written_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, {"model": "m", "size": 1.5})) as journal:
        journal.write({"b": "1 1", "a": "1 2"}, "1", *result())
        journal.write({"c": ""}, "", *result("review", None))
    with closing(Journal(tmp_path, {"size": 1.5, "model": "m"})) as journal:
        rows = journal.rows()
        assert [(row["path"], row["sha256"], row["decision"]) for row in rows] == [
            ("a", "1", "allow"),
            ("b", "1", "allow"),
            ("c", "", "review"),
        ]
        details = journal.details("1")
        assert details is not None and details.probabilities == DETAILS.probabilities
        assert journal.details("") is None
    assert not list(tmp_path.glob("journal.sqlite-*"))


def test_paths_follow_the_content_of_their_files(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, {})) as journal:
        assert journal.assign({"a": "1", "b": "2"}, VERSIONS) == {"1", "2"}
        journal.write({"a": ""}, "1", *result("block"))
        journal.write({"b": ""}, "2", *result("allow"))
        assert journal.assign({"a": "2", "b": "1", "c": "1"}, VERSIONS) == set()  # swapped, and a copy
        assert [row["decision"] for row in journal.rows()] == ["allow", "block", "block"]
        assert journal.assign({"a": "3"}, VERSIONS) == {"3"}  # changed: what was known of it no longer counts
        assert [row["path"] for row in journal.rows()] == ["b", "c"]


def test_what_a_limit_may_have_cost_is_tried_again_under_others(tmp_path: Path) -> None:
    for seconds, missing in ((60, {"1", "2"}), (60, set()), (90, {"2"}), (90, set())):
        with closing(Journal(tmp_path, {}, {"timeout_seconds": seconds})) as journal:
            assert journal.assign({"a": "1", "b": "2"}, VERSIONS) == missing
            for sha256 in missing:
                cells, details = result("review")
                status = {"1": "ok", "2": "partial"}[sha256]
                journal.write({"a" if sha256 == "1" else "b": ""}, sha256, cells | {"status": status}, details)
            assert [row["path"] for row in journal.rows()] == ["a", "b"]


def test_a_result_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    class Interrupted(dict[str, str]):
        def items(self) -> Any:
            yield "a", ""
            raise KeyboardInterrupt

    with closing(Journal(tmp_path, {})) as journal:
        with pytest.raises(KeyboardInterrupt):
            journal.write(Interrupted(), "1", *result())
        assert list(journal.rows()) == [] and journal.assign({"a": "1"}, VERSIONS) == {"1"}


def test_only_what_has_no_final_result_is_pending(tmp_path: Path) -> None:
    def write(name: str, version: str, status: str) -> None:
        cells, details = result("review")
        journal.write({name: version}, name, cells | {"status": status}, details)

    for seconds, tried_again in ((60, []), (90, ["broken", "cut"])):
        with closing(Journal(tmp_path, {}, {"timeout_seconds": seconds})) as journal:
            if seconds == 60:
                write("fine", "9 a", "ok")
                write("cut", "9 b", "partial")
                write("broken", "9 c", "undecodable")
                write("lost", "", "unfetchable")
                write("unreadable", "", "undecodable")
            known = {"fine": "9 a", "cut": "9 b", "broken": "9 c"}
            assert sorted(journal.pending(known)) == tried_again
            assert sorted(journal.pending(dict.fromkeys(known, "9 "))) == tried_again  # not known in full
            for others in ({"fine": "9 z"}, {"fine": "9"}, {"new": "9 a"}, {"lost": "9 "}, {"unreadable": ""}):
                assert journal.pending(others) == list(others)


@pytest.mark.parametrize(
    ("settings", "code"), [({"model": "other"}, "other-settings"), ({"model": "m"}, "output-in-use")]
)
def test_who_may_not_write_is_refused(tmp_path: Path, settings: dict[str, str], code: str) -> None:
    journal = Journal(tmp_path, {"model": "m"})
    if code == "other-settings":
        journal.close()
    with pytest.raises(UserError) as error:
        Journal(tmp_path, settings)
    assert error.value.code == code
    journal.close()
    Journal(tmp_path, {"model": "m"}).close()


def test_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite would say that another process has locked it, for ever."""
    monkeypatch.setattr("vidcls.prediction.journal.lock_problem", lambda folder: "no locks")
    with pytest.raises(UserError) as error:
        Journal(tmp_path / "new", {})
    assert error.value.code == "output-locks"


def test_where_locks_do_not_hold_the_last_to_open_a_journal_has_it(tmp_path: Path) -> None:
    """The other one writes no more, not even when it is closed, as SQLite does then."""
    first, versions = Journal(tmp_path, {}), dict.fromkeys("ab", "")
    first.write({"a": ""}, "1", *result())
    Owner(tmp_path / ".owner")  # of another machine
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for use in (lambda: first.write({"b": ""}, "2", *result()), lambda: first.assign({"b": "2"}, versions)):
        with pytest.raises(UserError) as error:
            use()
        assert error.value.code == "other-process"
    with pytest.raises(UserError):
        write_result_files(first, CLASSES)
    first.close()
    del first
    gc.collect()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert before["journal.sqlite-wal"]


@pytest.mark.parametrize("content", [b"", b"no database, but long enough to be taken for one" * 100])
def test_a_journal_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.sqlite").write_bytes(content)
    if content:
        with pytest.raises(UserError) as error:
            Journal(tmp_path, {})
        assert error.value.code == "output"
    else:  # killed before its first transaction
        Journal(tmp_path, {}).close()


def test_output_folders_that_are_refused(tmp_path: Path) -> None:
    check_output(tmp_path)
    check_output(tmp_path / "new" / "deep")
    (tmp_path / "predict.json").write_text("{}")  # of the version before the journal
    for folder, code in ((tmp_path, "foreign-output"), (tmp_path / "predict.json", "output")):
        with pytest.raises(UserError) as error:
            check_output(folder)
        assert error.value.code == code


def test_the_disk_is_full(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, {})) as journal:
        journal.write({"a": ""}, "1", *result())
        pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
        journal._database.execute(f"PRAGMA max_page_count = {pages}")
        long = VideoDetails([0.0] * 10000, [1.0] * 10000, [[0.5, 0.5]] * 10000, [], [], [])
        with pytest.raises(UserError) as error:
            journal.write({"b": ""}, "2", *result("allow", long))
        assert error.value.code == "output-full"
        assert [row["path"] for row in journal.rows()] == ["a"]


def test_a_damaged_journal_ends_in_one_line(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, {})) as journal:
        for number in range(200):
            journal.write({f"{number}.mp4": ""}, f"{number:064}", *result())
    path = tmp_path / "journal.sqlite"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with closing(Journal(tmp_path, {})) as journal:  # its first pages are whole
        uses = (
            lambda: list(journal.rows()),
            lambda: journal.assign({f"{n}.mp4": f"{n:064}" for n in range(200)}, {f"{n}.mp4": "" for n in range(200)}),
        )
        for use in uses:
            with pytest.raises(UserError, match=r"damaged journal\.sqlite") as error:
                use()
            assert error.value.code == "output"


@pytest.mark.parametrize("path", ["plain.mp4", "a,b\r.mp4", 'new\nline".mp4', "=SUM(A1).mp4", "@x", "\u2028é.mp4"])
def test_result_files_hold_any_name(tmp_path: Path, path: str) -> None:
    with closing(Journal(tmp_path, {})) as journal:
        journal.write({path: "", "0": ""}, "1", *result())
        journal.write({"none": ""}, "2", *result("review", None))
        write_result_files(journal, CLASSES)
    tables = [
        pd.read_csv(tmp_path / name, keep_default_na=False, dtype=str) for name in ("predictions.csv", "segments.csv")
    ]
    assert tables[0]["path"].tolist() == sorted([path, "0", "none"])
    assert list(tables[0].columns) == prediction_columns(CLASSES)
    assert tables[1]["path"].tolist() == sorted([path, "0"])
    assert tables[1].iloc[0].tolist()[1:] == ["1", "bad", "1.250", "3.500", "1", "2.500"]
    timelines = pd.read_parquet(tmp_path / "timelines.parquet")
    assert timelines["path"].tolist() == sorted([path, "0"] * 2)
    assert timelines["bad"].tolist() == [0.25, 1.0] * 2 and timelines["bad"].dtype == "float32"
    assert timelines["end_seconds"].tolist() == [2.0, 3.5] * 2


def test_no_videos_make_files_too(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, {})) as journal:
        write_result_files(journal, CLASSES)
    assert (tmp_path / "predictions.csv").read_text() == ",".join(prediction_columns(CLASSES)) + "\n"
    assert len(pd.read_parquet(tmp_path / "timelines.parquet")) == 0


def test_classes_named_as_columns_are_refused() -> None:
    """Also by train.py, which lists its videos with the same check, beside those of out_of_fold.csv."""
    out_of_fold = {"label", "repeat", "seed", "fold", "creator"}
    assert {*prediction_columns([]), *SEGMENT_COLUMNS, *WINDOW_COLUMNS, *out_of_fold} == RESERVED_CLASS_NAMES
    with pytest.raises(UserError) as error:
        prediction_columns(["safe", "score"])
    assert error.value.code == "reserved-class-name"


def test_the_journal_is_an_ordinary_database(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, {})) as journal:
        journal.write({"a": ""}, "1", *result("block"))
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as database:
        query = "SELECT CAST(path AS TEXT), cells ->> 'decision' FROM videos JOIN results ON result = id"
        assert database.execute(query).fetchall() == [("a", "block")]
