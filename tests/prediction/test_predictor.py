"""Loaded runs and the Predictor: devices, precision, full batches, and models of other packages."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import CLASSES, table

from vidcls.errors import UserError
from vidcls.prediction.loading import load_run
from vidcls.prediction.predictor import PRECISIONS, choose_device
from vidcls.prediction.run import LoadedRun


@pytest.fixture
def run(finished: Path) -> LoadedRun:
    return load_run(finished)


def stacks(run: LoadedRun, count: int) -> list[np.ndarray]:
    size = (run.spec.store.stored_frames, run.spec.store.stored_resolution, run.spec.store.stored_resolution, 3)
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, dtype=np.uint8) for _ in range(count)]


def test_what_a_run_is(run: LoadedRun, finished: Path) -> None:
    assert run.folder == finished and run.classes == CLASSES and len(run.manifest) == 12
    assert len(run.identity) == 12 and run.step > 0 and not run.model.training
    assert run.policy_path == finished / "policy.json"


@pytest.mark.parametrize("missing", ["config.yaml", "manifest.csv", "checkpoints/best.ckpt"])
def test_a_folder_that_is_no_run(missing: str, tmp_path: Path) -> None:
    for name in ("config.yaml", "manifest.csv", "checkpoints/best.ckpt"):
        if name != missing:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
    with pytest.raises(UserError) as error:
        load_run(tmp_path)
    assert error.value.code == "run"


def test_probabilities_do_not_depend_on_the_batch(run: LoadedRun) -> None:
    predictor, videos = run.make_predictor("cpu"), stacks(run, 10)
    together = predictor(videos)
    assert together.shape == (10, 3)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(np.concatenate([predictor([video]) for video in videos]), together)
    assert np.array_equal(predictor(videos[::-1])[::-1], together)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_repeats_the_runs_own_test(run: LoadedRun, finished: Path, split: str) -> None:
    videos = run.videos()
    videos.load_manifest(run.manifest)
    found = run.make_predictor("cpu").predict_split(videos, split)
    expected = table(finished / f"predictions_{split}.csv")
    assert np.array_equal(found.probabilities, expected[CLASSES].to_numpy(np.float32))
    assert [CLASSES[label] for label in found.labels] == expected["label"].tolist()


# ---- devices and precision


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_each_precision_of_lightnings(run: LoadedRun, precision: str) -> None:
    videos = stacks(run, 3)
    expected = run.make_predictor("cpu")(videos)
    run.config.trainer.precision = precision
    run.model.float()
    differs = pytest.warns(UserWarning, match="bfloat16") if precision in ("16", "16-mixed") else nullcontext()
    with differs:
        found = run.make_predictor("cpu")(videos)
    np.testing.assert_allclose(found, expected, atol=1e-7 if "32" in precision else 0.02)


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert choose_device("auto") == torch.device("cpu")
        for accelerator in ("gpu", "cuda", "mps"):
            with pytest.raises(UserError) as error:
                choose_device(accelerator)
            assert error.value.code == "no-gpu"
    with pytest.raises(UserError) as error:
        choose_device("abacus")
    assert error.value.code == "accelerator"


# ---- models of other packages


def test_a_model_of_another_package_needs_trust(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidcls.training.checkpoint import build_model

    (tmp_path / "own_nets.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = replace(run.spec, model={"_target_": "own_nets.Net"})
    with pytest.raises(UserError) as error:
        build_model(spec)
    assert error.value.code == "untrusted-model"
    with pytest.raises(Exception, match="imported"):
        build_model(spec, trust=["own_nets"])
