"""evaluate.py end to end: the figures of training again, other data, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import call
from helpers.runs import CLASSES, change_manifest, csv_source, evaluate, metrics_of, refused, results, table
from helpers.videos import write_video
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vidcls.prediction.loading import load_run

# ---- the same figures


@pytest.mark.parametrize("split", ["val", "test"])
def test_figures_are_those_of_training_to_the_last_digit(evaluated: Path, split: str) -> None:
    again = results(evaluated / "evaluations" / split)[split]
    before = metrics_of(evaluated)[split]
    assert {name: again[name] for name in before} == before
    predictions = (evaluated / f"predictions_{split}.csv").read_bytes()
    assert (evaluated / "evaluations" / split / "predictions.csv").read_bytes() == predictions


def test_the_run_folder_alone_is_enough(copied: Path, tmp_path: Path) -> None:
    """No decoded frames, another working folder: the videos are read again where the configuration says they are."""
    printed = evaluate(copied, "split=train", f"cache_dir={tmp_path / 'empty'}")
    assert "are not in" in " ".join(printed.split()) and "decoding them again" in " ".join(printed.split())
    again = results(copied / "evaluations" / "train")["train"]
    before = metrics_of(copied)["train"]
    assert {name: again[name] for name in before} == before


def test_videos_that_have_changed_or_cannot_be_found_are_refused(
    copied: Path, demo_folder: Path, tmp_path: Path
) -> None:
    """Changed, renamed, a split's files removed, all removed, the folder removed: one clear line each."""
    videos = Path(shutil.copytree(demo_folder, tmp_path / "videos"))
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace(str(demo_folder), str(videos)))

    def evaluated(code: str, *words: str) -> None:
        result = call("evaluate.py", f"run={copied}", "split=test", f"cache_dir={tmp_path / 'cache'}")
        refused(result, f"[{code}]", *words)

    test = sorted((videos / "rtp" / "test").rglob("*.mp4"))
    test[0].write_bytes(test[1].read_bytes())
    evaluated("changed-videos", test[0].name)
    for video in videos.rglob("*.mp4"):
        video.rename(video.with_name(f"renamed_{video.name}"))
    evaluated("changed-videos")
    shutil.rmtree(videos / "rtp" / "test")
    evaluated("changed-videos")
    for video in videos.rglob("*.mp4"):
        video.unlink()
    evaluated("empty-source")
    shutil.rmtree(videos)
    evaluated("missing-source")


def test_the_terminal_shows_whole_figures(evaluated: Path) -> None:
    lines = evaluated.with_suffix(".txt").read_text().splitlines()
    shown = {name.strip(): cells for line in lines if line.count("│") > 2 for _, name, *cells, _ in [line.split("│")]}
    figures = results(evaluated / "evaluations" / "test")["test"]
    for row, name in (("accuracy", "accuracy"), ("AUROC", "auroc"), ("calibration error", "calibration_error")):
        assert shown[row][-1].strip() == f"{figures[name]:.3f}"
    low, high = figures["accuracy_ci95"]
    assert shown["95 %, Wilson"][-1].strip() == f"{low:.2f} to {high:.2f}"
    assert not [line for line in lines if "│" in line and "…" in line]  # of a table, at 80 columns


def test_what_an_evaluation_leaves(evaluated: Path) -> None:
    folder = evaluated / "evaluations" / "test"
    figures = results(folder)["test"]
    assert results(folder)["about"] == {"model": load_run(evaluated).identity, "source": None}
    low, high = figures["bootstrap_ci95"]["accuracy"] or (0, 1)
    assert low <= figures["accuracy"] <= high
    assert figures["bootstrap_ci95"]["unit"] == "creators"
    assert (
        figures["bootstrap_ci95"]["units"]
        == table(evaluated / "manifest.csv").query("split == 'test'").creator.nunique()
    )
    assert set(figures["average_precision"]) == set(CLASSES)
    assert 0 <= figures["calibration_error_calibrated"] <= 1
    pictures = {path.name for path in (folder / "figures").iterdir()}
    assert pictures == {f"{n}.png" for n in ("confusion", "reliability", "precision_recall", "roc", "errors")}
    assert all(matplotlib.image.imread(folder / "figures" / name).std() > 0.01 for name in pictures)


def test_errors_are_the_wrong_ones_most_confident_first(evaluated: Path) -> None:
    errors = table(evaluated / "evaluations" / "test" / "errors.csv")
    predictions = table(evaluated / "predictions_test.csv")
    wrong = predictions[predictions["label"] != predictions["predicted"]]
    assert set(errors["path"]) == set(wrong["path"]) and len(errors) > 0
    assert (np.diff(errors["confidence"]) <= 0).all()
    for row in errors.itertuples():
        known = wrong[wrong["path"] == row.path].iloc[0]
        assert (row.label, row.predicted) == (known["label"], known["predicted"])
        assert row.confidence == known[row.predicted] and row.path.split("/")[-1].startswith(f"{row.creator}_")


