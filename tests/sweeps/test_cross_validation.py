"""cross_validate.py: folds that share no creator, held-out videos that choose nothing, and one table at the end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.commands import call, train
from helpers.decisions import decisions
from helpers.runs import refused, same_weights, table, weights
from helpers.sweeps import contents, read_json
from helpers.videos import write_video
from rich.console import Console

from vidcls.data.options import DataOptions
from vidcls.data.preparation import frame_store, prepare_videos
from vidcls.errors import UserError
from vidcls.files import hash_file
from vidcls.sweeps.cross_validation import write_folds
from vidcls.sweeps.fold_plan import Plan

RESULTS = ("out_of_fold.csv", "metrics.json", "cross_validation.md", "label_issues.csv", "label_issues.html")


def options(source: Path, cache: Path, **changes: Any) -> DataOptions:
    given = {"num_frames": 2, "resolution": 8, "decode": {"workers": 1}}
    return DataOptions(str(source), str(cache), **(given | changes))


# ---- the folds


@pytest.mark.parametrize("protocol", ["grouped", "random"])
def test_each_video_is_held_out_once_per_repeat(protocol: str, demo_folder: Path, tmp_path: Path) -> None:
    plan = Plan(protocol, folds=3, repeats=2, seeds=[0], splits=["train", "val"])
    copied = shutil.copytree(demo_folder, tmp_path / "videos")
    copy = next((copied / "rtp" / "train" / "safe").glob("*.mp4"))
    shutil.copy(copy, copy.with_name("somebody_1.mp4"))  # of another creator
    write_folds(tmp_path / "cv", plan, options(copied, tmp_path / "cache"))
    folds = table(tmp_path / "cv" / "folds.csv")
    used = {
        path.relative_to(copied).as_posix() for split in plan.splits for path in (copied / "rtp" / split).rglob("*.mp4")
    }
    assert set(folds["path"]) == used and folds["path"].is_unique
    tested = set()
    for repeat in range(2):
        held_out = []
        for fold in range(3):
            rows = table(tmp_path / "cv" / "splits" / f"repeat{repeat}_fold{fold}.csv")
            assert set(rows["path"]) == set(folds["file"])
            held_out += list(rows.loc[rows["split"] == "test", "path"])
            tied = list(folds.set_index("file")["group"][rows["path"]])
            assert (rows["split"].groupby(tied).nunique() == 1).all(), "a group is in two splits"
            assert set(rows["split"]) == {"train", "val", "test"}
            if protocol == "grouped":  # and so is each creator, by its name
                creators = [Path(path).stem.rpartition("_")[0] for path in rows["path"]]
                assert (rows["split"].groupby(creators).nunique() == 1).all()
        assert sorted(held_out) == sorted(folds["file"])
        tested.add(tuple(folds[f"repeat{repeat}"]))
    assert len(tested) == 2 or protocol == "grouped"  # with three creators in three folds there is but one way
    one, other = (
        folds.set_index("path")["group"][name]
        for name in (f"rtp/train/safe/{copy.name}", "rtp/train/safe/somebody_1.mp4")
    )
    assert one == other
    assert read_json(tmp_path / "cv" / "cross_validation.json")["locked_videos"] == len(
        list((copied / "rtp" / "test").rglob("*.mp4"))
    )


def test_the_same_videos_have_the_same_folds(demo_folder: Path, tmp_path: Path) -> None:
    plan = Plan("grouped", folds=3, repeats=2, seeds=[0], splits=["train", "val"])
    for name in ("one", "other"):
        write_folds(tmp_path / name, plan, options(demo_folder, tmp_path / "cache"))
    assert (tmp_path / "one" / "folds.csv").read_bytes() == (tmp_path / "other" / "folds.csv").read_bytes()


def test_too_few_creators_are_refused(demo_folder: Path, tmp_path: Path) -> None:
    plan = Plan("grouped", folds=4, repeats=1, seeds=[0], splits=["train", "val"])
    with pytest.raises(UserError) as error:
        write_folds(tmp_path / "cv", plan, options(demo_folder, tmp_path / "cache"))
    assert error.value.code == "too-few-groups" and not (tmp_path / "cv" / "cross_validation.json").exists()


def test_splits_for_some_videos_alone_are_refused(demo_folder: Path, tmp_path: Path) -> None:
    rows = [
        (path, path.parent.name, "train" if place % 2 else "") for place, path in enumerate(demo_folder.rglob("*.mp4"))
    ]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(tmp_path / "videos.csv", index=False)
    plan = Plan("grouped", folds=2, repeats=1, seeds=[0], splits=["train", "val"])
    with pytest.raises(UserError) as error:
        write_folds(tmp_path / "cv", plan, options(tmp_path / "videos.csv", tmp_path / "cache"))
    assert error.value.code == "partial-splits"


def test_folds_are_kept_while_videos_come_and_refused_when_they_change(demo_folder: Path, tmp_path: Path) -> None:
    plan = Plan("grouped", folds=3, repeats=1, seeds=[0], splits=["train", "val"])
    copied = shutil.copytree(demo_folder, tmp_path / "videos")
    data = options(copied, tmp_path / "cache")
    write_folds(tmp_path / "cv", plan, data)
    before = contents(tmp_path / "cv")
    one, other = sorted((copied / "rtp" / "train" / "safe").glob("*.mp4"))[:2]
    write_video(one.with_name("new_1.mp4"), np.zeros((4, 16, 16, 3), np.uint8))
    write_folds(tmp_path / "cv", plan, data)
    assert contents(tmp_path / "cv") == before
    for name in ("folds.csv", "splits/repeat0_fold1.csv"):
        path = tmp_path / "cv" / name
        content = path.read_bytes()
        path.write_bytes(b"".join(content.splitlines(keepends=True)[:-1]))  # a row is gone, and the rest is whole
        with pytest.raises(UserError) as error:
            write_folds(tmp_path / "cv", plan, data)
        assert error.value.code == "changed-folds" and name in str(error.value)
        path.write_bytes(content)
    shutil.copy(one, other)
    with pytest.raises(UserError) as error:
        write_folds(tmp_path / "cv", plan, data)
    assert error.value.code == "changed-videos"


def test_what_was_reviewed_is_trained_on_and_never_held_out(tmp_path: Path) -> None:
    rows, sha256s = [], {}
    for number in range(18):  # 12 videos of six creators, and 6 without a label, of three of these and of three others
        name = f"c{number % 6 if number < 15 else number}_{number}.mp4"
        sha256s[name] = hash_file(write_video(tmp_path / name, np.full((4, 16, 16, 3), 10 * number, np.uint8)))
        rows.append([name, ["no", "yes"][number % 2] if number < 12 else ""])
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(tmp_path / "list.csv", index=False)
    said = [(sha256, "Ada", "yes") for name, sha256 in sha256s.items() if name != "c17_17.mp4"]
    file = decisions(tmp_path / "d.csv", *said)
    data = options(tmp_path / "list.csv", tmp_path / "cache", decisions=[str(file)])
    plan = Plan("grouped", folds=3, repeats=1, seeds=[0], splits=["train", "val"])
    write_folds(tmp_path / "cv", plan, data)
    folds, joined = table(tmp_path / "cv" / "folds.csv"), set[str]()
    assert folds["path"].tolist() == sorted(name for name, label in rows if label)
    for fold in range(3):
        source = tmp_path / "cv" / "splits" / f"repeat0_fold{fold}.csv"
        job = prepare_videos(options(source, tmp_path / "cache", decisions=[str(file)]), Console(quiet=True)).manifest
        held_out = job[job["split"] != "train"]
        assert set(held_out["label_source"]) == {"folder"}
        assert set(held_out["label"]) == {"no", "yes"}
        trained_on = job[job["split"] == "train"]
        assert set(trained_on["label_source"]) == {"decisions"} and set(trained_on["label"]) == {"yes"}
        assert not set(trained_on["creator"]) & set(held_out["creator"])
        joined |= {Path(path).name for path in trained_on["path"]} - set(folds["path"])
    assert {"c15_15.mp4", "c16_16.mp4"} < joined <= {name for name, label in rows if not label} - {"c17_17.mp4"}
    write_folds(tmp_path / "cv", plan, data)
    decisions(file, *said[1:])
    with pytest.raises(UserError) as error:
        write_folds(tmp_path / "cv", plan, data)
    assert error.value.code == "changed-decisions"


# ---- the runs


def test_the_table_pools_what_each_run_predicted_of_its_fold(validated: Path, demo_folder: Path) -> None:
    rows, folds = table(validated / "out_of_fold.csv"), table(validated / "folds.csv").set_index("path")
    metrics = read_json(validated / "metrics.json")
    assert len(rows) == len(folds) and not rows.duplicated(["repeat", "seed", "path"]).any()
    for row in rows.itertuples():
        assert folds.loc[row.path, "repeat0"] == row.fold and folds.loc[row.path, "label"] == row.label
    for (fold, seed), part in rows.groupby(["fold", "seed"]):
        own = table(validated / f"repeat0_fold{fold}_seed{seed}" / "predictions_test.csv")
        assert (own[["adult", "harmful", "safe"]].to_numpy() == part[["adult", "harmful", "safe"]].to_numpy()).all()
    right = (rows["predicted"] == rows["label"]).mean()
    assert metrics["out_of_fold"]["accuracy"]["mean"] == pytest.approx(right, abs=1e-6)
    assert metrics["unit"] == "creators"
    printed = validated.with_suffix(".out").read_text()
    assert f"accuracy {right:.3f}" in " ".join(printed.split()) and "stay locked" in printed
    assert [path.name for path in validated.rglob("*.ckpt")] == ["best.ckpt"] * 3
    test_videos = {path.name for path in (demo_folder / "rtp" / "test").rglob("*.mp4")}
    assert not test_videos & {Path(path).name for path in rows["path"]}


def test_the_held_out_fold_cannot_influence_training(validated: Path, tiny: list[str], tmp_path: Path) -> None:
    """Not even by its labels: with wrong ones the same epoch with the same weights is chosen."""
    rows = table(validated / "splits" / "repeat0_fold1.csv")
    held_out = rows["split"] == "test"
    rows.loc[held_out, "label"] = rows.loc[held_out, "label"].map(
        {"adult": "safe", "safe": "harmful", "harmful": "adult"}
    )
    rows.to_csv(tmp_path / "wrong.csv", index=False)
    overrides = ["trainer.max_epochs=1", f"data.source={tmp_path / 'wrong.csv'}", f"run_dir={tmp_path / 'run'}"]
    result = train(*tiny, *overrides)
    assert result.code == 0, result.stderr
    job = validated / "repeat0_fold1_seed0"
    assert same_weights(weights(tmp_path / "run", "best"), weights(job, "best"))
    assert (tmp_path / "run" / "predictions_val.csv").read_bytes() == (job / "predictions_val.csv").read_bytes()


def test_interrupted_and_continued_it_gives_the_same_table(
    validated: Path, folds_command: list[str], tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(validated, tmp_path / "cv"))
    shutil.rmtree(copied / "repeat0_fold2_seed0")  # not started
    (copied / "repeat0_fold1_seed0" / "metrics.json").unlink()  # killed at its end
    for name in RESULTS:
        (copied / name).unlink()
    result = call("cross_validate.py", *folds_command, f"output={copied}")
    assert result.code == 0, result.stderr
    assert result.stdout.count("already finished") == 1
    for name in RESULTS:
        assert (copied / name).read_bytes() == (validated / name).read_bytes(), name


def test_a_folder_of_another_command_is_refused(validated: Path, folds_command: list[str], tmp_path: Path) -> None:
    copied = Path(shutil.copytree(validated, tmp_path / "cv"))
    refused(call("cross_validate.py", *folds_command, "protocol=random", f"output={copied}"), "another-sweep")


def test_a_command_that_could_not_start_leaves_its_folder_to_the_corrected_one(
    folds_command: list[str], tmp_path: Path
) -> None:
    folder = f"output={tmp_path / 'cv'}"
    refused(call("cross_validate.py", *folds_command, "folds=4", folder), "too-few-groups")
    assert not (tmp_path / "cv" / "sweep.json").exists()


def test_what_only_creators_share_helps_in_random_folds_alone(tmp_path: Path) -> None:
    """Each creator has a background and a class: who knows the background knows the class, if not of a new one."""
    rng = np.random.default_rng(0)
    for creator in range(16):
        background = rng.integers(0, 256, size=(1, 8, 8, 3)).repeat(4, axis=0)
        for video in range(3):
            frames = np.clip(background + rng.normal(0, 10, size=background.shape), 0, 255).astype(np.uint8)
            path = tmp_path / "videos" / ("no", "yes")[creator % 2] / f"c{creator}_{video}.mp4"
            write_video(path, frames.repeat(4, axis=1).repeat(4, axis=2))
    data, accuracy = options(tmp_path / "videos", tmp_path / "cache"), {}
    for protocol in ("grouped", "random"):
        folder = tmp_path / protocol
        write_folds(folder, Plan(protocol, folds=4, repeats=2, seeds=[0], splits=["train", "val"]), data)
        sha256s, store = table(folder / "folds.csv").set_index("file")["sha256"], frame_store(data)
        right = []
        for path in (folder / "splits").iterdir():
            rows = table(path)
            frames = np.stack([store.read(sha256s[file], np.array([0])).ravel().astype(float) for file in rows["path"]])
            seen, labels = (rows["split"] != "test").to_numpy(), rows["label"].to_numpy()
            nearest = np.square(frames[~seen][:, None] - frames[seen]).sum(axis=-1).argmin(axis=1)
            right += list(labels[seen][nearest] == labels[~seen])
        accuracy[protocol] = np.mean(right)
    assert accuracy["random"] == 1 and 0.3 < accuracy["grouped"] < 0.7, accuracy
