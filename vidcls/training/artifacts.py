"""What a training run leaves behind: metrics.json, predictions, plots, the dashboard and a closing table."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from tensorboard.plugins.hparams.summary_v2 import hparams_pb

from vidcls.data.datamodule import VideoDataModule
from vidcls.data.options import SPLITS
from vidcls.files import write_json
from vidcls.metrics.predictions import Predictions
from vidcls.models.classifiers import Classifier
from vidcls.plots.run_plots import confusion_figure, learning_curves_figure
from vidcls.plots.style import save_figures
from vidcls.training.callbacks import History, Timing, find_callback, tensorboard_loggers
from vidcls.training.feature_cache import sample_vectors
from vidcls.training.label_report import write_label_issues
from vidcls.training.logistic import LogisticRegression
from vidcls.training.module import VideoClassifier
from vidcls.training.records import log_picture, worst_errors_figure, write_predictions
from vidcls.training.reference import fit_reference, write_reference

REFERENCE_VIDEOS = 2000


@rank_zero_only
def write_results(
    cfg: DictConfig,
    trainer: L.Trainer,
    datamodule: VideoDataModule,
    predictions: dict[str, Predictions],
    console: Console,
) -> float:
    """Writes all results of a finished run, metrics.json last, prints a summary, and returns the val ``cfg.objective``.

    That is NaN if it is not defined. A run with limited splits (``trainer.limit_val_batches`` and the like) is marked
    in metrics.json as ``limited``, and has no predictions of its limited splits; ``trainer.fast_dev_run`` has no
    results.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        console.print("trainer.fast_dev_run: training, validation and test work; no results were written")
        return math.nan
    folder, classes = Path(cfg.run_dir), datamodule.classes
    history, timing = find_callback(trainer, History), find_callback(trainer, Timing)
    metrics: dict[str, Any] = {
        split: predictions[split].summary(classes) if split in predictions else None for split in SPLITS
    }
    stats = {"ingest_seconds": datamodule.stats.seconds, "videos_decoded": datamodule.stats.decoded}
    metrics["timing"] = {**stats, **timing.summary()}
    module = trainer.lightning_module
    assert isinstance(module, VideoClassifier)
    metrics |= {"parameters": module.num_trainable, "best_epoch": history.best_epoch}
    drawn = cfg.get("figures", True)  # runs of earlier versions do not say

    if module.oof_predictions is not None:
        fitted = find_callback(trainer, LogisticRegression)
        metrics |= {"logistic_regression": fitted.summary, "refit": module.refit}
        rows = pd.concat([datamodule.rows(split) for split in module.fitted_splits], ignore_index=True)
        write_predictions(folder / "predictions_oof.csv", rows, module.oof_predictions, classes)
        probabilities = module.oof_predictions.probabilities
        write_label_issues(folder, rows, probabilities, classes, datamodule.store if drawn else None)

    defaults = {"limit_train_batches": 1.0, "limit_val_batches": 1.0, "limit_test_batches": 1.0, "overfit_batches": 0.0}
    given = {name: getattr(trainer, name) for name in defaults}
    # 1.0 is all batches, 1 is one.
    limited = {n: value for n, value in given.items() if value != defaults[n] or (value == 1 and type(value) is int)}
    if limited:
        metrics["limited"] = limited
    whole = [split for split in predictions if len(predictions[split].labels) == len(datamodule.rows(split))]

    figures = {"learning_curves": learning_curves_figure(history.curves, history.best_epoch)} if drawn else {}
    for split in ("val", "test"):
        if split in whole:
            write_predictions(folder / f"predictions_{split}.csv", datamodule.rows(split), predictions[split], classes)
        if split in whole and drawn:
            title = f"{split}: accuracy {metrics[split]['accuracy']:.3f} of {metrics[split]['n']} videos"
            figures[f"{split}_confusion"] = confusion_figure(metrics[split]["confusion"], classes, title)
            figures[f"{split}_worst"] = worst_errors_figure(datamodule, split, predictions[split])
    _log(trainer, cfg, metrics, save_figures(figures, folder / "figures"))
    if not limited:
        _write_reference(cfg, trainer, datamodule)
    write_json(folder / "metrics.json", metrics)
    objective = metrics["val"][cfg.objective]
    if cfg.test:
        print_summary(metrics, str(cfg.callbacks.best.get("monitor")), folder, console)
    else:
        value = objective if objective is None else round(float(objective), 4)
        console.print(f"val {cfg.objective} {value}: {folder}", highlight=False, markup=False, soft_wrap=True)
    return math.nan if objective is None else float(objective)


