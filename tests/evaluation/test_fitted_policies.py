"""evaluate.py fits a policy to val, reports what it would do, and refuses what val cannot support."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.commands import call, train
from helpers.runs import CLASSES, change_manifest, evaluate, refused, results, table

from vidcls.metrics.calibration import calibrate
from vidcls.moderation.policy import decide, load_policy, save_policy
from vidcls.prediction.loading import load_run


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
    lost = "the policy that is replaced had policy.target.harmful.recall=0.05"
    assert lost not in printed and lost not in evaluate(copied, "policy.target.harmful.recall=0.04")
    assert lost.replace("0.05", "0.04") in evaluate(copied, "policy.safe_class=safe")  # which asks for less, unawares


def test_a_policy_that_allows_the_probably_harmful_is_pointed_out(evaluated: Path, copied: Path) -> None:
    assert "may allow" not in evaluated.with_suffix(".txt").read_text()  # in doubt around 0.5 a person looks
    model = load_run(copied).identity  # of the same file as evaluated's
    policy = load_policy(evaluated / "policy.json", CLASSES, model)
    lax = replace(policy, review=policy.review | {"adult": 0.9}, block=policy.block | {"adult": 0.95})
    save_policy(lax, copied / "policy.json")
    kept = (copied / "policy.json").read_bytes()
    printed = evaluate(copied, "split=val")  # no policy.* option: the policy stays
    note = "more probably harmful than safe, with a probability of up to 1.00 for all harmful classes together"
    assert (copied / "policy.json").read_bytes() == kept
    assert note in printed and "only from adult 0.900 on" in printed


def test_a_target_that_val_cannot_support_is_refused_with_the_number(copied: Path) -> None:
    result = call("evaluate.py", f"run={copied}", "policy.target.harmful.recall=0.95")
    refused(result, "at least 59 val videos of 'harmful'", "[recall-not-supported]")
    assert not (copied / "policy.json").exists()


def test_a_policy_needs_the_runs_own_val_videos(finished: Path, demo_folder: Path) -> None:
    result = call("evaluate.py", f"run={finished}", f"data.source={demo_folder}", "policy.review_margin=0.3")
    refused(result, "[policy-source]")


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
    result = train(*tiny, f"data.source={videos}", "trainer.max_epochs=1", "figures=false", f"run_dir={run}")
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
