"""The results of a cross-validation: which runs fit their folds, tables side by side, and averages."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.commands import call
from helpers.runs import change_manifest, refused
from helpers.sweeps import read_json

from vidcls.errors import UserError
from vidcls.sweeps.fold_results import average, calibrated, comparisons, read_cross_validation, results_table


@pytest.mark.parametrize("fault", ["no metrics", "other videos", "trained on the fold", "no predictions"])
def test_a_run_that_does_not_fit_its_fold_is_refused(validated: Path, tmp_path: Path, fault: str) -> None:
    copied = Path(shutil.copytree(validated, tmp_path / "cv"))
    job, other = copied / "repeat0_fold0_seed0", copied / "repeat0_fold1_seed0"
    if fault == "no metrics":
        (job / "metrics.json").unlink()
    elif fault == "other videos":
        for name in ("predictions_test.csv", "manifest.csv", "manifest.csv.sha256"):
            shutil.copy(other / name, job / name)
    elif fault == "trained on the fold":
        seen = {"split": "train", "path": "copy.mp4"}
        change_manifest(job, lambda rows: pd.concat([rows, rows[rows["split"] == "test"].head(1).assign(**seen)]))
    else:
        (job / "predictions_test.csv").unlink()
    code = "unfinished-cross-validation" if fault == "no metrics" else "damaged-fold"
    refused(call("report.py", f"sweep={copied}"), code)


def test_the_report_shows_several_side_by_side(validated: Path, tmp_path: Path) -> None:
    result = call("report.py", f"sweep=[{validated},{validated}]")
    assert result.code == 0, result.stderr
    assert "A (grouped)" in result.stdout and "B - A: accuracy +0.000 [+0.000, +0.000]" in result.stdout
    assert "average" not in result.stdout
    averaged = call("report.py", f"sweep=[{validated},{validated}]", "average=true")
    assert "average - A: accuracy +0.000 [+0.000, +0.000]" in averaged.stdout
    assert "average, calibrated - A: accuracy" in averaged.stdout
    refused(call("report.py", f"sweep={validated}", "average=true"), "average")
    refused(call("report.py", f"sweep=[{validated},{tmp_path}]"), "no-sweep")
    shutil.copy(validated / "sweep.json", tmp_path)
    refused(call("report.py", f"sweep=[{validated},{tmp_path}]"), "several-sweeps")


def test_the_average_is_of_the_probabilities_of_each_video(validated: Path) -> None:
    found = read_cross_validation(validated)
    generator = np.random.default_rng(0)
    drawn = pd.DataFrame(generator.dirichlet([1.0] * len(found.classes), len(found.table)), columns=found.classes)
    other = replace(found, table=found.table.assign(**drawn).sample(frac=1, random_state=0))  # in another order
    averaged = average([found, other]).table.set_index(["repeat", "seed", "path"])
    before = found.table.set_index(["repeat", "seed", "path"])
    after = other.table.set_index(["repeat", "seed", "path"]).loc[before.index]
    expected = (before[found.classes] + after[found.classes]) / 2
    pd.testing.assert_frame_equal(averaged.loc[before.index][found.classes], expected)
    assert list(averaged.loc[before.index]["predicted"]) == list(expected.idxmax(axis=1))


def test_a_fold_is_calibrated_by_the_others_of_its_repeat(validated: Path) -> None:
    found = read_cross_validation(validated)
    one, classes = calibrated(found).table, found.classes
    assert (one[classes].idxmax(axis=1) == found.table["predicted"].to_numpy()).all()
    held_out = (found.table["repeat"] == 0) & (found.table["fold"] == 0)
    flipped = found.table["label"].where(~held_out, classes[0])
    two = calibrated(replace(found, table=found.table.assign(label=flipped))).table
    others = (found.table["repeat"] == 0) & ~held_out
    pd.testing.assert_frame_equal(one[~others], two[~others].assign(label=one["label"]))  # not by its own labels
    assert not np.allclose(one[others][classes], two[others][classes])


@pytest.mark.parametrize("column", ["label", "fold"])
def test_no_average_of_other_folds_or_labels(validated: Path, column: str) -> None:
    found = read_cross_validation(validated)
    with pytest.raises(UserError) as error:
        average(
            [found, replace(found, table=found.table.assign(**{column: found.table[column].iloc[::-1].to_numpy()}))]
        )
    assert error.value.code == "average"


def test_other_videos_with_the_same_labels_are_not_compared(validated: Path) -> None:
    found = read_cross_validation(validated)
    others = replace(found, videos=found.videos.assign(sha256=found.videos["sha256"].iloc[::-1].to_numpy()))
    assert comparisons({"A (grouped)": found, "B (grouped)": others}) == [
        "B - A: of other videos, so their difference is not measured."
    ]


def test_copies_of_unknown_creators_are_resampled_together(validated: Path) -> None:
    """As evaluate.py does."""
    found = read_cross_validation(validated)
    copies = found.videos["sha256"].where(found.videos.index > 2, "0" * 64)
    groups = replace(found, videos=found.videos.assign(creator="", sha256=copies)).predictions.groups
    assert len(set(groups[:3])) == 1 and len(set(groups)) == len(groups) - 2


def test_classes_that_look_like_numbers_keep_their_names(validated: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(validated, tmp_path / "cv"))
    for file in [*copied.rglob("*.csv"), copied / "cross_validation.json"]:
        text = file.read_text()
        for number, name in enumerate(("adult", "harmful", "safe")):
            text = text.replace(name, f"0{number}")
        file.write_text(text)
    for digest in copied.rglob("*.sha256"):
        digest.unlink()
    record = copied / "cross_validation.json"
    record.write_text(json.dumps({key: value for key, value in read_json(record).items() if key != "files"}))
    assert set(read_cross_validation(copied).table["predicted"]) <= {"00", "01", "02"}


def test_an_interval_without_width_is_not_shown(validated: Path) -> None:
    """Resamples of predictions without an error do not differ, which says nothing about other videos."""
    found = read_cross_validation(validated)
    right = found.table.assign(**{name: (found.table["label"] == name).astype(float) for name in found.classes})
    cells = results_table({"grouped": replace(found, table=right)})["grouped"].head(2)
    assert list(cells) == ["1.000", "1.000"]  # accuracy, AUROC
