"""predict.py end to end: the probabilities of the test run, long videos, awkward files."""

from __future__ import annotations

import csv
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.bright import lit, plain_policy
from helpers.commands import call, once
from helpers.runs import CLASSES, details_of, predict, refused, rows_of, table
from helpers.videos import ffmpeg, write_video

from vidcls.errors import UserError
from vidcls.moderation.policy import Policy, save_policy
from vidcls.prediction import loading, pipeline
from vidcls.prediction.loading import load_run

STATUSES = {"ok", "partial", "undecodable"}


@pytest.fixture(scope="session")
def predicted(shared: Path, finished: Path, demo_folder: Path) -> Path:
    """The output of a finished run, without a policy, over all demo videos."""
    return once(shared, "predicted", lambda folder: predict(finished, demo_folder, folder))


# ---- as in the test of the run


def test_probabilities_are_those_of_the_test_run(predicted: Path, finished: Path) -> None:
    """To the last digit, though other videos come in other batches."""
    found, compared = rows_of(predicted), 0
    for split in ("val", "test"):
        tested = pd.read_csv(finished / f"predictions_{split}.csv", dtype=str).set_index("path")
        for path, row in tested.iterrows():
            assert found.loc[path, CLASSES].tolist() == row[CLASSES].tolist()
            assert found.loc[path, "predicted"] == row["predicted"]
            compared += 1
    assert compared == 6


def test_every_video_has_a_row(predicted: Path, finished: Path, demo_folder: Path) -> None:
    found = rows_of(predicted)
    manifest = table(finished / "manifest.csv").set_index("path")
    assert sorted(found.index) == sorted(manifest.index)
    assert set(found["windows"]) == {"1"} and set(found["coverage"]) == {"1"}
    assert set(found["model"]) == {load_run(finished).identity} and set(found["policy"]) == {""}
    for path, row in found.iterrows():
        assert (row["sha256"], row["status"]) == (manifest.loc[path, "sha256"], "ok")
        assert float(row["seconds"]) == pytest.approx(manifest.loc[path, "seconds"], abs=1e-3)
    # The safe class is unknown, so nothing may be allowed.
    assert set(found["decision"]) == {"review"} and found["reason"].str.contains("no policy").all()


def test_timelines_hold_the_same_probabilities(predicted: Path) -> None:
    timelines, found = pd.read_parquet(predicted / "timelines.parquet").set_index("path"), rows_of(predicted)
    assert list(timelines.columns) == ["sha256", "start_seconds", "end_seconds", *CLASSES]
    assert sorted(timelines.index) == sorted(found.index)
    for path, row in timelines.iterrows():
        assert [f"{p:.9g}" for p in row[CLASSES]] == found.loc[path, CLASSES].tolist()
        assert row["start_seconds"] == 0 and row["end_seconds"] == pytest.approx(float(found.loc[path, "seconds"]))


def test_a_glob_and_a_single_file(finished: Path, predicted: Path, demo_folder: Path, tmp_path: Path) -> None:
    pattern = f"{demo_folder}/rtp/test/**/*.mp4"
    predict(finished, pattern, tmp_path / "glob")
    found, before = rows_of(tmp_path / "glob"), rows_of(predicted)
    assert len(found) == 3 and all(Path(path).is_file() for path in found.index)
    one = demo_folder / "rtp" / "test" / "safe" / "drawn.creator_003_0002.mp4"
    assert found.loc[str(one), CLASSES].tolist() == before.loc[f"rtp/test/safe/{one.name}", CLASSES].tolist()
    shutil.copy(one, tmp_path / "no_extension")
    predict(finished, tmp_path / "no_extension", tmp_path / "one")
    assert rows_of(tmp_path / "one").loc["no_extension", "status"] == "ok"


