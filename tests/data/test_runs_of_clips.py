"""Runs on several clips of each video, from training to the exported network."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import call, train, train_once
from helpers.frames import numbered
from helpers.runs import CLASSES, assert_same_result, metrics_of, predict, refused, rows_of, table
from helpers.videos import write_video

from vidcls.data.dataset import SampleIndex
from vidcls.data.decoding.frames import decode
from vidcls.data.decoding.result import DECODERS
from vidcls.data.sampling import StoreSpec
from vidcls.exporters import METADATA_FILE
from vidcls.prediction.loading import load_run
from vidcls.prediction.run import LoadedRun

# ---- end to end

SPEC = StoreSpec(8, 16, "uniform", 2.5, 3)  # of the drawn videos three are shorter
OPTIONS = ["data.clip_seconds=2.5", "data.num_clips=3", "data.store.num_frames=8", "data.temporal_jitter=true"]
OPTIONS += ["trainer.max_epochs=4", "figures=false"]


@pytest.fixture(scope="session")
def clipped(shared: Path, tiny: list[str]) -> Path:
    """The folder of a run with three clips of 2.5 s per video, which nothing interrupted."""
    return train_once(shared, "clipped", *tiny, *OPTIONS)


@pytest.fixture
def trained(clipped: Path) -> LoadedRun:
    return load_run(clipped)


def test_the_checkpoint_says_which_clips(trained: LoadedRun) -> None:
    assert (trained.spec.clip.clip_seconds, trained.spec.clip.num_clips) == (2.5, 3)
    lengths = trained.manifest["seconds"].astype(float)
    assert bool(lengths.min() < 2.5 < lengths.max())


def test_metrics_are_of_averaged_probabilities(clipped: Path, trained: LoadedRun, demo_folder: Path) -> None:
    predictor = trained.make_predictor()
    predictions = table(clipped / "predictions_test.csv").set_index("path")
    spread = 0.0
    for path, row in predictions.iterrows():
        frames, _ = decode(demo_folder / str(path), SPEC, DECODERS)
        clips = np.concatenate([predictor([clip]) for clip in np.split(frames, 3)])  # each alone
        np.testing.assert_allclose(clips.mean(axis=0), row[CLASSES].to_numpy(float), rtol=0, atol=1e-6)
        assert row["predicted"] == CLASSES[int(clips.mean(axis=0).argmax())]
        spread = max(spread, float(np.ptp(clips, axis=0).max()))
    assert spread > 1e-4  # clips differ
    losses = [-math.log(row[row["label"]]) for _, row in predictions.iterrows()]
    assert metrics_of(clipped)["test"]["loss"] == pytest.approx(np.mean(losses), abs=1e-6)


def test_the_loss_is_that_of_the_averaged_probability(trained: LoadedRun) -> None:
    """Of a network so sure of each clip that the clips' own mean loss is far off."""
    with torch.no_grad():
        trained.model.output.weight *= 400
    data = trained.videos()
    data.load_manifest(trained.manifest)
    found = trained.make_predictor().predict_split(data, "train")
    assert len(found.labels) == 6
    frames = torch.stack([data.dataset("train")[SampleIndex(row, seed=0)].frames for row in range(6)])
    with torch.inference_mode():
        p = torch.stack([trained.model(trained.preprocess(frames[:, m])).softmax(dim=1) for m in range(3)])  # [M, N, K]
    expected = p.mean(dim=0)
    np.testing.assert_allclose(found.probabilities, expected.numpy(), rtol=0, atol=1e-6)
    own = expected[range(6), found.labels]
    np.testing.assert_allclose(found.losses, -own.log().numpy(), rtol=1e-4, atol=1e-6)
    assert float((-p.log().mean(dim=0)[range(6), found.labels] + own.log()).abs().max()) > 0.05


def test_evaluation_repeats_the_figures_to_the_last_digit(clipped: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(clipped, tmp_path / "run"))
    result = call("evaluate.py", f"run={run}", "split=test", f"cache_dir={tmp_path / 'empty'}")
    assert result.code == 0, result.stderr
    again = json.loads((run / "evaluations" / "test" / "metrics.json").read_text())["test"]
    before = metrics_of(run)["test"]
    assert {name: again[name] for name in before} == before
    assert (run / "evaluations" / "test" / "predictions.csv").read_bytes() == (
        run / "predictions_test.csv"
    ).read_bytes()


