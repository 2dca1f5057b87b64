"""Suspect labels in a table and on a page, also of videos with hostile names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.page import Page
from helpers.runs import table

from vidcls.data.decoding.result import DecodeResult
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FrameStore
from vidcls.training import label_report
from vidcls.training.label_report import write_label_issues

HOSTILE = '</bdi><script>alert(1)</script>"\u202e\r\n.mp4'
CLASSES = ["=safe&", "<b>adult"]


def written(folder: Path, videos: int, stored: bool) -> pd.DataFrame:
    """Every second label is wrong; returns label_issues.csv."""
    store = FrameStore(folder / "store", StoreSpec(8, 16, "uniform", None, 1))
    sha256s = [f"{number:064x}" for number in range(videos)]
    for sha256 in sha256s if stored else ():
        store.write(sha256, np.full((8, 16, 16, 3), 99, np.uint8), DecodeResult("ok", "", "", 1.0, 1.0))
    paths = [f"{number}{HOSTILE}" for number in range(videos)]
    rows = pd.DataFrame({"path": paths, "label": CLASSES[0], "creator": "=1", "sha256": sha256s})
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]])[np.arange(videos) % 2]
    probabilities = np.vstack([probabilities, [[0.3, 0.7]]])
    rows.loc[videos] = ["last.mp4", CLASSES[1], "", "f" * 64]
    assert write_label_issues(folder, rows, probabilities, CLASSES, store) == videos // 2
    return table(folder / "label_issues.csv")


def test_suspects_are_in_the_table_and_on_the_page(tmp_path: Path) -> None:
    rows = written(tmp_path, 6, stored=True)
    assert rows["path"].tolist() == [f"{number}{HOSTILE}" for number in (1, 3, 5)]
    assert rows["label"].unique().tolist() == CLASSES[:1] and rows["suggested"].unique().tolist() == CLASSES[1:]
    assert (rows["margin"] == -0.6).all() and rows["sha256"].astype(int).tolist() == [1, 3, 5]
    page = Page((tmp_path / "label_issues.html").read_text())
    assert page.texts("h1") == ["3 of 7 labels are suspect"] and page.tags.count("img") == 3
    assert "script" not in page.tags and "b" not in page.tags
    assert page.texts("h2")[0] == "1" + HOSTILE.replace("\r\n", "\\r\\n").replace("\u202e", "\\u202e")
    assert page.texts("tr")[1:] == [f"{CLASSES[0]}{CLASSES[1]}3.0"]  # of three confident pairs each


def test_frames_that_are_lost_and_many_suspects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_report, "MAX_SHOWN", 2)
    assert len(written(tmp_path, 6, stored=False)) == 3
    page = Page((tmp_path / "label_issues.html").read_text())
    assert "img" not in page.tags and page.tags.count("li") == 2
    assert page.texts("p", class_="warning") == ["Only the 2 most suspect are shown; label_issues.csv has all."]