def test_a_loaded_run_gives_the_same_probabilities(
    finished: Path, bright: Path, demo_folder: Path, tmp_path: Path
) -> None:
    long = write_video(tmp_path / "in" / "long.mp4", lit(30, (3, 9)))
    short = demo_folder / "rtp" / "test" / "safe" / "drawn.creator_003_0002.mp4"
    for run, video in ((finished, short), (bright, long)):
        predict(run, video, tmp_path / run.name)
        found = rows_of(tmp_path / run.name)
        probabilities = load_run(run).predict(video)
        assert {name: f"{p:.9g}" for name, p in probabilities.items()} == found.loc[video.name, CLASSES].to_dict()
    noise = np.random.default_rng(0).integers(60, size=(60, 32, 32, 3), dtype=np.uint8)
    content = write_video(tmp_path / "damaged.mkv", noise).read_bytes()
    (tmp_path / "damaged.mkv").write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="damaged.mkv is partial: "):
        load_run(finished).predict(tmp_path / "damaged.mkv")
    for broken in (tmp_path / "nowhere.mp4", tmp_path / "in"):
        with pytest.raises(UserError) as error:
            load_run(finished).predict(broken)
        assert error.value.code == "undecodable-video"


def test_threads_that_predict_at_once_take_no_errors_of_each_other(bright: Path, tmp_path: Path) -> None:
    good, damaged = write_video(tmp_path / "good.mp4", lit(2)), tmp_path / "damaged.mkv"
    noise = np.random.default_rng(0).integers(60, size=(60, 32, 32, 3), dtype=np.uint8)
    content = write_video(damaged, noise).read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    run = load_run(bright)
    alone = run.predict(good)
    with pytest.warns(UserWarning) as warned, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run.predict, [good, damaged] * 10))
    messages = [str(one.message) for one in warned]
    assert len(messages) == 10 and all("damaged.mkv is partial: " in text and "FFmpeg" in text for text in messages)
    assert found[::2] == [alone] * 10


@pytest.mark.parametrize("name", ["my clips (1)", "a,b=c", "it's [here] {now}", "100 % #1 @home!"])
def test_paths_are_given_as_they_are(bright: Path, tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name / "a.mp4", lit(2))
    run = shutil.copytree(bright, tmp_path / f"run {name}")
    result = predict(run, tmp_path / name, tmp_path / f"out {name}")
    assert f"Results: {tmp_path}/out {name}\n" in result.stdout
    assert rows_of(tmp_path / f"out {name}").loc["a.mp4", "decision"] == "allow"


# ---- awkward files


