from __future__ import annotations

import os
import shutil
import time
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.sources import listed, make, rows, zip_of
from hypothesis import given
from hypothesis import strategies as st

from vidcls.data.options import DataOptions
from vidcls.data.sources import list_videos, place_videos
from vidcls.errors import UserError

REAL = os.environ.get("VIDCLS_REAL_DATA")


# ---- layouts


def test_split_folders_in_a_wrapper(tmp_path: Path) -> None:
    source = make(
        tmp_path / "data",
        "rtp/train/safe/ann_1.mp4",
        "rtp/train/harmful/dr._no_x_2.MP4",
        "rtp/val/safe/day 1/bob_3.webm",
        "rtp/test/adult/holiday.mov",
    )
    listing = listed(source)
    assert list(listing.videos.columns) == ["path", "file", "label", "split", "creator", "version"]
    assert rows(listing, "path", "label", "split", "creator") == [
        ("rtp/test/adult/holiday.mov", "adult", "test", ""),
        ("rtp/train/harmful/dr._no_x_2.MP4", "harmful", "train", "dr._no_x"),
        ("rtp/train/safe/ann_1.mp4", "safe", "train", "ann"),
        ("rtp/val/safe/day 1/bob_3.webm", "safe", "val", "bob"),
    ]
    assert [Path(file) for file in listing.videos["file"]] == [source / path for path in listing.videos["path"]]
    assert listing.ignored == {}


@pytest.mark.parametrize(
    ("folder", "split"),
    [("Train", "train"), ("TRAINING", "train"), ("valid", "val"), ("Validation", "val"), ("testing", "test")],
)
def test_other_names_of_splits(tmp_path: Path, folder: str, split: str) -> None:
    listing = listed(make(tmp_path / "data", f"{folder}/safe/a_1.mp4", f"{folder}/adult/a_2.mp4"))
    assert rows(listing, "label", "split") == [("adult", split), ("safe", split)]


@pytest.mark.parametrize("wrapper", ["test", "training", "test/rtp", "val/test"])
def test_a_wrapper_named_like_a_split_is_only_a_wrapper(tmp_path: Path, wrapper: str) -> None:
    paths = ["train/safe/a.mp4", "train/adult/b.mp4", "val/safe/c.mp4", "test/adult/d.mp4"]
    listing = listed(make(tmp_path / "data", *(f"{wrapper}/{path}" for path in paths)))
    assert sorted(rows(listing, "split", "label")) == sorted(tuple(path.split("/")[:2]) for path in paths)


def test_only_a_train_folder_in_a_wrapper_named_like_a_split(tmp_path: Path) -> None:
    listing = listed(make(tmp_path / "data", "test/rtp/train/safe/a.mp4", "test/rtp/train/adult/b.mp4"))
    assert rows(listing, "label", "split") == [("adult", "train"), ("safe", "train")]


def test_a_class_named_like_a_split_inside_a_split(tmp_path: Path) -> None:
    listing = listed(make(tmp_path / "data", "train/test/a.mp4", "train/control/b.mp4"))
    assert rows(listing, "label", "split") == [("control", "train"), ("test", "train")]


def test_a_class_that_the_user_names_is_no_split(tmp_path: Path) -> None:
    source = make(tmp_path / "data", "Test/a.mp4", "control/b.mp4")
    assert rows(listed(source, ["control", "Test"]), "label", "split") == [("Test", ""), ("control", "")]


@pytest.mark.parametrize("wrapper", ["", "rtp", "a/b/c"])
def test_class_folders_without_splits(tmp_path: Path, wrapper: str) -> None:
    source = make(tmp_path / "data", *(f"{wrapper}/{path}".lstrip("/") for path in ("safe/x/1.mp4", "adult/2.mp4")))
    assert rows(listed(source), "label", "split") == [("adult", ""), ("safe", "")]


@pytest.mark.parametrize("split", ["", "train/"])
def test_folders_that_may_be_the_classes_are_said(tmp_path: Path, split: str) -> None:
    names = [f"{split}{day}/{label}/1.mp4" for day in ("day1", "day2") for label in ("safe", "harmful")]
    source = make(tmp_path / "data", *names)
    found = listed(source)
    assert set(found.videos["label"]) == {"day1", "day2"}
    assert found.note.startswith("The classes are the folders day1, day2; the folders harmful, safe in each of them ")
    assert ("data.classes=[harmful,safe]" in found.note) == (not split) and (".csv" in found.note) == bool(split)
    for also in ("day1/4.mp4", "day2/odd/5.mp4"):
        more = make(tmp_path / also[:4], *names, f"{split}{also}")
        assert not listed(more).note
    assert not listed(source, ["day1", "day2"]).note
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"data/{name},{name[-9:-6]}\n" for name in names))
    assert not listed(tmp_path / "list.csv").note


