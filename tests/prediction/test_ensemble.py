"""Several runs as one: the mean of calibrated probabilities, one identity, no member that has seen what is tested."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.commands import call, train, train_once
from helpers.runs import CLASSES, change_manifest, predict, refused, results, rows_of, table
from helpers.videos import write_video

from vidcls import load_run
from vidcls.errors import UserError
from vidcls.files import hash_file
from vidcls.metrics.calibration import calibrate
from vidcls.moderation.policy import load_policy
from vidcls.prediction.ensemble import Ensemble


@pytest.fixture(scope="session")
def other(shared: Path, tiny: list[str]) -> Path:
    """A second run on the same videos. Read only."""
    return train_once(shared, "other_seed", *tiny, "trainer.max_epochs=1", "seed=1", "figures=false")


@pytest.fixture
def pair(finished: Path, other: Path, tmp_path: Path) -> list[Path]:
    """Copies of both."""
    return [Path(shutil.copytree(run, tmp_path / f"run{number}")) for number, run in enumerate((finished, other))]


def listed(runs: list[Path]) -> str:
    return f"run=[{','.join(map(str, runs))}]"


def test_a_split_gets_the_mean_of_the_members_probabilities(pair: list[Path]) -> None:
    result = call("evaluate.py", listed(pair), "split=test", "policy.safe_class=safe")
    assert result.code == 0, result.stderr
    ensemble = load_run(pair)
    assert ensemble.folder.parent.parent in pair and ensemble.policy_path.exists()
    written = table(ensemble.folder / "evaluations" / "test" / "predictions.csv")
    alone = [table(run / "predictions_test.csv") for run in pair]
    assert list(written["path"]) == list(alone[0]["path"])
    mean = np.mean([one[CLASSES].to_numpy() for one in alone], axis=0)
    np.testing.assert_allclose(written[CLASSES].to_numpy(), mean, atol=1e-7)
    about = results(ensemble.folder / "evaluations" / "test")["about"]
    assert about["model"] == ensemble.identity and len(about["members"]) == 2
    assert not (pair[0] / "policy.json").exists()  # the policy is the ensemble's


def test_members_are_calibrated_first(pair: list[Path]) -> None:
    before = load_run(pair)
    assert call("evaluate.py", f"run={pair[0]}", "split=val", "policy.safe_class=safe").code == 0
    after = load_run(pair[::-1])
    assert isinstance(after, Ensemble) and after.identity != before.identity
    policy = load_policy(pair[0] / "policy.json", CLASSES, load_run(pair[0]).identity)
    assert sorted((run.temperature for run in after.members), key=str) == sorted([policy.temperature, None], key=str)
    found = after.make_predictor().predict_split(after.videos(), "val")
    alone = [table(run / "predictions_val.csv")[CLASSES].to_numpy() for run in pair]
    mean = (calibrate(alone[0], policy.temperature) + alone[1]) / 2
    np.testing.assert_allclose(found.probabilities, mean, atol=1e-6)
    assert np.allclose(found.losses, -np.log(mean[np.arange(len(mean)), found.labels]), atol=1e-5)


def test_new_videos_get_it_too(pair: list[Path], demo_folder: Path, tmp_path: Path) -> None:
    video = next((demo_folder / "rtp" / "test" / "safe").iterdir())
    predict(listed(pair).removeprefix("run="), video, tmp_path / "out")  # type: ignore[arg-type]
    ensemble, (row,) = load_run(pair), rows_of(tmp_path / "out").to_dict("records")
    assert row["model"] == ensemble.identity
    alone = [load_run(run).predict(video) for run in pair]
    for name in CLASSES:
        assert float(row[name]) == pytest.approx(np.mean([one[name] for one in alone]), abs=1e-6)
    assert ensemble.predict(video) == pytest.approx({name: float(row[name]) for name in CLASSES}, abs=1e-6)
    assert load_run(pair[::-1]).identity == ensemble.identity
    more = call("predict.py", f"run={pair[0]}", f"input={video}", f"output={tmp_path / 'out'}")
    refused(more, "other-settings")


def edit(run: Path, split: str, to: str) -> None:
    """Says that the first video of a split was in another one."""

    def move(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[rows.index[rows["split"] == split][0], "split"] = to
        return rows

    change_manifest(run, move)


def test_what_a_member_was_trained_on_is_not_tested(pair: list[Path], demo_folder: Path) -> None:
    edit(pair[1], "test", to="train")
    refused(call("evaluate.py", listed(pair), "split=test"), "ensemble-splits")
    refused(call("evaluate.py", listed(pair), "split=test", f"data.source={demo_folder}"), "ensemble-leak")
    assert call("evaluate.py", listed(pair[:1]), "split=test").code == 0


def test_members_that_do_not_fit_together_are_refused(
    pair: list[Path], finished: Path, tiny: list[str], tmp_path: Path
) -> None:
    refused(call("evaluate.py", listed([pair[0], finished])), "ensemble-twice")
    refused(call("evaluate.py", listed([pair[0], tmp_path])), "[run]")
    config = pair[1] / "config.yaml"
    config.write_text(config.read_text().replace("classes: null", "classes: [safe, harmful, adult]"))
    refused(call("evaluate.py", listed(pair)), "ensemble-classes")
    result = train(*tiny, "trainer.max_epochs=1", "data.resolution=8", "figures=false", f"run_dir={tmp_path / 'small'}")
    assert result.code == 0, result.stderr
    with pytest.raises(UserError) as error:
        load_run([pair[0], tmp_path / "small"])
    assert error.value.code == "ensemble-store"
    refused(call("export.py", listed(pair)), "[run]")


def test_a_list_of_one_is_that_run(finished: Path) -> None:
    assert load_run([finished]).identity == load_run(finished).identity
    assert json.loads((finished / "metrics.json").read_text())  # still there, and nothing was written


def test_the_videos_of_all_members_are_left_out_of_a_selection(pair: list[Path], tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 10, 32, 32, 3), np.uint8)
    videos = [write_video(tmp_path / "in" / f"c{number}_1.mp4", frames[number]) for number in range(3)]
    for run, video in zip(pair, videos, strict=False):
        known = {"path": video.name, "sha256": hash_file(video)}
        change_manifest(run, lambda rows, known=known: pd.concat([rows, rows.head(1).assign(**known)]))
    result = call("select_videos.py", listed(pair), f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}")
    assert result.code == 0, result.stderr
    assert table(tmp_path / "out" / "selected.csv")["path"].tolist() == ["c2_1.mp4"]
