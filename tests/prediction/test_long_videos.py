"""Long videos, in windows: all of them, or by a coarse search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.bright import lit, plain_policy
from helpers.commands import call
from helpers.runs import details_of, predict, refused, rows_of, table
from helpers.videos import write_video

from vidcls.data.decoding.result import DecodeResult, undecodable
from vidcls.prediction.coarse_search import CoarseSearch
from vidcls.prediction.video_result import read_fraction


def test_a_short_passage_of_a_long_video_surfaces_with_its_time(bright: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "long.mp4", lit(120, (31, 34), (80, 83.5)))
    options = ["predict.window_seconds=2", "predict.stride_seconds=1", "predict.max_whole_seconds=5"]
    predict(bright, video, tmp_path / "out", *options)
    row = rows_of(tmp_path / "out").loc["long.mp4"]
    assert (row["decision"], row["predicted"], row["windows"], row["status"]) == ("block", "harmful", "119", "ok")
    found = table(tmp_path / "out" / "segments.csv")
    assert found["class"].tolist() == ["harmful", "harmful"]
    np.testing.assert_allclose(found["start_seconds"], [31, 80], atol=1)
    np.testing.assert_allclose(found["end_seconds"], [34, 83.5], atol=1)
    timeline = pd.read_parquet(tmp_path / "out" / "timelines.parquet")
    assert timeline["start_seconds"].tolist() == list(range(119)) and timeline["end_seconds"].iloc[-1] == 120
    inside = timeline["start_seconds"].isin([31, 32, 80, 81])  # windows [s, s + 2) that are bright from end to end
    outside = ~timeline["start_seconds"].isin([30, 31, 32, 33, 79, 80, 81, 82, 83])
    assert (timeline["harmful"][inside] > 0.99).all() and (timeline["harmful"][outside] < 0.01).all()
    (details,) = details_of(tmp_path / "out").values()
    peaks = [seconds for name, seconds, _ in details["peaks"] if name == "harmful"]
    assert len(peaks) == 2 and 31 <= peaks[0] <= 34 and 80 <= peaks[1] <= 84


def test_a_picture_that_stays_is_a_segment_as_long_as_it_is_shown(bright: Path, tmp_path: Path) -> None:
    """Nothing new appears for a minute, twice, so that no window is read there: a bright picture that stays."""
    dark, lone = lit(2), lit(0.04, (0, 1))
    times = [*range(0, 2000, 40), 2000, *range(62000, 64000, 40), 64000]
    video = write_video(tmp_path / "slides.mp4", np.concatenate([dark, lone, dark, lone]), pts=times, fps=1 / 60)
    options = ["predict.window_seconds=2", "predict.stride_seconds=1", "predict.max_whole_seconds=5"]
    predict(bright, video, tmp_path / "out", *options)
    assert int(rows_of(tmp_path / "out").loc["slides.mp4", "windows"]) < 12
    found = table(tmp_path / "out" / "segments.csv")
    np.testing.assert_allclose(found[["start_seconds", "end_seconds"]], [[2, 62], [64, 124]], atol=1)
    assert "124.0]" in (tmp_path / "out" / "report.html").read_text()  # the plot goes on as long
    # Of 11 windows few are bright, but of the time nearly all is.
    predict(bright, video, tmp_path / "mean", *options, "predict.aggregation=mean")
    mean = rows_of(tmp_path / "mean").loc["slides.mp4"]
    assert mean["decision"] == "block" and float(mean["harmful"]) == pytest.approx(120 / 124, abs=0.02)
    # Nor are 20 windows hard to find, which would all show the same.
    for search in ("full", "coarse"):
        several = [*options, "predict.aggregation=top_k_mean", "predict.top_k=20", f"predict.search={search}"]
        predict(bright, video, tmp_path / search, *several)
        assert rows_of(tmp_path / search).loc["slides.mp4", "decision"] == "block"


def test_a_video_of_more_windows_than_allowed_is_partial_and_reviewed(bright: Path, tmp_path: Path) -> None:
    """It is bright while no window looks; windows without a picture of their own are not read at all."""
    write_video(tmp_path / "in" / "long.mp4", lit(60, (30, 33)))
    times = [*range(0, 2000, 40), 11_000_000]  # two seconds, and a last picture after three hours
    write_video(tmp_path / "in" / "sparse.mp4", lit(2.04), pts=times)
    options = ["predict.window_seconds=2", "predict.stride_seconds=1", "predict.max_whole_seconds=5"]
    predict(bright, tmp_path / "in", tmp_path / "out", *options, "predict.max_windows=4")
    row = rows_of(tmp_path / "out").loc["long.mp4"]
    assert (row["status"], row["decision"], row["windows"]) == ("partial", "review", "4")
    assert "predict.max_windows" in row["reason"] and float(row["coverage"]) < 0.2
    assert int(rows_of(tmp_path / "out").loc["sparse.mp4", "windows"]) <= 4
    predict(bright, tmp_path / "in", tmp_path / "all", *options)
    rows = rows_of(tmp_path / "all")
    assert rows.loc["long.mp4", "decision"] == "block" and int(rows.loc["sparse.mp4", "windows"]) < 10


@pytest.mark.parametrize(("aggregation", "decision"), [("max", "block"), ("mean", "allow"), ("top_k_mean", "review")])
def test_the_video_score_decides(bright: Path, tmp_path: Path, aggregation: str, decision: str) -> None:
    video = write_video(tmp_path / "long.mp4", lit(40, (8, 16)))  # two of ten windows
    options = ["predict.window_seconds=4", "predict.stride_seconds=4", "predict.max_whole_seconds=5", "predict.top_k=4"]
    predict(bright, video, tmp_path / "out", *options, f"predict.aggregation={aggregation}")
    row = rows_of(tmp_path / "out").loc["long.mp4"]
    assert (row["decision"], row["windows"]) == (decision, "10")


def test_what_the_first_frames_of_a_window_leave_unseen_is_said(bright: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(bright, tmp_path / "run"))
    best = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    for part in ("clip", "store"):
        checkpoint["vidcls"][part]["sampling"] = "first"
    torch.save(checkpoint, best)
    plain_policy(run)
    video, options = write_video(tmp_path / "long.mp4", lit(12, (5, 5.9))), ["predict.max_whole_seconds=5"]
    result = predict(run, video, tmp_path / "out", *options, "predict.window_seconds=4", "predict.stride_seconds=2")
    assert rows_of(tmp_path / "out").loc["long.mp4", "decision"] == "allow"  # where nothing looks
    assert result.stdout.count("of which only the first 4 frames are seen") == 2
    assert "frames are seen" not in predict(bright, video, tmp_path / "all").stdout


def test_windows_default_to_what_training_saw(bright: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "long.mp4", lit(30))
    predict(bright, video, tmp_path / "out")
    manifest = table(bright / "manifest.csv")
    plan = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert plan["window_seconds"] == pytest.approx(manifest.query("split == 'train'")["seconds"].median(), abs=1e-3)
    assert plan["stride_seconds"] == plan["window_seconds"] / 2
    assert manifest["seconds"].max() < plan["max_whole_seconds"] < manifest["seconds"].max() + 2
    assert rows_of(tmp_path / "out").loc["long.mp4", "decision"] == "allow"
    assert (tmp_path / "out" / "segments.csv").read_text().count("\n") == 1


# ---- a coarse search

FULL = ["predict.max_whole_seconds=5", "predict.window_seconds=2", "predict.stride_seconds=1"]
COARSE = [*FULL, "predict.search=coarse"]


def windows_of(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output / "timelines.parquet").sort_values("start_seconds")


def test_all_windows_around_a_hit_are_classified_and_few_elsewhere(bright: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_video(folder / "hit.mp4", lit(120, (58, 63)))
    write_video(folder / "dark.mp4", lit(120))
    write_video(folder / "short.mp4", lit(2, (0, 2)))
    write_video(folder / "missed.mp4", lit(120, (31, 33)))
    predict(bright, folder, tmp_path / "all", *FULL)
    predict(bright, folder, tmp_path / "out", *COARSE)
    assert "at first every 20 s" in (tmp_path / "out" / "report.html").read_text()
    rows, full = rows_of(tmp_path / "out"), rows_of(tmp_path / "all")
    assert full.loc["missed.mp4", "decision"] == "block"  # two seconds, none of which a coarse search looks at
    assert rows["decision"].to_dict() == {
        "hit.mp4": "block",
        "dark.mp4": "allow",
        "short.mp4": "block",
        "missed.mp4": "allow",
    }
    for name in ("dark.mp4", "missed.mp4"):
        assert rows.loc[name, "windows"] == "7"
        assert rows.loc[name, "reason"] == "coarse search: windows of 11.7% of its time were read"
    assert "coarse" not in rows.loc["short.mp4", "reason"] and rows.loc["short.mp4", "status"] == "ok"
    timelines = windows_of(tmp_path / "out"), windows_of(tmp_path / "all")
    found, everything = (one[one["path"] == "hit.mp4"].set_index("start_seconds")["harmful"] for one in timelines)
    assert found.index.is_unique and found.index.tolist() == [0, 20, *range(39, 82), 100, 118]
    assert found.to_dict() == everything[found.index].to_dict()
    segments = table(tmp_path / "out" / "segments.csv"), table(tmp_path / "all" / "segments.csv")
    ours, theirs = (one[one["path"] == "hit.mp4"].reset_index(drop=True) for one in segments)
    assert len(ours) == 1 and ours.equals(theirs)


def test_a_picture_that_stays_is_no_shorter_to_a_coarse_search(bright: Path, tmp_path: Path) -> None:
    """A minute of which hardly any window is read, as all would show the same, counts as a minute."""
    times = [*range(0, 2000, 40), 2000, *range(62000, 70000, 40)]
    video = write_video(tmp_path / "slides.mp4", np.concatenate([lit(2), lit(0.04, (0, 1)), lit(8)]), pts=times)
    predict(bright, video, tmp_path / "out", *COARSE)
    row, windows = rows_of(tmp_path / "out").loc["slides.mp4"], windows_of(tmp_path / "out")
    assert row["decision"] == "block" and len(windows) < 20
    starts, ends = windows["start_seconds"].to_numpy(), windows["end_seconds"].to_numpy()
    share = 1 - np.maximum(starts[1:] - ends[:-1], 0).sum() / 70
    assert f"windows of {share:.1%} of its time were read" in row["reason"]  # which is not all that was seen of it
    found = table(tmp_path / "out" / "segments.csv")
    np.testing.assert_allclose(found[["start_seconds", "end_seconds"]], [[2, 62]], atol=1)


def test_without_a_policy_there_is_no_coarse_search(finished: Path, demo_folder: Path, tmp_path: Path) -> None:
    given = [f"run={finished}", f"input={demo_folder}", f"output={tmp_path}/out", "predict.search=coarse"]
    refused(call("predict.py", *given), "[search-without-policy]")
    assert not (tmp_path / "out").exists()


def test_a_second_look_that_fails_leaves_what_the_first_one_found() -> None:
    first = DecodeResult("ok", "", "pyav", 60.0, 1.0), [(0.0, 2.0, np.ones(3)), (30.0, 32.0, np.ones(3))], None
    decoded, windows, _ = CoarseSearch.join(first, (undecodable("pyav: timed out"), [], None))
    assert (decoded.status, decoded.reason, len(windows)) == ("partial", "pyav: timed out", 2)
    damaged = DecodeResult("partial", "damage", "pyav", 60.0, 0.9), first[1], None
    second = first[0], [(30.0, 32.0, np.zeros(3)), (29.0, 31.0, np.zeros(3))], None
    decoded, windows, _ = CoarseSearch.join(damaged, second)
    assert decoded.status == "partial" and [start for start, *_ in windows] == [0, 29, 30]


def test_the_part_of_a_video_that_was_read() -> None:
    def windows(*spans: tuple[float, float]) -> list[tuple[float, float, np.ndarray]]:
        return [(start, end, np.zeros(2)) for start, end in spans]

    assert read_fraction(windows((0.0, 2.0), (1.0, 3.0), (3.0, 4.0)), 4.0) == 1
    assert read_fraction(windows((0.0, 2.0), (8.0, 10.0)), 10.0) == pytest.approx(0.4)
    assert read_fraction(windows((0.0, 2.0), (8.0, 10.0)), 40.0) == pytest.approx(0.1)  # its worker was lost then
    assert read_fraction(windows((0.0, 0.0)), 0.0) == 1