@pytest.mark.parametrize("paths", [["safe/day1/1.mp4", "adult/day1/2.mp4"], ["train/safe/1.mp4", "train/adult/2.mp4"]])
def test_folders_in_which_nothing_else_is_named_are_the_classes(tmp_path: Path, paths: list[str]) -> None:
    assert not listed(make(tmp_path / "data", *paths)).note


def test_named_classes_are_found_wherever_they_lie(tmp_path: Path) -> None:
    source = make(tmp_path / "data", "us/safe/1.mp4", "eu/2024/adult/2.mp4", "eu/safe/adult/3.mp4", "eu/odd/4.mp4")
    listing = listed(source, ["safe", "adult"])
    assert rows(listing, "path", "label") == [
        ("eu/2024/adult/2.mp4", "adult"),
        ("eu/safe/adult/3.mp4", "safe"),
        ("us/safe/1.mp4", "safe"),
    ]
    assert listing.ignored == {"videos of class 'eu', which is not in data.classes": 1}


def test_videos_in_the_wrong_place_are_counted(tmp_path: Path) -> None:
    source = make(
        tmp_path / "data", "train/safe/1.mp4", "train/adult/2.mp4", "train/3.mp4", "extra/safe/4.mp4", "5.mp4"
    )
    listing = listed(source)
    assert len(listing.videos) == 2
    assert listing.ignored == {
        "videos in a split folder, in no class folder": 1,
        "videos outside the train, val and test folders": 2,
    }
    strays = listed(make(tmp_path / "more", "safe/1.mp4", "adult/2.mp4", "3.mp4"))
    assert strays.ignored == {"videos in no class folder": 1}


def test_classes_that_were_not_asked_for_are_counted_by_name(tmp_path: Path) -> None:
    source = make(tmp_path / "data", *(f"train/{name}/{n}.mp4" for name in ("a", "b", "c", "d") for n in range(2)))
    listing = listed(source, ["c", "a"])
    assert rows(listing, "label") == [("a",), ("a",), ("c",), ("c",)]
    assert listing.ignored == {f"videos of class '{name}', which is not in data.classes": 2 for name in "bd"}


WORDS = st.sampled_from(["rtp", "train", "val", "test", "safe", "adult", "day"])


@given(st.lists(st.lists(WORDS, max_size=4), max_size=8), st.sampled_from([None, ["safe", "adult"], ["test", "safe"]]))
def test_places_are_folders_of_the_video(folders: list[list[str]], classes: list[str] | None) -> None:
    places = place_videos(folders, classes)
    assert len(places) == len(folders)
    found = [place for place in places if not isinstance(place, str)]
    assert len({split == "" for split, _ in found}) <= 1  # splits for all or for none
    for parts, place in zip(folders, places, strict=True):
        if not isinstance(place, str):
            split, label = place
            assert label in parts
            assert not split or (split, label) in pairwise(parts)


# ---- what is ignored


MESS = (
    "rtp/train/safe/ann_1.mp4",
    "rtp/train/adult/bob_2.mp4",
    "rtp/train/adult/.DS_Store",
    "rtp/.git/objects/aa.mp4",
    "rtp/train/safe/.hidden.mp4",
    "rtp/train/safe/._ann_1.mp4",
    "__MACOSX/rtp/train/safe/._ann_1.mp4",
    "__MACOSX/rtp/train/safe/ann_1.mp4",
    "rtp/README.txt",
    "rtp/train/safe/ann_1.mp4.part",
    "rtp/train/safe/mp4",
)
MESS_COUNTS = {
    "files that are not videos": 3,
    "hidden files (.DS_Store and the like)": 3,
    "macOS leftovers (__MACOSX, ._*)": 3,
}