def _write_reference(cfg: DictConfig, trainer: L.Trainer, datamodule: VideoDataModule) -> None:
    # Of held-out videos: a trained encoder maps the videos that it was trained on unlike any others.
    module = trainer.lightning_module
    assert isinstance(module, VideoClassifier)
    if type(module.model) is not Classifier or (cfg.compile and not module.model.encoder.is_frozen):
        return  # custom and compiled networks do not expose the input of their last layer
    splits = ("val",) if module.oof_predictions is None else module.fitted_splits
    found = sample_vectors(trainer, module, datamodule, splits, REFERENCE_VIDEOS)
    write_reference(Path(cfg.run_dir), fit_reference(*found))


def hyperparameters(cfg: DictConfig) -> dict[str, bool | int | float | str]:
    """The options for TensorBoard's HParams tab, with flat ``group.option`` names; in a sweep, the swept ones."""
    try:  # options that are the same for all jobs would push the metrics out of sight
        options: dict[str, Any] = dict(json.loads(Path(cfg.run_dir, "job.json").read_text())["knobs"])
    except (OSError, ValueError, LookupError, TypeError):  # no job of a sweep
        tree = {
            "seed": cfg.seed,
            "data": {name: cfg.data[name] for name in ("source", "num_frames", "resolution", "batch_size", "sampling")},
            "trainer": {name: cfg.trainer[name] for name in ("max_epochs", "precision")},
            **{name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("model", "augment", "optim", "loss")},
        }
        flat = pd.json_normalize(tree).to_dict("records")[0]
        options = {str(key): value for key, value in flat.items() if not str(key).endswith("_")}  # those are Hydra's
        options["model"] = cfg.model["_target_"].rsplit(".", 1)[-1]
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in options.items()}


def _log(trainer: L.Trainer, cfg: DictConfig, metrics: dict[str, Any], pictures: dict[str, Path]) -> None:
    logger = next(iter(tensorboard_loggers(trainer)), None)
    if logger is None:
        return
    writer = logger.experiment
    for name, path in pictures.items():
        log_picture(writer, f"final/{name}", path, trainer.global_step)
    # By default the tab shows the first five metrics by name: the "best/" ones, also for jobs without test metrics.
    for split in ("val", "test"):
        for name in ("accuracy", "auroc", "calibration_error", "loss", "macro_f1"):
            if metrics[split] is not None and metrics[split][name] is not None:
                writer.add_scalar(f"best/{split}_{name}", metrics[split][name], trainer.global_step)
    # log_hyperparams would declare columns, and TensorBoard use the first run's columns for all runs. Without a
    # declaration it shows the options of all runs; without a trial id it names rows by run.
    writer._get_file_writer().add_summary(hparams_pb(hyperparameters(cfg), trial_id=""), trainer.global_step)
    logger.save()


def print_summary(metrics: dict[str, Any], monitor: str, folder: Path, console: Console) -> None:
    """Prints the metrics of each split in the epoch that ``monitor`` chose, the speed, and where the results are."""
    fitted = metrics.get("logistic_regression")
    epoch = f"Metrics of the best epoch ({metrics['best_epoch']}, by {monitor})"
    table = Table(title=f"Metrics (C={fitted['C']:g})" if fitted else epoch, title_justify="left")
    for column in ("split", "n", "accuracy (95 % CI)", "macro F1", "AUROC", "ECE", "loss"):
        table.add_column(column, justify="left" if column == "split" else "right", no_wrap=True)
    out_of_fold = {"out-of-fold": fitted["out_of_fold"]} if fitted else {}
    for split, of_split in ({split: metrics[split] for split in SPLITS} | out_of_fold).items():
        if of_split is None:
            table.add_row(split, "0", *["-"] * 5)
            continue
        low, high = of_split["accuracy_ci95"]
        numbers = (of_split[name] for name in ("macro_f1", "auroc", "calibration_error", "loss"))
        table.add_row(
            split,
            str(of_split["n"]),
            f"{of_split['accuracy']:.3f} ({low:.2f} to {high:.2f})",
            *("-" if number is None else f"{number:.3f}" for number in numbers),
        )
    console.print(table)
    if metrics.get("refit"):
        console.print("The network is fitted to val too: the metrics of val are those of its out-of-fold predictions.")
    elif metrics["test"] is None and fitted is None:
        console.print("No test split: the validation metrics chose the epoch and are therefore optimistic.")
    timing = metrics["timing"]
    console.print(
        f"Trained at {timing['clips_per_second']:.1f} clips/s, {timing['epoch_seconds']:.1f} s per epoch, "
        f"{timing['data_wait_fraction']:.1%} of it waiting for data."
    )
    console.print(f"Results: {folder}", markup=False, soft_wrap=True)
    console.print("  metrics.json  predictions_*.csv  manifest.csv  figures/  checkpoints/best.ckpt")
    if (folder / "tensorboard").is_dir():
        shown = f"tensorboard --logdir {shlex.quote(str(folder))}"
        if Path("runs").absolute() in folder.absolute().parents:
            shown = "make tensorboard (or tensorboard --logdir runs)"
        console.print(f"  Dashboard: {shown}", markup=False, soft_wrap=True)