def test_prediction_repeats_the_figures_to_the_last_digit(
    clipped: Path, trained: LoadedRun, demo_folder: Path, tmp_path: Path
) -> None:
    """Short videos and windows of long ones come mixed in what is classified at once."""
    source = Path(shutil.copytree(demo_folder, tmp_path / "in"))
    long = write_video(source / "long.mp4", numbered(30), fps=4)  # 7.5 s
    predict(clipped, source, tmp_path / "out")
    found = rows_of(tmp_path / "out")
    for split in ("val", "test"):
        tested = pd.read_csv(clipped / f"predictions_{split}.csv", dtype=str).set_index("path")
        assert len(tested) == 3
        for path, row in tested.iterrows():
            assert found.loc[path, CLASSES].tolist() == row[CLASSES].tolist()
            assert found.loc[path, "predicted"] == row["predicted"] and found.loc[path, "windows"] == "1"
    # Windows are as long as a clip, at half its length from one to the next, and each is one clip.
    timeline = pd.read_parquet(tmp_path / "out" / "timelines.parquet").query("path == 'long.mp4'")
    assert timeline["start_seconds"].tolist() == [0.0, 1.25, 2.5, 3.75, 5.0]
    assert (timeline["end_seconds"] - timeline["start_seconds"]).tolist() == [2.5] * 5
    frames, _ = decode(long, StoreSpec(8, 16, "uniform", 2.5, 5), ("pyav",))
    expected = trained.make_predictor()(np.split(frames, 5))
    assert np.array_equal(timeline[CLASSES].to_numpy(np.float32), expected)


def test_the_terminal_says_how_videos_are_classified(clipped: Path, demo_folder: Path, tmp_path: Path) -> None:
    one = next((demo_folder / "rtp" / "test").rglob("*.mp4"))
    printed = " ".join(predict(clipped, one, tmp_path / "out").stdout.split())
    assert "by the mean of 3 clips of 2.5 s" in printed and "windows of 2.5 s every 1.25 s" in printed


def test_an_export_takes_one_clip(clipped: Path, trained: LoadedRun, demo_folder: Path, tmp_path: Path) -> None:
    """Its user averages, as the metadata say."""
    file = tmp_path / "model.pt2"
    result = call("export.py", f"run={clipped}", f"output={file}", "format=torch_export")
    assert result.code == 0, result.stderr
    metadata = {METADATA_FILE: ""}
    program = torch.export.load(file, extra_files=metadata).module()
    about = json.loads(metadata[METADATA_FILE])
    assert (about["clip_seconds"], about["num_clips"]) == ("2.5", "3")
    row = table(clipped / "predictions_test.csv").iloc[0]
    frames, _ = decode(demo_folder / row["path"], SPEC, DECODERS)
    clips = frames.reshape(3, 8, 16, 16, 3)[:, [1, 3, 5, 7]]  # the later of each two
    found = program(torch.from_numpy(np.ascontiguousarray(clips))).detach().numpy().mean(axis=0)
    np.testing.assert_allclose(found, row[CLASSES].to_numpy(float), rtol=0, atol=1e-5)


def test_a_resumed_run_draws_the_same_clips(clipped: Path, tiny: list[str], tmp_path: Path) -> None:
    """Two epochs, then two more: as if the process had been killed between them."""
    run = tmp_path / "run"
    assert train(*tiny, *OPTIONS, "trainer.max_epochs=2", f"run_dir={run}").code == 0
    (run / "metrics.json").unlink()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("max_epochs: 2", "max_epochs: 4"))
    result = train(f"resume={run}")
    assert result.code == 0, result.stderr
    assert_same_result(run, clipped)


def test_training_batches_hold_one_clip_of_each_video_and_others_all(trained: LoadedRun) -> None:
    data = trained.videos()
    data.load_manifest(trained.manifest)
    object.__setattr__(data.options, "temporal_jitter", False)
    videos, loader = data.dataset("train"), data.loader("train", train=True)
    drawn = []
    for epoch in range(8):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            assert batch.frames.shape[1:] == (4, 16, 16, 3)
            for frames, row in zip(batch.frames.numpy(), batch.index.tolist(), strict=True):
                drawn.append([bool(np.array_equal(frames, videos.frames(row, clip))) for clip in range(3)])
    assert len(drawn) == 8 * len(videos) and all(any(one) for one in drawn)
    assert all(any(one[clip] and sum(one) == 1 for one in drawn) for clip in range(3))
    for batch in data.loader("train", train=False):
        assert batch.frames.shape[1:] == (3, 4, 16, 16, 3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.num_clips=3"], ["[data.num_clips]"]),
        (["data.clip_seconds=0"], ["[data.clip_seconds]"]),
    ],
)
def test_the_command_line_refuses_in_one_line(
    tiny: list[str], tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    refused(train(*tiny, *overrides, f"run_dir={tmp_path / 'run'}"), *words)
