"""predict.py again into the same output: what is new or has changed is classified, and nothing twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from helpers.bright import lit
from helpers.runs import details_of, predict, rows_of, table
from helpers.videos import write_video

from vidcls.data.decoding.worker import CHANGED
from vidcls.data.file_hashes import HashResult
from vidcls.files import hash_file
from vidcls.prediction import pipeline


def test_the_same_command_again_adds_what_is_new_alone(bright: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "a.mp4", lit(2))
    changing = write_video(tmp_path / "in" / "b.mp4", lit(2, (0, 2)))
    predict(bright, tmp_path / "in", tmp_path / "out")
    before = details_of(tmp_path / "out")
    predict(bright, tmp_path / "in", tmp_path / "out")
    assert details_of(tmp_path / "out") == before
    write_video(tmp_path / "in" / "c.mp4", lit(3))
    write_video(changing, lit(2.5))  # the same name, other content: its row is the new one's
    predict(bright, tmp_path / "in", tmp_path / "out")
    found = rows_of(tmp_path / "out")
    assert found["decision"].to_dict() == {"a.mp4": "allow", "b.mp4": "allow", "c.mp4": "allow"}
    assert sorted(pd.read_parquet(tmp_path / "out" / "timelines.parquet")["path"]) == ["a.mp4", "b.mp4", "c.mp4"]


def test_swapped_files_get_their_own_segments(bright: Path, tmp_path: Path) -> None:
    one, other = (
        write_video(tmp_path / "in" / f"{name}.mp4", lit(2, *on)) for name, on in (("a", [(0, 2)]), ("b", []))
    )
    predict(bright, tmp_path / "in", tmp_path / "out")
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])
    other.write_bytes(content[0])
    for _ in range(2):
        predict(bright, tmp_path / "in", tmp_path / "out")
        assert rows_of(tmp_path / "out")["decision"].to_dict() == {"a.mp4": "allow", "b.mp4": "block"}
        assert table(tmp_path / "out" / "segments.csv")["path"].tolist() == ["b.mp4"]


def test_a_file_that_changes_before_it_is_decoded_is_never_filed_under_its_old_content(
    bright: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing = write_video(tmp_path / "in" / "a.mp4", lit(2))
    shutil.copy(changing, tmp_path / "in" / "copy.mp4")
    replacement, hash_video = write_video(tmp_path / "other.mp4", lit(2, (0, 2))), pipeline.hash_video
    restless = tmp_path / "in" / "restless.mp4"
    shutil.copy(replacement, restless)

    def hash_and_change(file: Path) -> HashResult:
        hashed = hash_video(file)
        if file == changing and replacement.exists():
            replacement.replace(changing)
        if file == restless:
            with restless.open("ab") as stream:
                stream.write(b"more")
        return hashed

    monkeypatch.setattr(pipeline, "hash_video", hash_and_change)
    predict(bright, tmp_path / "in", tmp_path / "out")
    found = rows_of(tmp_path / "out")
    assert found["decision"].to_dict() == {"a.mp4": "block", "copy.mp4": "allow", "restless.mp4": "review"}
    assert found.loc["a.mp4", "sha256"] == hash_file(changing)
    assert found.loc["copy.mp4", "sha256"] == hash_file(tmp_path / "in" / "copy.mp4")
    assert found.loc["restless.mp4", "sha256"] == "" and CHANGED in found.loc["restless.mp4", "reason"]
    monkeypatch.undo()
    predict(bright, tmp_path / "in", tmp_path / "out")
    assert rows_of(tmp_path / "out").loc["restless.mp4", "decision"] == "block"
