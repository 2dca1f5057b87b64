"""What is no source of videos, or one whose classes cannot be told, is refused."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from helpers.sources import listed, make
from helpers.warm_python import warm_python

from vidcls.errors import UserError


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        listed(tmp_path / "gone")
    assert error.value.code == "missing-source" and "gone" in str(error.value)


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        listed(tmp_path / "data")
    assert error.value.code == "empty-source"


def test_no_videos_says_what_is_there(tmp_path: Path) -> None:
    source = make(tmp_path / "data", "train/safe/1.jpg", "train/safe/2.txt", ".DS_Store")
    with pytest.raises(UserError) as error:
        listed(source)
    assert error.value.code == "empty-source" and "2 files that are not videos, 1 hidden files" in str(error.value)


@pytest.mark.parametrize("name", ["label", "path", "score", "creator", "fold"])
def test_classes_named_as_columns_of_predictions_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as error:
        listed(make(tmp_path / "data", "train/safe/1.mp4", f"train/{name}/2.mp4"))
    assert error.value.code == "reserved-class-name" and name in str(error.value)


def test_one_class_only(tmp_path: Path) -> None:
    source = make(tmp_path / "data", "train/safe/1.mp4", "val/safe/2.mp4", "extra/3.mp4")
    with pytest.raises(UserError) as error:
        listed(source)
    assert error.value.code == "one-class" and "'safe' with 2 videos (ignored: 1 " in str(error.value)


@pytest.mark.parametrize("one, other", [("Safe", "safe"), ("caf\u00e9", "cafe\u0301"), ("safe", "safe ")])
def test_classes_that_people_take_for_one_are_refused(tmp_path: Path, one: str, other: str) -> None:
    """A class of each would be trained on without a video in val, and the other measured without one in train."""
    source = make(tmp_path / "data", f"train/{one}/1.mp4", "train/adult/2.mp4", f"val/{other}/3.mp4", "val/adult/4.mp4")
    with pytest.raises(UserError) as error:
        listed(source)
    assert error.value.code == "classes-alike"
    assert len(listed(source, ["adult", one, other]).videos) == 4
    assert listed(source, ["adult", one]).ignored == {f"videos of class {other!r}, which is not in data.classes": 1}


@pytest.mark.parametrize("paths", [["1.mp4", "2.mp4"], ["all/1.mp4"], ["train/1.mp4", "val/2.mp4"]])
def test_no_class_folders(tmp_path: Path, paths: list[str]) -> None:
    with pytest.raises(UserError) as error:
        listed(make(tmp_path / "data", *paths))
    assert error.value.code == "no-class-folders"


@pytest.mark.parametrize("name", ["clip.mp4", "data.tar.gz", "data"])
def test_unknown_file_type(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as error:
        listed(make(tmp_path, name) / name)
    assert error.value.code == "source-type"


def test_zip_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        listed(make(tmp_path, "data.zip") / "data.zip")
    assert error.value.code == "damaged-zip"


@pytest.mark.slow
def test_unreadable_folder() -> None:
    """In a process that is not root, to whom every folder is readable; hence not in tmp_path, which is its owner's."""
    script = """
import os, sys
from vidcls.data.options import DataOptions
from vidcls.data.sources import list_videos
from vidcls.errors import UserError
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    list_videos(DataOptions(sys.argv[1], sys.argv[1]), classes=None)
except UserError as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as folder:
        source = make(Path(folder), "safe/1.mp4", "adult/2.mp4")
        source.chmod(0o755)
        (source / "adult").chmod(0o000)
        command = [warm_python(), "-c", script, folder]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        (source / "adult").chmod(0o755)
    assert f"expected a data.source that can be read; got Permission denied: {folder}/adult" in output
