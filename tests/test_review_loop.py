"""A round of review from end to end: train, predict, decide on the page in a real browser, export, train again."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from helpers.browser import BROWSER
from helpers.commands import train
from helpers.runs import CLASSES, metrics_of, predict, table

from experiments.review.reviewer import review_page


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH")
def test_what_is_decided_on_the_page_is_trained_on_and_never_tested_on(
    tiny: list[str], demo_folder: Path, tmp_path: Path
) -> None:
    paths = sorted(path.relative_to(demo_folder).as_posix() for path in demo_folder.rglob("*.mp4"))
    rows = [(str(demo_folder / path), *path.split("/")[1:3]) for path in paths]
    videos = pd.DataFrame(rows, paths, columns=["path", "split", "label"])
    new = videos.index.str.contains("creator_002")  # of the split train; they come without labels
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    videos[~new].to_csv(first, index=False)
    videos.assign(label=videos["label"].mask(new, ""), split=videos["split"].mask(new, "")).to_csv(second, index=False)

    before = train(*tiny, f"data.source={first}", f"run_dir={tmp_path / 'before'}")
    assert before.code == 0, before.stderr
    predict(tmp_path / "before", demo_folder, tmp_path / "predicted")

    # The reviewer is wrong about one video of each split, and decides about all videos but the last of the page.
    wrong = [*videos.groupby("split").head(1).index, videos.index[new][0]]
    other = dict(zip(CLASSES, [*CLASSES[1:], CLASSES[0]], strict=True))
    said = videos["label"].mask(videos.index.isin(wrong), videos["label"].map(other))
    decisions = tmp_path / "decisions.csv"
    page = tmp_path / "predicted" / "report.html"
    review_page(str(BROWSER), page, "Ada", said.to_dict().__getitem__, len(said) - 1, decisions)
    exported = table(decisions).set_index("path")
    assert exported["label"].to_dict() == said[exported.index].to_dict() and len(exported) == len(said) - 1

    after = train(
        *tiny, f"data.source={second}", f"data.decisions={decisions}", f"run_dir={tmp_path / 'after'}", "figures=false"
    )
    assert after.code == 0, after.stderr
    expected = {}
    for path, (absolute, split, label) in videos.iterrows():
        reviewed = split == "train" and path in exported.index
        if reviewed:
            expected[absolute] = ("train", said[path], "decisions")
        elif path not in videos.index[new]:
            expected[absolute] = (split, label, "folder")
    manifest = table(tmp_path / "after" / "manifest.csv").set_index("path")
    assert {row.Index: (row.split, row.label, row.label_source) for row in manifest.itertuples()} == expected
    trained, tested = (metrics_of(tmp_path / run) for run in ("before", "after"))
    assert tested["train"]["n"] - trained["train"]["n"] == new.sum() - (len(videos) - len(expected))
    assert tested["test"]["n"] == trained["test"]["n"] and tested["test"]["loss"] != trained["test"]["loss"]