def test_the_dashboard_shows_the_evaluation(evaluated: Path) -> None:
    events = EventAccumulator(str(evaluated / "tensorboard"), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    assert "evaluate_test/reliability" in events.Tags()["images"]
    assert {f"evaluate_test/{name}" for name in CLASSES} <= set(events.Tags()["tensors"])
    assert "train/loss" in events.Tags()["scalars"]  # what training wrote is still there


# ---- other data


def test_other_data_is_matched_by_class_name(copied: Path, demo_folder: Path, tmp_path: Path) -> None:
    """Two of three classes, without split folders, one video broken: classes keep the run's order."""
    for video in (demo_folder / "rtp" / "test").rglob("*.mp4"):
        if video.parent.name != "harmful":
            target = tmp_path / "others" / video.parent.name / video.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(video, target)
    (tmp_path / "others" / "safe" / "broken_1.mp4").write_bytes(b"no video")
    printed = evaluate(copied, f"data.source={tmp_path / 'others'}")
    assert "undecodable" in printed and "broken_1.mp4" in printed
    (folder,) = (copied / "evaluations").glob("others_*_test")
    predictions = table(folder / "predictions.csv")
    assert list(predictions.columns) == ["path", "label", "predicted", *CLASSES]
    before = table(copied / "predictions_test.csv").assign(path=lambda rows: rows["path"].str.removeprefix("rtp/test/"))
    kept = before[before["label"] != "harmful"].reset_index(drop=True)
    pd.testing.assert_frame_equal(predictions, kept)
    assert results(folder)["test"]["per_class"]["harmful"]["support"] == 0
    note = "no video of test is of harmful"
    assert note in printed and note in results(folder)["test"]["notes"][0]
    assert results(folder)["about"]["source"] == str(tmp_path / "others")


@pytest.mark.pictures
def test_one_class_alone_can_be_evaluated(copied: Path, demo_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_folder / "rtp" / "train" / "harmful", tmp_path / "alone" / "harmful")
    with pytest.warns(UserWarning, match="Held-out metrics will be optimistic"):  # as the network was trained on them
        evaluate(copied, f"data.source={tmp_path / 'alone'}")
    (folder,) = (copied / "evaluations").glob("alone_*_test")
    figures = results(folder)["test"]
    assert figures["n"] == figures["per_class"]["harmful"]["support"] == 2 and figures["auroc"] is None


def test_long_videos_which_predict_py_would_cut_into_windows_are_counted(copied: Path, tmp_path: Path) -> None:
    for name, seconds in (("short", 2), ("long", 20)):
        write_video(tmp_path / "other" / "safe" / f"{name}_1.mp4", np.zeros((seconds, 32, 32, 3), np.uint8), fps=1)
    said = evaluate(copied, f"data.source={tmp_path / 'other'}")
    assert "Note: 1 of 2 videos of test are longer than 4 s. They are classified whole here" in said


def test_unknown_classes_are_refused_with_a_list(finished: Path, demo_folder: Path, tmp_path: Path) -> None:
    for name, count in (("safe", 2), ("gore", 2), ("spam", 1)):
        for video in sorted((demo_folder / "rtp" / "train" / "safe").iterdir())[:count]:
            (tmp_path / name).mkdir(exist_ok=True)
            shutil.copy(video, tmp_path / name)
    result = call("evaluate.py", f"run={finished}", f"data.source={tmp_path}")
    refused(result, "adult, harmful, safe alone", "'gore' (2 videos), 'spam' (1 videos)")


def test_the_split_of_other_data_is_used(copied: Path, demo_folder: Path, tmp_path: Path) -> None:
    videos = csv_source(demo_folder, tmp_path / "videos.csv", lambda split, label: split != "train")
    evaluate(copied, f"data.source={videos}", "split=val")
    (folder,) = (copied / "evaluations").glob("videos_*_val")
    assert results(folder)["val"]["accuracy"] == metrics_of(copied)["val"]["accuracy"]
    refused(call("evaluate.py", f"run={copied}", f"data.source={videos}", "split=train"), "[missing-split]")
    videos.write_text(videos.read_text().replace(",val\n", ",\n", 1))  # a video that would be left out without a word
    refused(call("evaluate.py", f"run={copied}", f"data.source={videos}", "split=val"), "[partial-splits]")


def test_what_the_network_was_trained_on_is_reported_as_leakage(copied: Path, demo_folder: Path) -> None:
    with pytest.warns(UserWarning, match="Held-out metrics will be optimistic"):
        printed = evaluate(copied, f"data.source={demo_folder}", "split=train")
        assert "Leakage" in printed and "evaluated+train of run" in printed
        assert "evaluated+val of run" in evaluate(copied, f"data.source={demo_folder}", "split=val")


# ---- what is refused


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("policy.safe_class=sfae", "[policy.safe_class]"),
        ("policy.target.gore.recall=0.5", "[policy.target]"),
        ("policy.review_margin=2", "[policy.review_margin]"),
        ("policy.target=0.95", "[policy.target]"),
        ("accelerator=gpu", "[no-gpu]"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(copied: Path, override: str, words: str) -> None:
    if override == "accelerator=gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    refused(call("evaluate.py", f"run={copied}", override), words)


def test_a_manifest_with_a_class_that_the_network_does_not_have_is_refused(copied: Path) -> None:
    change_manifest(copied, lambda rows: rows.assign(label=rows["label"].replace("adult", "gore")))
    refused(call("evaluate.py", f"run={copied}"), "[bad-manifest]", "gore")


def test_a_network_that_returns_nan_is_not_evaluated(copied: Path) -> None:
    path = copied / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for tensor in checkpoint["state_dict"].values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    torch.save(checkpoint, path)
    refused(call("evaluate.py", f"run={copied}"), "[diverged-network]")
    assert not (copied / "policy.json").exists()
