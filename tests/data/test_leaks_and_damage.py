"""Leaks between splits, and videos that cannot be decoded: reported, dropped, or an error."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers.datasets import draw, module, prepare
from helpers.decisions import decisions

from vidcls.errors import UserError


@pytest.fixture(scope="module")
def leaking(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source, where test has a copy of a training video, and val another video of a creator of train."""
    root = tmp_path_factory.mktemp("leaking")
    shutil.copytree(source / "rtp", root / "rtp")
    first, second = sorted((root / "rtp" / "train" / "safe").iterdir())[:2]
    shutil.copy(first, root / "rtp" / "test" / "safe" / "somebody_1.mp4")
    draw(root / "rtp" / "val" / "safe" / f"{second.stem.split('_')[0]}_2.mp4", 30)
    return root


def test_leaks_are_reported(leaking: Path, cache: Path) -> None:
    data = module(leaking, cache)
    with pytest.warns(UserWarning, match="Held-out metrics will be optimistic"):
        printed = prepare(data)
    assert "Leakage between splits (data.leakage=warn)" in printed
    assert "same bytes" in printed and "test+train" in printed
    assert "same creator" in printed and "creator1" in printed and "train+val" in printed
    assert (len(data.rows("train")), len(data.rows("val")), len(data.rows("test"))) == (8, 4, 5)


def test_leaks_can_be_an_error(leaking: Path, cache: Path) -> None:
    with pytest.raises(UserError) as error:
        prepare(module(leaking, cache, leakage="error"))
    assert error.value.code == "leakage"


def test_leaks_can_be_dropped_from_the_split_trained_on(leaking: Path, cache: Path, tmp_path: Path) -> None:
    data = module(leaking, cache, leakage="drop")
    printed = prepare(data)
    assert "Dropped 2 leaking videos" in printed
    other = data.manifest[(data.manifest["split"] == "train") & (data.manifest["label"] == "adult")].iloc[0]
    reviewed = decisions(tmp_path / "d.csv", (other.sha256, "Ada", "bad_file"))
    assert "Dropped 2 leaking videos" in prepare(module(leaking, cache, leakage="drop", decisions=[str(reviewed)]))
    assert (len(data.rows("train")), len(data.rows("val")), len(data.rows("test"))) == (6, 4, 5)
    dropped = data.manifest[data.manifest["status"] == "dropped"]
    assert set(dropped["path"]) == {"rtp/train/safe/creator0_7000.mp4", "rtp/train/safe/creator1_7001.mp4"}
    assert dropped["reason"].str.contains(r"^same (?:bytes|creator) as rtp/").all()


@pytest.fixture(scope="module")
def damaged(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source, of which one training video is text, and whose only safe validation video is empty."""
    root = tmp_path_factory.mktemp("damaged")
    shutil.copytree(source / "rtp", root / "rtp")
    (root / "rtp" / "train" / "safe" / "creator0_7000.mp4").write_text("no video\n" * 50)
    next((root / "rtp" / "val" / "safe").iterdir()).write_bytes(b"")
    return root


def test_bad_videos_are_named_and_left_out(damaged: Path, cache: Path) -> None:
    data = module(damaged, cache)
    printed = prepare(data)
    assert "undecodable rtp/train/safe/creator0_7000.mp4: pyav: " in printed
    assert "2 videos could not be decoded and are left out" in printed
    assert len(data.manifest) == 15
    assert (len(data.rows("train")), len(data.rows("val")), len(data.rows("test"))) == (7, 2, 4)
    seen = torch.cat([batch.index for batch in data.loader("train")])
    assert seen.tolist() == list(range(7))
    assert data.classes == ["adult", "harmful", "safe"]


def test_bad_videos_can_be_an_error(damaged: Path, cache: Path) -> None:
    with pytest.raises(UserError) as error:
        prepare(module(damaged, cache, on_bad="error"))
    assert error.value.code == "bad-videos" and "rtp/train/safe/creator0_7000.mp4: pyav: " in str(error.value)


def test_a_split_that_cannot_be_decoded_is_an_error(damaged: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(damaged / "rtp", tmp_path / "rtp")
    for file in (tmp_path / "rtp" / "val" / "adult").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError) as error:
        prepare(module(tmp_path, cache))
    assert error.value.code == "empty-val-split"