def test_strays_are_counted_alike_in_a_folder_and_in_its_zip(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", *MESS)
    first = listed(folder)
    assert first.ignored == MESS_COUNTS
    archive = zip_of(folder, tmp_path / "data.ZIP")
    for _ in range(2):  # extracted, then found extracted
        again = listed(archive)
        assert again.ignored == MESS_COUNTS
        assert rows(again) == rows(first)
        assert all(str(tmp_path / "cache" / "extracted") in file for file in again.videos["file"])


def test_all_extensions_in_any_case(tmp_path: Path) -> None:
    extensions = ["mp4", "mov", "m4v", "f4v", "3gp", "3g2", "mkv", "webm", "avi", "flv", "WMV", "asf"]
    extensions += ["mpg", "mpeg", "m2v", "vob", "ts", "mts", "M2TS"]
    source = make(tmp_path / "data", *(f"{name}/x.{extension}" for name in "ab" for extension in extensions))
    assert len(listed(source).videos) == 2 * len(extensions)


def test_links(tmp_path: Path) -> None:
    source = make(tmp_path / "data", "safe/1.mp4")
    elsewhere = make(tmp_path / "elsewhere", "2.mp4", "deep/3.mp4")
    (source / "adult").symlink_to(elsewhere)
    (source / "safe" / "linked.mp4").symlink_to(elsewhere / "2.mp4")
    (source / "safe" / "broken.mp4").symlink_to("nowhere.mp4")
    (source / "safe" / "itself.mp4").symlink_to("itself.mp4")
    (source / "safe" / "up").symlink_to(source)
    (elsewhere / "deep" / "round").symlink_to(elsewhere)
    os.mkfifo(source / "safe" / "pipe.mp4")
    listing = listed(source)
    assert [path for (path,) in rows(listing, "path")] == [
        "adult/2.mp4",
        "adult/deep/3.mp4",
        "safe/1.mp4",
        "safe/linked.mp4",
    ]
    assert listing.ignored == {"broken links or special files": 3, "symlink loops": 2}


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    source = make(tmp_path / "data", "safe/ü😀.mp4", "adult/1.mp4", os.fsdecode(b"adult/\xff.mp4"))
    listing = listed(source)
    assert rows(listing, "path") == [("adult/1.mp4",), ("safe/ü😀.mp4",)]
    assert listing.ignored == {"videos with names that are not UTF-8": 1}


# ---- creators and classes


def test_own_creator_pattern(tmp_path: Path) -> None:
    source = make(tmp_path / "data", "safe/7-ann.mp4", "adult/8-bob.mp4", "adult/x.mp4", "adult/9-.mp4")
    listing = listed(source, pattern=r"\d+-(?P<creator>[a-z]+)?")
    assert rows(listing, "path", "creator") == [
        ("adult/8-bob.mp4", "bob"),
        ("adult/9-.mp4", ""),
        ("adult/x.mp4", ""),
        ("safe/7-ann.mp4", "ann"),
    ]


def test_classes_without_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        listed(make(tmp_path / "data", "a/1.mp4", "b/2.mp4", "c/3.mp4"), ["a", "x", "b", "y"])
    assert error.value.code == "data.classes" and "x, y (ignored: 1 videos of class 'c'" in str(error.value)


# ---- at scale, and for real


def test_many_files_are_listed_fast(tmp_path: Path) -> None:
    source = tmp_path / "data"
    for split in ("train", "val"):
        for label in ("safe", "adult"):
            folder = source / split / label
            folder.mkdir(parents=True)
            for number in range(2500):
                os.close(os.open(folder / f"ann_{number}.mp4", os.O_CREAT))
    started = time.process_time()
    listing = listed(source)
    assert len(listing.videos) == 10_000
    assert time.process_time() - started < 3.0


@pytest.mark.skipif(not REAL, reason="VIDCLS_REAL_DATA names no folder of real clips")
def test_real_clips_as_a_folder_and_as_a_zip(tmp_path: Path) -> None:
    assert REAL
    folder = Path(REAL) / "fights"
    first = list_videos(DataOptions(str(folder), str(tmp_path)), classes=None)
    assert len(first.videos) == sum(file.suffix == ".mp4" for file in folder.rglob("*"))
    assert set(first.videos["split"]) == {"train", "val"}
    assert set(first.videos["label"]) == {"fight", "nofight"}
    assert (first.videos["creator"].str.fullmatch(r"cam\d\d")).all()
    assert first.ignored == {"files that are not videos": 1}
    again = listed(zip_of(folder, tmp_path / "fights.zip", wrapper="rtp"))
    assert again.ignored == first.ignored
    columns = ["label", "split", "creator"]
    assert again.videos[columns].equals(first.videos[columns])
    assert list(again.videos["path"]) == [f"rtp/{path}" for path in first.videos["path"]]
    for here, there in zip(again.videos["file"], first.videos["file"], strict=True):
        assert os.path.getsize(here) == os.path.getsize(there)
    shutil.rmtree(tmp_path / "cache")
