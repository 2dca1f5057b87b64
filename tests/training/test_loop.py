"""train.py end to end on a dozen small videos: what it leaves behind, and what repeats."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers.commands import train
from helpers.runs import (
    CLASSES,
    csv_source,
    evaluate,
    events,
    metrics_of,
    refused,
    same_weights,
    scalars,
    table,
    weights,
)
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vidcls.data.datamodule import VideoDataModule
from vidcls.data.manifest import MANIFEST_COLUMNS
from vidcls.data.sampling import select_frames
from vidcls.data.store import FrameStore
from vidcls.errors import UserError
from vidcls.training.checkpoint import build_model, build_preprocess, load_checkpoint
from vidcls.training.loop import build_module
from vidcls.training.module import VideoClassifier
from vidcls.training.spec import Normalisation

# ---- what a run leaves behind


def test_a_run_folder_holds_what_the_contract_says(finished: Path) -> None:
    files = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    expected = {"config.yaml", "manifest.csv", "manifest.csv.sha256", "metrics.json", "environment.json"}
    expected |= {"predictions_val.csv", "predictions_test.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    expected |= {"checkpoints/previous.ckpt", "reference.safetensors"}
    assert expected <= files
    top = {path.name for path in finished.iterdir()}
    assert top == {"history.csv"} | {name.partition("/")[0] for name in expected} | {"tensorboard", "figures"}
    assert not [name for name in files if Path(name).name.startswith(".")]


def test_the_config_is_resolved(finished: Path, demo_folder: Path) -> None:
    text = (finished / "config.yaml").read_text()
    assert "${" not in text and "???" not in text
    config = yaml.safe_load(text)
    assert config["run_dir"] == str(finished) and config["data"]["source"] == str(demo_folder)
    assert config["data"]["num_frames"] == 4 and config["trainer"]["max_epochs"] == 3


def test_the_environment_is_recorded(finished: Path) -> None:
    environment = json.loads((finished / "environment.json").read_text())
    assert torch.__version__.startswith(environment["versions"]["torch"])
    assert {"git_commit", "device"} <= set(environment)


def test_the_manifest_lists_every_video(finished: Path, demo_folder: Path) -> None:
    manifest = table(finished / "manifest.csv")
    assert list(manifest.columns) == MANIFEST_COLUMNS
    assert " ".join(MANIFEST_COLUMNS[:9]) == "path label split creator sha256 status reason decoder seconds"
    videos = sorted(path.relative_to(demo_folder).as_posix() for path in demo_folder.rglob("*.mp4"))
    assert manifest["path"].tolist() == videos
    for row in manifest.itertuples():
        assert f"/{row.split}/{row.label}/{row.creator}_" in f"/{row.path}"
    assert set(manifest["status"]) == {"ok"} and set(manifest["decoder"]) <= {"decord", "pyav"}


def test_metrics_have_every_figure(finished: Path) -> None:
    metrics = metrics_of(finished)
    assert list(metrics) == ["train", "val", "test", "timing", "parameters", "best_epoch"]
    manifest = table(finished / "manifest.csv")
    for split in ("train", "val", "test"):
        figures = metrics[split]
        assert {"accuracy", "macro_f1", "loss", "n", "per_class", "accuracy_ci95", "confusion"} <= set(figures)
        assert figures["n"] == (manifest["split"] == split).sum() == np.sum(figures["confusion"])
        assert list(figures["per_class"]) == CLASSES
        assert all(set(values) == {"precision", "recall", "f1", "support"} for values in figures["per_class"].values())
        low, high = figures["accuracy_ci95"]
        assert 0 <= low <= figures["accuracy"] <= high <= 1
    timing = {"ingest_seconds", "videos_decoded", "fit_seconds", "epoch_seconds", "clips_per_second"}
    timing |= {"data_wait_fraction"}
    assert set(metrics["timing"]) == timing | {"peak_memory_bytes"}
    assert all(metrics["timing"][name] >= 0 for name in timing)
    assert metrics["timing"]["peak_memory_bytes"] in (None, pytest.approx(10e9, abs=9.9e9))  # None: no telling here
    assert metrics["parameters"] > 0


@pytest.mark.parametrize("split", ["val", "test"])
def test_predictions_agree_with_metrics(finished: Path, split: str) -> None:
    predictions, figures = table(finished / f"predictions_{split}.csv"), metrics_of(finished)[split]
    assert list(predictions.columns) == ["path", "label", "predicted", *CLASSES]
    manifest = table(finished / "manifest.csv")
    rows = manifest[manifest["split"] == split]
    assert predictions["path"].tolist() == rows["path"].tolist()
    assert predictions["label"].tolist() == rows["label"].tolist()
    probabilities = predictions[CLASSES].to_numpy()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    assert predictions["predicted"].tolist() == [CLASSES[k] for k in probabilities.argmax(1)]
    assert (predictions["label"] == predictions["predicted"]).mean() == figures["accuracy"]
    truth = [CLASSES.index(label) for label in predictions["label"]]
    losses = -np.log(probabilities[range(len(truth)), truth])
    assert figures["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (truth, probabilities.argmax(1)), 1)
    assert figures["confusion"] == confusion.tolist()


@pytest.mark.parametrize("split", ["val", "test"])
def test_predictions_are_those_of_the_best_checkpoint(finished: Path, shared: Path, split: str) -> None:
    checkpoint = load_checkpoint(finished / "checkpoints" / "best.ckpt", CLASSES)
    spec = checkpoint.spec
    model, preprocess = build_model(spec), build_preprocess(spec)
    model.load_state_dict(checkpoint.model_weights)
    store = FrameStore(shared / "cache" / "store", spec.store)
    indices = select_frames(spec.store.stored_frames, spec.clip.num_frames, spec.clip.sampling)
    manifest = table(finished / "manifest.csv")
    hashes = manifest[manifest["split"] == split]["sha256"]
    frames = torch.from_numpy(np.stack([store.read(sha256, indices) for sha256 in hashes]))
    probabilities = model.eval()(preprocess.eval()(frames)).softmax(1).detach().numpy()
    written = table(finished / f"predictions_{split}.csv")[CLASSES].to_numpy()
    np.testing.assert_allclose(probabilities, written, atol=1e-6)


def test_best_is_the_epoch_of_the_lowest_validation_loss(finished: Path) -> None:
    curves = scalars(finished)["val/loss"]
    assert metrics_of(finished)["val"]["loss"] == pytest.approx(min(curves), rel=1e-5)
    last, best = (load_checkpoint(finished / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    assert last.raw["epoch"] == 2 and best.raw["epoch"] == int(np.argmin(curves))


def test_figures_are_not_blank(finished: Path) -> None:
    figures = {path.stem: matplotlib.image.imread(path) for path in (finished / "figures").iterdir()}
    assert {"learning_curves", "val_confusion", "test_confusion", "val_worst", "test_worst"} <= set(figures)
    for name, pixels in figures.items():
        assert min(pixels.shape[:2]) > 100 and pixels[..., :3].std() > 0.02, name


def test_the_dashboard_shows_the_run(finished: Path) -> None:
    log = events(finished)
    curves = scalars(finished)
    for tag in ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/macro_f1"):
        assert len(curves[tag]) == 3, tag
    assert curves["lr-AdamW"] == pytest.approx([1e-3] * 6)
    metrics = metrics_of(finished)
    for split in ("val", "test"):
        for figure in ("accuracy", "macro_f1", "loss", "auroc", "calibration_error"):
            assert curves[f"best/{split}_{figure}"][-1] == pytest.approx(metrics[split][figure], rel=1e-5)
    assert len(log.Images("val/confusion")) == 3
    assert {"final/test_confusion", "final/test_worst", "final/learning_curves"} <= set(log.Tags()["images"])
    plugin = log.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert plugin.plugin_name == "hparams"
    assert all(
        name.encode() in plugin.content for name in ("data.num_frames", "optim.lr", "model.lstm.hidden_size", "seed")
    )


def test_each_step_is_on_the_dashboard(finished: Path) -> None:
    log = events(finished)
    for tag in ("train/loss_step", "lr-AdamW"):
        assert [event.step for event in log.Scalars(tag)] == [0, 1, 2, 3, 4, 5], tag  # 6 videos in batches of 4


def test_the_terminal_says_how_it_went(finished: Path) -> None:
    printed = finished.with_suffix(".txt").read_text()
    assert "Found 12 videos" in printed
    assert re.search(r"│ test +│ 3 │", printed)
    assert str(finished) in printed
    network = sum(value.numel() for name, value in weights(finished).items() if not name.endswith("bias_hh_l0"))
    assert f"Training {network:,} parameters" in printed


# ---- what repeats, and what does not


def test_a_sweep_over_seeds_repeats_one_and_differs_in_the_other(
    finished: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = train("-m", *tiny, "seed=0,1", "hydra.sweep.dir=sweep")
    assert result.code == 0, result.stderr
    runs = [tmp_path / "sweep" / name for name in ("seed=0", "seed=1")]
    assert [yaml.safe_load((run / "config.yaml").read_text())["seed"] for run in runs] == [0, 1]
    assert all((run / "metrics.json").exists() and (run / "checkpoints" / "best.ckpt").exists() for run in runs)
    # The same seed repeats everything to the last bit: a job of a sweep is the run it would be alone.
    assert all(same_weights(weights(runs[0], name), weights(finished, name)) for name in ("last", "best"))
    assert (runs[0] / "predictions_val.csv").read_bytes() == (finished / "predictions_val.csv").read_bytes()
    assert (runs[0] / "history.csv").read_bytes() == (finished / "history.csv").read_bytes()
    assert not same_weights(weights(runs[0]), weights(runs[1]))
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}


def test_a_wrapped_zip_trains_as_its_folder_does(
    finished: Path, tiny: list[str], demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        for path in sorted(demo_folder.rglob("*.mp4")):
            archive.write(path, Path("wrapper", path.relative_to(demo_folder)))
        archive.writestr("__MACOSX/wrapper/._clip.mp4", b"leftover")
        archive.writestr("wrapper/.DS_Store", b"leftover")
    result = train(*tiny, "data.source=clips.zip")
    assert result.code == 0, result.stderr
    assert "Found 12 videos" in result.stdout and "ignored" in result.stdout
    (run,) = (tmp_path / "runs" / "train").iterdir()  # the default place
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]{4,}", run.name)
    assert same_weights(weights(run), weights(finished))


@pytest.mark.pictures
def test_imbalance_no_test_split_and_a_bad_video(tiny: list[str], demo_folder: Path, tmp_path: Path) -> None:
    videos = csv_source(demo_folder, tmp_path / "videos.csv", lambda split, label: split != "test")
    lines = videos.read_text().splitlines(keepends=True)
    safe = next(number for number, line in enumerate(lines) if line.endswith(",safe,train\n"))
    (tmp_path / "bad_1.mp4").write_bytes(b"this is no video at all" * 100)
    lines[safe] = "bad_1.mp4,safe,train\n"  # one of two
    videos.write_text("".join(lines))
    run = tmp_path / "run"
    result = train(*tiny, f"data.source={videos}", "loss.class_weights=balanced", f"run_dir={run}")
    assert result.code == 0, result.stderr
    assert re.search(r"undecodable bad_1.mp4: \S", result.stdout) and "No test split" in result.stdout
    manifest = table(run / "manifest.csv").set_index("path")
    bad = manifest.loc["bad_1.mp4"]
    assert (bad["status"], bad["decoder"], len(manifest)) == ("undecodable", "", 9) and bad["reason"]
    metrics = metrics_of(run)
    assert metrics["train"]["n"] == 5 and metrics["val"]["n"] == 3 and metrics["test"] is None
    assert metrics["train"]["per_class"]["safe"]["support"] == 1
    assert not (run / "predictions_test.csv").exists()


def module_of(finished: Path, manifest: pd.DataFrame, *overrides: str) -> VideoClassifier:
    """The module that the finished run would have with other settings and another manifest."""
    cfg = OmegaConf.merge(OmegaConf.load(finished / "config.yaml"), OmegaConf.from_dotlist(["run_dir=new", *overrides]))
    assert isinstance(cfg, DictConfig)
    datamodule = VideoDataModule(instantiate(cfg.data))
    datamodule.load_manifest(manifest)
    return build_module(cfg, datamodule)


def test_class_weights_are_counted_in_the_training_split(finished: Path) -> None:
    manifest = table(finished / "manifest.csv")
    assert module_of(finished, manifest).class_weights is None
    manifest.loc[manifest.index[manifest["path"].str.contains("train/safe")][0], "status"] = "undecodable"
    balanced = module_of(finished, manifest, "loss.class_weights=balanced").class_weights
    assert balanced is not None and balanced.tolist() == pytest.approx([5 / 6, 5 / 6, 5 / 3])


def test_a_class_without_training_videos_cannot_be_balanced(finished: Path) -> None:
    manifest = table(finished / "manifest.csv")
    manifest = manifest[~manifest["path"].str.contains("train/safe")]
    with pytest.raises(UserError, match="none of safe"):
        module_of(finished, manifest, "loss.class_weights=balanced")


def test_a_limited_run_says_so_and_has_no_metrics_of_what_it_did_not_predict(tiny: list[str], tmp_path: Path) -> None:
    """One batch (1, where 1.0 is all) of val and train, and nothing of test, whose metrics would be those of val."""
    limits = {"limit_train_batches": 1, "limit_val_batches": 1, "limit_test_batches": 0}
    given = [f"+trainer.{name}={value}" for name, value in limits.items()]
    result = train(*tiny, *given, "trainer.max_epochs=1", "data.batch_size=2", f"run_dir={tmp_path / 'run'}")
    assert result.code == 0, result.stderr
    metrics = metrics_of(tmp_path / "run")
    assert metrics["limited"] == limits
    assert (metrics["val"]["n"], metrics["train"], metrics["test"]) == (2, None, None)
    assert (
        not list((tmp_path / "run").glob("predictions_*")) and not (tmp_path / "run" / "reference.safetensors").exists()
    )


def test_the_best_epoch_is_that_of_best_ckpt_whatever_chooses_it(tiny: list[str], tmp_path: Path) -> None:
    """The last here, which is not that of the lowest loss."""
    run, latest = tmp_path / "run", ["callbacks.best.monitor=epoch", "callbacks.best.mode=max"]
    result = train(*tiny, *latest, "trainer.max_epochs=3", f"run_dir={run}")
    assert result.code == 0, result.stderr
    best, losses = metrics_of(run)["best_epoch"], table(run / "history.csv").set_index("epoch")["val/loss"]
    assert best == 3 != losses.idxmin() and losses[best] == pytest.approx(metrics_of(run)["val"]["loss"])
    assert "Metrics of the best epoch (3, by epoch)" in result.stdout


def test_metrics_are_those_of_the_weights_in_best_ckpt(tiny: list[str], tmp_path: Path) -> None:
    """Validated after two of three batches, they are saved after the third."""
    run = tmp_path / "run"
    result = train(*tiny, "data.batch_size=2", "+trainer.val_check_interval=2", f"run_dir={run}")
    assert result.code == 0, result.stderr
    assert len(table(run / "manifest.csv").query("split == 'train'")) == 6
    tested = metrics_of(run)["val"]
    evaluate(run, "split=val")
    evaluated = json.loads((run / "evaluations" / "val" / "metrics.json").read_text())["val"]
    assert {name: evaluated[name] for name in tested} == tested


def test_epochs_without_a_validation_have_no_metrics_of_another(tiny: list[str], tmp_path: Path) -> None:
    run, seldom = tmp_path / "run", "+trainer.check_val_every_n_epoch=2"
    assert train(*tiny, seldom, "trainer.max_epochs=3", f"run_dir={run}").code == 0
    assert table(run / "history.csv").set_index("epoch")["val/loss"].replace("", None).notna().tolist() == [
        False,
        True,
        False,
    ]
    never = train(*tiny, seldom, "trainer.max_epochs=1", f"run_dir={tmp_path / 'never'}")
    refused(never, "[never-validated]")


def test_early_stopping_and_gradient_clipping(finished: Path, tiny: list[str], tmp_path: Path) -> None:
    still = ["optim.lr=0.0", "callbacks=early_stopping", "callbacks.early_stopping.patience=2", "trainer.max_epochs=9"]
    assert train(*tiny, *still, f"run_dir={tmp_path / 'still'}").code == 0
    assert len(scalars(tmp_path / "still")["val/loss"]) == 3  # the first epoch, and two that were no better
    clipped = ["trainer.gradient_clip_val=1e-9"]
    assert train(*tiny, *clipped, f"run_dir={tmp_path / 'clipped'}").code == 0
    start, end, clipped_end = (weights(folder) for folder in (tmp_path / "still", finished, tmp_path / "clipped"))
    moved, clipped_moved = (max(float((w[n] - start[n]).abs().max()) for n in start) for w in (end, clipped_end))
    # Adam moves a weight by lr * g / (|g| + eps), eps = 1e-7: gradients of at most 1e-9 move it by a hundredth of lr.
    assert 1e-3 < moved < 1e-2 and 0 < clipped_moved < 1e-4


# ---- optimisers and schedulers of others


def test_other_loggers_and_optimisers(tiny: list[str], tmp_path: Path) -> None:
    sgd = ["optim._target_=torch.optim.SGD", "+optim.momentum=0.9"]
    step = "optim.schedule={_target_: torch.optim.lr_scheduler.StepLR, step_size: 1}"
    result = train(*tiny, *sgd, step, "logger=csv", f"run_dir={tmp_path / 'csv'}")
    assert result.code == 0, result.stderr
    logged = pd.read_csv(tmp_path / "csv" / "csv" / "metrics.csv")
    rates = logged["lr-SGD"].dropna().drop_duplicates().tolist()
    assert rates == pytest.approx([1e-3, 1e-4, 1e-5]) and logged["train/loss"].notna().sum() == 3
    assert not (tmp_path / "csv" / "tensorboard").exists()
    assert train(*tiny, "~logger", "trainer.max_epochs=1", f"run_dir={tmp_path / 'none'}").code == 0


def test_a_config_yaml_runs_again(finished: Path) -> None:
    """What a run wrote down is enough to build its network again."""
    cfg = OmegaConf.load(finished / "config.yaml")
    checkpoint = load_checkpoint(finished / "checkpoints" / "best.ckpt")
    assert OmegaConf.to_container(cfg.model) == checkpoint.spec.model
    assert OmegaConf.to_container(cfg.normalise) == {"mean": None, "std": None}  # as the weights, of which it has none
    assert checkpoint.spec.normalisation == Normalisation((0.0,) * 3, (1.0,) * 3)