def test_each_awkward_file_has_its_row_and_status(bright: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = tmp_path / "in"
    good = write_video(folder / 'good, "quoted".mp4', lit(2))
    write_video(folder / "deep" / "er" / "bright.mp4", lit(2, (0, 2)))
    noise = np.random.default_rng(0).integers(60, size=(100, 32, 32, 3), dtype=np.uint8)
    whole = {suffix: write_video(tmp_path / f"whole.{suffix}", noise).read_bytes() for suffix in ("mkv", "mp4")}
    (folder / "truncated.mkv").write_bytes(whole["mkv"][: len(whole["mkv"]) // 2])
    (folder / "moov_lost.mp4").write_bytes(whole["mp4"][: len(whole["mp4"]) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video at all\n" * 100)
    ffmpeg("-f", "lavfi", "-i", "sine=duration=2", folder / "audio_only.mp4")
    write_video(folder / "rotated.mp4", lit(2), rotation=90)
    write_video(folder / "one_frame.mp4", lit(0.04))
    ffmpeg("-i", good, "-vf", "select=0", "-frames:v", "0", "-f", "matroska", folder / "no_frames.mkv")
    (folder / "notes.txt").write_text("no video, and not named as one")
    expected = {'good, "quoted".mp4': "ok", "deep/er/bright.mp4": "ok", "rotated.mp4": "ok", "one_frame.mp4": "ok"}
    lost = ("moov_lost.mp4", "empty.mp4", "text.mp4", "audio_only.mp4", "no_frames.mkv")
    expected |= dict.fromkeys(lost, "undecodable") | {"truncated.mkv": "partial"}
    if os.environ.get("VIDCLS_REAL_DATA"):
        for file in (request.getfixturevalue("real_data") / "hard").glob("*.mp4"):
            shutil.copy(file, folder)
            expected[file.name] = "partial" if "corrupt" in file.name else "ok"
    result = predict(bright, folder, tmp_path / "out")
    found = rows_of(tmp_path / "out")
    assert found["status"].to_dict() == expected
    assert f"{len(expected)} of {len(expected)} videos" in result.stdout
    assert f" {len(expected)}/{len(expected)} videos, " in result.stdout  # where the progress ended
    assert "1 files that are not videos" in result.stdout
    for path, row in found.iterrows():
        if row["status"] != "ok":
            assert row["decision"] == "review" and row["reason"].startswith(row["status"]), path
            assert len(row["reason"]) > len(row["status"]) + 5
        if row["status"] == "undecodable":
            assert row[[*CLASSES, "predicted", "score"]].eq("").all() and float(row["coverage"]) == 0
        elif row["windows"] == "1":
            assert sum(map(float, row[CLASSES])) == pytest.approx(1, abs=1e-5)
    assert found.loc['good, "quoted".mp4', "decision"] == "allow"
    assert found.loc["deep/er/bright.mp4", "decision"] == "block"
    assert float(found.loc["deep/er/bright.mp4", "score"]) > 0.99


def test_a_video_that_hangs_is_reviewed_with_its_reason(bright: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "good.mp4", lit(2))
    os.mkfifo(tmp_path / "stuck")  # opening it for reading waits for a writer that never comes
    (tmp_path / "in" / "stuck.mp4").symlink_to(tmp_path / "stuck")
    predict(bright, tmp_path / "in", tmp_path / "out", "data.decode.timeout_seconds=2")
    found = rows_of(tmp_path / "out")
    assert set(found.index) == {"good.mp4"}  # no regular file: not a video, and counted as ignored


def test_the_same_content_is_classified_once(bright: Path, tmp_path: Path) -> None:
    one = write_video(tmp_path / "in" / "a.mp4", lit(30, (3, 9)))
    shutil.copy(one, tmp_path / "in" / "b.mp4")
    predict(bright, tmp_path / "in", tmp_path / "out", "data.decode=null", "data.fetch=null")  # with their defaults
    found = rows_of(tmp_path / "out")
    assert found.loc["a.mp4"].tolist() == found.loc["b.mp4"].tolist() and found.loc["a.mp4", "decision"] == "block"
    assert len(details_of(tmp_path / "out")) == 1
    assert table(tmp_path / "out" / "segments.csv")["path"].value_counts().to_dict() == {"a.mp4": 1, "b.mp4": 1}
    timelines = pd.read_parquet(tmp_path / "out" / "timelines.parquet")
    assert (timelines["path"] == "a.mp4").sum() == (timelines["path"] == "b.mp4").sum() == len(timelines) / 2


def test_a_long_video_holds_nobody_up(bright: Path, tmp_path: Path) -> None:
    """With one worker, which would take the largest file first."""
    write_video(tmp_path / "in" / "a_long.mp4", lit(12))
    for number in range(3):
        write_video(tmp_path / "in" / f"short_{number}.mp4", lit(2 + number / 5))
    options = ["predict.window_seconds=1", "predict.stride_seconds=0.1", "predict.max_whole_seconds=5"]
    predict(bright, tmp_path / "in", tmp_path / "out", *options, "data.decode.workers=1")
    rows = rows_of(tmp_path / "out")
    assert set(rows["status"]) == {"ok"} and int(rows.loc["a_long.mp4", "windows"]) > pipeline.LONG_WINDOWS
    assert list(details_of(tmp_path / "out"))[-1] == rows.loc["a_long.mp4", "sha256"]


def test_names_may_hold_anything(bright: Path, tmp_path: Path) -> None:
    """Tables name files as they are, also where a spreadsheet would take that for a formula; but for broken UTF-8."""
    names = {"plain.mp4", "a,b\r.mp4", 'new\nline".mp4', "=SUM(A1).mp4", "+1.mp4", "-1.mp4", "@x.mp4", "<b>bold.mp4"}
    write_video(tmp_path / "in" / "plain.mp4", lit(2, (0, 2)))
    for name in [*names - {"plain.mp4"}, os.fsdecode(b"caf\xe9.mp4")]:
        shutil.copy(tmp_path / "in" / "plain.mp4", tmp_path / "in" / name)
    names.add("caf\\xe9.mp4")
    write_video(tmp_path / "in" / os.fsdecode(b"\xff.mp4"), lit(1))  # with nobody else who could be read instead
    for _ in range(2):  # the second one reads what the first one wrote
        result = predict(bright, tmp_path / "in", tmp_path / "out")
        assert "10 of 10 videos" in result.stdout
        with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
            found = {row["path"]: row["decision"] for row in csv.DictReader(file)}
        assert found == dict.fromkeys(names, "block") | {"\\xff.mp4": "allow"}
        assert set(pd.read_parquet(tmp_path / "out" / "timelines.parquet")["path"]) == set(found)
        assert set(table(tmp_path / "out" / "segments.csv")["path"]) == names


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("run=[]", "[run]"),
        ("predict.stride_seconds=99", "predict.stride_seconds"),
        ("data.decode.workers=0", "[data.decode.workers]"),
        ("report.max_videos=0", "[report.max_videos]"),
        ("report.loops_megabytes=-1", "[report.loops_megabytes]"),
        ("report.blur=off", "[report.blur]"),  # a text, and so true
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(bright: Path, tmp_path: Path, override: str, code: str) -> None:
    video = write_video(tmp_path / "a.mp4", lit(1))
    arguments = {"run": str(bright), "input": str(video), "output": str(tmp_path / "out")}
    name, _, value = override.partition("=")
    given = [f"{key}={text}" for key, text in {**arguments, name: value}.items()]
    refused(call("predict.py", *given), code)
    assert not (tmp_path / "out").exists()


def test_a_policy_of_another_network_is_refused(bright: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(bright, tmp_path / "run"))
    policy = Policy(**{**asdict(plain_policy(run)), "classes": tuple(CLASSES), "model": "0" * 12})
    save_policy(policy, run / "policy.json")
    video = write_video(tmp_path / "a.mp4", lit(1))
    refused(call("predict.py", f"run={run}", f"input={video}", f"output={tmp_path / 'out'}"), "[policy-file]")


def test_a_policy_that_means_nothing_is_pointed_out(bright: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(bright, tmp_path / "run"))
    write_video(tmp_path / "in" / "a.mp4", lit(2))
    assert "guessing" not in predict(run, tmp_path / "in", tmp_path / "plain").stdout
    save_policy(replace(plain_policy(run), temperature=20.0), run / "policy.json")
    assert "no better than guessing" in predict(run, tmp_path / "in", tmp_path / "out").stdout
    lax = replace(plain_policy(run), review={"adult": 1 / 3, "harmful": 1 / 3})  # as earlier versions have fitted it
    save_policy(lax, run / "policy.json")
    said = predict(run, tmp_path / "in", tmp_path / "lax").stdout
    assert said.count("may allow a video that is more probably harmful than safe") == 1


def test_a_run_that_has_not_finished_is_pointed_out(
    bright: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it trained, or still training: its best epoch so far decides."""
    run = Path(shutil.copytree(bright, tmp_path / "run"))
    write_video(tmp_path / "in" / "a.mp4", lit(2))
    (run / "metrics.json").unlink()
    with pytest.warns(UserWarning, match="run has not finished training"):
        predict(run, tmp_path / "in", tmp_path / "out")
    assert rows_of(tmp_path / "out").loc["a.mp4", "decision"] == "allow"
    best, load = run / "checkpoints" / "best.ckpt", loading.load_checkpoint

    def load_and_train_on(path: Path) -> Any:
        checkpoint = load(path)
        torch.save(checkpoint.raw | {"epoch": 99}, best)
        return checkpoint

    monkeypatch.setattr(loading, "load_checkpoint", load_and_train_on)
    with pytest.warns(UserWarning), pytest.raises(UserError) as error:  # its identity would be of the other epoch
        loading.load_run(run)
    assert error.value.code == "changed-run"


def test_a_network_that_returns_nan_predicts_no_class(finished: Path, demo_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    best = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    for tensor in checkpoint["state_dict"].values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    torch.save(checkpoint, best)
    predict(run, demo_folder, tmp_path / "out")
    found = rows_of(tmp_path / "out")
    assert set(found["decision"]) == {"review"} and set(found["predicted"]) == {""}
    with pytest.raises(UserError) as error:  # the highest of three NaN would be the first class
        load_run(run).predict(next(demo_folder.rglob("*.mp4")))
    assert error.value.code == "diverged-network"
