"""evaluate.py end to end: the figures of training again, other data, a policy, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import call, once, train
from helpers.runs import CLASSES, change_manifest, csv_source, evaluate, metrics_of, refused, results, table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vidcls.metrics.calibration import calibrate
from vidcls.moderation.policy import decide, load_policy, save_policy
from vidcls.prediction.loading import load_run


@pytest.fixture(scope="session")
def evaluated(shared: Path, finished: Path) -> Path:
    """A copy, in another place, of a finished run, evaluated on test."""

    def run(folder: Path) -> None:
        shutil.copytree(finished, folder)
        folder.with_suffix(".txt").write_text(evaluate(folder, "split=test"))

    return once(shared, "evaluated", run)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


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


# ---- a policy


def test_a_policy_is_fitted_on_val_and_reported_on_both(evaluated: Path) -> None:
    trained = load_run(evaluated)
    policy = load_policy(evaluated / "policy.json", CLASSES, trained.identity)
    val = table(evaluated / "predictions_val.csv")
    assert policy.safe_class == "safe" and policy.support == val["label"].value_counts().to_dict()
    for split in ("val", "test"):
        report = json.loads((evaluated / "evaluations" / split / "policy_report.json").read_text())
        assert report["policy"] == policy.identity
        rows = table(evaluated / f"predictions_{split}.csv")
        decided = [decide(policy, np.float32(row), "ok", "").decision for row in rows[CLASSES].to_numpy()]
        assert report[split]["review_load"] == pytest.approx(decided.count("review") / len(rows))
        allowed = sum(d == "allow" and label != "safe" for d, label in zip(decided, rows["label"], strict=True))
        assert report[split]["harmful_allowed"]["count"] == allowed
    printed = evaluated.with_suffix(".txt").read_text()
    assert f"Policy {policy.identity}" in printed and "What the policy would do" in printed
    assert "val (fitted)" in printed


def test_the_target_recall_sets_the_threshold(copied: Path) -> None:
    printed = evaluate(copied, "policy.target.harmful.recall=0.05", "policy.review_margin=0.1")
    policy = load_policy(copied / "policy.json", CLASSES, load_run(copied).identity)
    assert policy.targets == {"harmful": {"recall": 0.05}} and "recall 0.05" in printed
    assert "Note for harmful: its val videos are of " in printed  # the guarantee is that of independent ones
    val = table(copied / "predictions_val.csv")
    scores = calibrate(val[CLASSES].to_numpy(), policy.temperature)[:, CLASSES.index("harmful")]
    of_it = scores[(val["label"] == "harmful").to_numpy()]
    assert policy.review["harmful"] == pytest.approx(of_it.min(), rel=1e-6)  # one video: it may not be missed
    assert policy.block["harmful"] == pytest.approx(min(1, policy.review["harmful"] + 0.1))


def test_a_policy_that_allows_the_probably_harmful_is_pointed_out(evaluated: Path, copied: Path) -> None:
    assert "Note for" not in evaluated.with_suffix(".txt").read_text()  # in doubt around 0.5 a person looks
    model = load_run(copied).identity  # of the same file as evaluated's
    policy = load_policy(evaluated / "policy.json", CLASSES, model)
    lax = replace(policy, review=policy.review | {"adult": 0.9}, block=policy.block | {"adult": 0.95})
    save_policy(lax, copied / "policy.json")
    kept = (copied / "policy.json").read_bytes()
    printed = evaluate(copied, "split=val")  # no policy.* option: the policy stays
    note = "videos whose most probable class is adult are allowed where its score is below 0.900"
    assert (copied / "policy.json").read_bytes() == kept
    assert f"Note for adult: {note}" in printed
    assert "Note for harmful" not in printed


def test_a_target_that_val_cannot_support_is_refused_with_the_number(copied: Path) -> None:
    result = call("evaluate.py", f"run={copied}", "policy.target.harmful.recall=0.95")
    refused(result, "at least 59 val videos of 'harmful'", "[recall-not-supported]")
    assert not (copied / "policy.json").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("policy.safe_class=sfae", "[policy.safe_class]"),
        ("policy.target.gore.recall=0.5", "[policy.target]"),
        ("policy.target.adult.f1=0.5", "[policy.target.adult]"),
        ("policy.review_margin=2", "[policy.review_margin]"),
        ("policy.target=0.95", "[policy.target]"),
        ("split=tset", "[split]"),
        ("run=nowhere", "the folder of a finished run"),
        ("data.source=nowhere", "nothing at nowhere"),
        ("accelerator=gpu", "[no-gpu]"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(copied: Path, override: str, words: str) -> None:
    if override == "accelerator=gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    refused(call("evaluate.py", f"run={copied}", override), words)


def test_the_run_must_be_named() -> None:
    refused(call("evaluate.py"), "[missing-option]")


def test_a_policy_needs_the_runs_own_val_videos(finished: Path, demo_folder: Path) -> None:
    result = call("evaluate.py", f"run={finished}", f"data.source={demo_folder}", "policy.review_margin=0.3")
    refused(result, "[policy-source]")


@pytest.mark.pictures
def test_without_a_class_called_safe_the_safe_class_must_be_named(
    tiny: list[str], demo_folder: Path, tmp_path: Path
) -> None:
    """Names beyond ASCII, or of digits, name a class in options too; a lost video is for review and not for the fit."""
    videos, run = tmp_path / "videos.csv", tmp_path / "run"
    names = {"safe": "0", "harmful": "schädlich & Co."}
    with videos.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for video in sorted(demo_folder.rglob("*.mp4")):
            if video.parent.name in names:
                writer.writerow([video, names[video.parent.name], video.parent.parent.name])
        (tmp_path / "lost_1.mp4").write_bytes(b"nothing")
        writer.writerow([tmp_path / "lost_1.mp4", names["harmful"], "test"])
    result = train(*tiny, f"data.source={videos}", "trainer.max_epochs=1", f"run_dir={run}")
    assert result.code == 0, result.stderr
    assert "No policy" in (printed := evaluate(run, "split=val")) and "one of 0, schädlich & Co." in printed
    assert not (run / "policy.json").exists()
    refused(call("evaluate.py", f"run={run}", "policy.review_margin=0.3"), "[policy.safe_class]")
    result = call("evaluate.py", f"run={run}", "policy.safe_class=schädlich & Co.", "policy.target.0.recall=2")
    refused(result, "[policy.target.0.recall]")
    evaluate(run, "policy.safe_class=0", "policy.target.schädlich & Co..precision=0.01")
    policy = json.loads((run / "policy.json").read_text())
    assert policy["targets"] == {names["harmful"]: {"precision": 0.01}} and policy["safe_class"] == "0"
    report = json.loads((run / "evaluations" / "test" / "policy_report.json").read_text())["test"]
    assert report["n"] == 3 and report["confusion"][names["harmful"]]["review"] >= 1  # the lost one counts, as a review


def test_copies_of_a_video_are_no_further_evidence_for_a_policy(copied: Path) -> None:
    """59 copies of one val video would otherwise support a recall of 0.95."""

    def repeat(rows: pd.DataFrame) -> pd.DataFrame:
        one = rows[(rows["split"] == "val") & (rows["label"] == "harmful")].head(1)
        copies = pd.concat([one] * 60).assign(path=[f"copy_{number}.mp4" for number in range(60)])
        return pd.concat([rows, copies])

    change_manifest(copied, repeat)
    result = call("evaluate.py", f"run={copied}", "policy.target.harmful.recall=0.95")
    refused(result, "[recall-not-supported]", "at least 59 val videos")


# ---- nothing wrong without a word


def test_a_policy_is_not_fitted_without_intact_val_videos(copied: Path) -> None:
    damaged = {"status": "partial", "reason": "damaged"}
    change_manifest(
        copied, lambda rows: rows.assign(**{n: rows[n].mask(rows["split"] == "val", v) for n, v in damaged.items()})
    )
    refused(call("evaluate.py", f"run={copied}", "policy.safe_class=safe"), "[policy-without-val]")
    assert "No policy" in evaluate(copied)  # one that nobody asked for
    change_manifest(copied, lambda rows: rows[rows["split"] != "val"])
    refused(call("evaluate.py", f"run={copied}", "policy.safe_class=safe"), "[policy-without-val]")


@pytest.mark.pictures
def test_a_harmful_class_without_val_videos_is_pointed_out(copied: Path) -> None:
    change_manifest(copied, lambda rows: rows[(rows["split"] != "val") | (rows["label"] == "safe")])
    printed = evaluate(copied, "split=val")
    assert "Note for harmful: there is no intact val video of it" in printed and "Note for adult" in printed
    assert results(copied / "evaluations" / "val")["val"]["auroc"] is None


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
