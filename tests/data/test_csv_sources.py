from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.sources import listed, make, rows

from vidcls.errors import UserError


def write_csv(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    make(tmp_path / "lists", "clips/ann_1.mp4", "clips/bob_2.mp4", "clips/ü, 3.mp4")
    (tmp_path / "lists" / "videos.csv").write_bytes(text.encode(encoding))
    return tmp_path / "lists" / "videos.csv"


@pytest.mark.parametrize("header", ["path,label,label", "path,label,Label ", "url,url,label"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(UserError) as error:
        listed(write_csv(tmp_path, f"{header}\nclips/ann_1.mp4,safe,adult\nclips/bob_2.mp4,adult,safe\n"))
    assert error.value.code == "csv-columns"


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_texts_of_a_parquet_are_read_whatever_their_type(tmp_path: Path, kind: pa.DataType) -> None:
    columns = {"path": ["clips/ann_1.mp4", "clips/bob_2.mp4"], "label": ["säfe", "adult"]}
    source = write_csv(tmp_path, "").with_suffix(".parquet")
    pq.write_table(pa.table({name: pa.array(texts).cast(kind) for name, texts in columns.items()}), source)
    assert rows(listed(source), "path", "label") == list(zip(*columns.values(), strict=True))
    columns |= {"label": ["safe ", "adult"], "split": ["Train ", "val"], "creator": [" ann", "bob"]}
    pq.write_table(pa.table({name: pa.array(texts).cast(kind) for name, texts in columns.items()}), source)
    assert rows(listed(source), "label", "split", "creator") == [("safe", "train", "ann"), ("adult", "val", "bob")]
    twice = pa.table([pa.array(["clips/ann_1.mp4"]), pa.array(["a"]), pa.array(["b"])], ["path", "label", "Label"])
    pq.write_table(twice, source)
    with pytest.raises(UserError, match="csv-columns"):
        listed(source)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv(tmp_path: Path, encoding: str, newline: str) -> None:
    absolute = make(tmp_path / "other", "cat_4.mp4") / "cat_4.mp4"
    text = (
        f'path,label\nclips/bob_2.mp4,safe\n\n"clips/ü, 3.mp4",adult\n{absolute},ödd\n../lists/clips/ann_1.mp4,safe\n'
    )
    listing = listed(write_csv(tmp_path, text.replace("\n", newline), encoding))
    assert rows(listing, "path", "label", "split", "creator") == [
        ("../lists/clips/ann_1.mp4", "safe", "", "ann"),
        (str(absolute), "ödd", "", "cat"),
        ("clips/bob_2.mp4", "safe", "", "bob"),
        ("clips/ü, 3.mp4", "adult", "", ""),
    ]
    assert all(os.path.isfile(file) and os.path.isabs(file) for file in listing.videos["file"])


def test_csv_with_splits_and_creators(tmp_path: Path) -> None:
    text = "Creator, split, label, path\nzoe, Validation, safe, clips/bob_2.mp4\n,train,adult,clips/ann_1.mp4\n"
    listing = listed(write_csv(tmp_path, text))
    assert rows(listing, "path", "label", "split", "creator") == [
        ("clips/ann_1.mp4", "adult", "train", ""),
        ("clips/bob_2.mp4", "safe", "val", "zoe"),
    ]


def test_columns_that_are_not_read_are_said(tmp_path: Path) -> None:
    """A creator or split under another name would not be noticed: splits would be drawn without them."""
    source = write_csv(tmp_path, "path,label,author,Set,\nclips/ann_1.mp4,a,zoe,val,\nclips/bob_2.mp4,b,zoe,train,\n")
    assert listed(source).ignored == {"other columns: author, set": 2}
    table = pa.table({"path": ["clips/ann_1.mp4", "clips/bob_2.mp4"], "label": ["a", "b"], "spilt": ["val", "train"]})
    pq.write_table(table, source.with_suffix(".parquet"))
    assert listed(source.with_suffix(".parquet")).ignored == {"other columns: spilt": 1}


def test_csv_rows_given_twice_and_classes_left_out(tmp_path: Path) -> None:
    text = 'path,label\nclips/ann_1.mp4,a\nclips/bob_2.mp4,b\nclips/./ann_1.mp4,a\n"clips/ü, 3.mp4",c\n'
    listing = listed(write_csv(tmp_path, text), ["b", "a"])
    assert rows(listing, "path") == [("clips/ann_1.mp4",), ("clips/bob_2.mp4",)]
    assert listing.ignored == {"rows given twice": 1, "videos of class 'c', which is not in data.classes": 1}


@pytest.mark.parametrize(
    ("text", "code", "detail"),
    [
        ("", "csv-columns", "path"),
        ("path;label\nclips/ann_1.mp4;a\n", "csv-columns", "path;label"),
        ("path,class\nclips/ann_1.mp4,a\n", "csv-columns", "path,class"),
        ("path,label\nclips/ann_1.mp4,a\nclips/no.mp4,b\n,b\n", "bad-csv", "line 3: clips/no.mp4,b"),
        ("path,label\nclips,a\n", "bad-csv", "line 2: clips,a"),
        ("path,label\nclips/ann_1.mp4,\n\n,b\n", "bad-csv", "line 2: clips/ann_1.mp4,; line 4: ,b"),
        ("path,label,split\nclips/ann_1.mp4,a,dev\n", "bad-csv", "ann_1.mp4,a,dev"),
        ("path,label\nclips/ann_1.mp4,a\nclips/../clips/ann_1.mp4,b\n", "bad-csv", "line 3"),
        ("path,label,split\nclips/ann_1.mp4,a,val\nclips/ann_1.mp4,a,test\n", "bad-csv", "line 3"),
        ("path,label,creator\nclips/ann_1.mp4,a,ann\nclips/ann_1.mp4,a,bob\n", "bad-csv", "line 3"),
        ("path,label\nclips/ann_1.mp4,a,train\n", "bad-csv", "3 in line 2"),
        ('path,label\n"clips/ann_1.mp4,a\n', "bad-csv", ""),
        ("path,label\n", "empty-source", ""),
        ("path,label\nclips/ann_1.mp4,a\n", "one-class", ""),
        ("path,label\n" + "".join(f"{n}.mp4,a\n" for n in range(99)), "bad-csv", "line 6: 4.mp4,a; and 94 more"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, code: str, detail: str) -> None:
    with pytest.raises(UserError) as error:
        listed(write_csv(tmp_path, text))
    assert error.value.code == code and detail in str(error.value)


def test_csv_in_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        listed(write_csv(tmp_path, "path,label\nclips/ü.mp4,a\n", "latin-1"))
    assert error.value.code == "bad-csv"
