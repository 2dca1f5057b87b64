"""Run folders of format 2, as they were before the package had rooms, still load and give the same probabilities."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import train
from helpers.runs import CLASSES, evaluate, metrics_of, predict, rows_of, table

from vidcls.data.sampling import ClipSpec, StoreSpec
from vidcls.files import hash_file
from vidcls.prediction.loading import load_run

FIXTURES = Path(__file__).parents[1] / "fixtures"
Copy = Callable[[str], Path]


@pytest.fixture
def copy(tmp_path: Path, demo_folder: Path, shared: Path) -> Copy:
    """Copies an old run folder, which says that it lies at another place; its videos are those of the small demo."""
    manifest = table(FIXTURES / "old_run" / "manifest.csv")
    if hash_file(demo_folder / manifest["path"][0]) != manifest["sha256"][0]:
        pytest.skip("this version of FFmpeg encodes the demo videos to other bytes")

    def copied(name: str) -> Path:
        run = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
        config = run / "config.yaml"
        text = config.read_text().replace("/data/demo", str(demo_folder)).replace(": /cache", f": {shared / 'cache'}")
        config.write_text(text.replace("accelerator: auto", "accelerator: cpu"))
        return run

    return copied


def probabilities(path: Path) -> np.ndarray:
    return table(path)[CLASSES].to_numpy(float)


def test_what_a_checkpoint_says(copy: Copy) -> None:
    run = load_run(copy("old_run"))
    assert run.classes == CLASSES and run.step == 4 and run.spec.batch_size == 4
    assert run.spec.clip == ClipSpec(4, 16) and run.spec.store == StoreSpec(4, 16, "uniform")
    assert run.config.callbacks.last.dirpath == str(run.folder / "checkpoints")
    assert run.config.optim._target_ == "torch.optim.AdamW"
    assert load_run(copy("old_encoder_head")).spec.clip == ClipSpec(4, 16, "uniform", 1, 2)


@pytest.mark.parametrize("name", ["old_run", "old_encoder_head"])
def test_evaluation_and_prediction_repeat_the_test(name: str, copy: Copy, demo_folder: Path, tmp_path: Path) -> None:
    run = copy(name)
    expected = table(run / "predictions_test.csv")
    evaluate(run, "split=test")
    found = probabilities(run / "evaluations" / "test" / "predictions.csv")
    np.testing.assert_allclose(found, probabilities(run / "predictions_test.csv"), rtol=0, atol=1e-6)
    predict(run, demo_folder / "rtp" / "test", tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    for row in expected.to_dict("records"):
        predicted = next(rows.loc[path] for path in rows.index if row["path"].endswith(path))
        assert [float(predicted[label]) for label in CLASSES] == pytest.approx([row[c] for c in CLASSES], abs=1e-6)


def test_an_old_run_can_be_continued(copy: Copy) -> None:
    """Its best epoch was its last one, so best.ckpt stands for both."""
    run = copy("old_run")
    shutil.copy(run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt")
    before, metrics = table(run / "history.csv"), metrics_of(run)
    result = train(f"resume={run}")
    assert result.code == 0, result.stderr
    assert {split: metrics_of(run)[split] for split in ("train", "val", "test")} == {
        split: metrics[split] for split in ("train", "val", "test")
    }
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("max_epochs: 2", "max_epochs: 3"))
    result = train(f"resume={run}")
    assert result.code == 0, result.stderr
    history = table(run / "history.csv")
    assert len(history) == 3 and history.iloc[:2].equals(before)
