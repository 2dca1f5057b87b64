"""A training run: its data module, its module, its training, its test."""

import csv
import logging
import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from vidcls.cli import launched_processes
from vidcls.data.datamodule import VideoDataModule
from vidcls.data.options import SPLITS
from vidcls.data.preparation import PreparedVideos
from vidcls.errors import UserError, one_line
from vidcls.metrics.predictions import Predictions
from vidcls.training.callbacks import History, find_callback
from vidcls.training.checkpoint import build_model, build_preprocess, load_checkpoint, load_last
from vidcls.training.checkpoint_writer import AtomicCheckpoints
from vidcls.training.feature_cache import compute_features
from vidcls.training.launch import is_rank_zero, show_life, tell_prepared, wait_for_first
from vidcls.training.logistic_options import is_logistic
from vidcls.training.module import VideoClassifier
from vidcls.training.processes import SameRun
from vidcls.training.run_config import check_unchanged, lasting_settings
from vidcls.training.run_folder import best_checkpoint, manifest_path, write_environment
from vidcls.training.spec import Normalisation, RunSpec, fitted_splits

# What a process waits for others before it ends: they may have gone without a word, as a machine without power.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


def build_datamodule(cfg: DictConfig, prepared: PreparedVideos | None = None) -> VideoDataModule:
    """The videos of a run, prepared now unless they are given; rank 0 writes manifest.csv for the others.

    Raises:
        UserError: see `vidcls.data.preparation.prepare_videos`; or rank 0 has ended before it was done.
    """
    datamodule = VideoDataModule(instantiate(cfg.data), manifest_path(Path(cfg.run_dir)), prepared)
    if is_rank_zero():
        show_life(cfg)
        datamodule.prepare_data()
        tell_prepared()
    else:
        wait_for_first(Path(cfg.run_dir), prepared=True)
    datamodule.setup()
    return datamodule


def build_module(cfg: DictConfig, datamodule: VideoDataModule) -> VideoClassifier:
    """Seeds everything, and builds the network and its training; a resumed run loads its last checkpoint.

    Raises:
        UserError: an option is out of range, or the checkpoint is damaged, or of other classes or settings.
    """
    folder, classes = Path(cfg.run_dir), datamodule.classes
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    model_options: Any = OmegaConf.to_container(cfg.model, resolve=True)
    spec = RunSpec(
        classes=tuple(classes),
        model=model_options,
        clip=datamodule.options.clip,
        store=datamodule.options.store,
        normalisation=Normalisation((), ()),
        batch_size=datamodule.options.batch_size,
    )
    # Any package: the configuration of a run folder has passed `check_trusted`, any other is the user's own.
    model = build_model(spec, [str(cfg.model["_target_"]).partition(".")[0]], compiled=cfg.compile)
    last = load_last(folder, classes)
    if last is not None:
        check_unchanged(cfg, last[1].raw.get("settings", {}))
    else:
        model.encoder.load_weights()
    trained_with = model.encoder.normalisation or {"mean": [0.0] * 3, "std": [1.0] * 3}
    mean, std = (tuple(cfg.normalise[name] or trained_with[name]) for name in ("mean", "std"))
    spec = replace(spec, normalisation=Normalisation(mean, std))
    optim: Any = OmegaConf.to_container(cfg.optim, resolve=True)
    refit, balances = cfg.get("refit", False), cfg.loss.class_weights == "balanced"
    module = VideoClassifier(
        model,
        build_preprocess(spec, instantiate(cfg.augment)),
        spec,
        optim,
        seed=cfg.seed,
        label_smoothing=cfg.loss.label_smoothing,
        class_weights=datamodule.balanced_class_weights(fitted_splits(refit)) if balances else None,
        refit=refit,
        settings=lasting_settings(cfg),
    )
    if last is not None:  # now, as features are computed before the trainer restores a checkpoint
        module.load_state_dict(last[1].state_dict)
    return module


def build_trainer(
    cfg: DictConfig, resume_step: int | None = None, extra_callbacks: Sequence[L.Callback] = ()
) -> L.Trainer:
    """The trainer with its callbacks, ``extra_callbacks`` first, and its loggers."""
    loggers = build_loggers(cfg, resume_step)
    solves = is_logistic(cfg.optim)
    callbacks = [*extra_callbacks, *instantiate(cfg.get("callbacks") or {}).values()]
    if not loggers or solves:
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    options: dict[str, Any] = {}
    if solves:  # it has converged before the first step
        callbacks, options = [instantiate(cfg.optim), *callbacks], {"max_epochs": 1}
    plugins = [AtomicCheckpoints(), *instantiate(cfg.trainer.get("plugins") or [])]
    if "SLURM_NTASKS" in os.environ and not torch.distributed.is_torchelastic_launched():
        # Lightning would take an allocation for processes, and requeue a job by a checkpoint of its own.
        several = launched_processes() > 1
        plugins.append(SLURMEnvironment(auto_requeue=False) if several else LightningEnvironment())
    strategy = str(cfg.trainer.get("strategy", "auto"))
    if strategy.startswith("ddp"):
        kind = StrategyRegistry[strategy]
        options["strategy"] = kind["strategy"](**kind["init_params"], timeout=COLLECTIVE_TIMEOUT)
    if "default_root_dir" not in cfg.trainer:
        options["default_root_dir"] = cfg.run_dir
    return instantiate(cfg.trainer, logger=loggers or False, callbacks=callbacks, plugins=plugins, **options)


def build_loggers(cfg: DictConfig, resume_step: int | None = None) -> list[Logger]:
    """The loggers of a configuration with none, one, or several by name."""
    config = cfg.get("logger") or {}
    loggers = []
    for one in [config] if "_target_" in config else config.values():
        # For a resumed run, TensorBoard discards the steps that are repeated.
        extra = {"purge_step": resume_step} if str(one["_target_"]).endswith(".TensorBoardLogger") else {}
        loggers.append(instantiate(one, **extra))
        if resume_step is not None and isinstance(loggers[-1], CSVLogger):
            _keep_logged(loggers[-1], resume_step)
    return loggers


@rank_zero_only
def _keep_logged(logger: CSVLogger, resume_step: int) -> None:
    """Logs again what there is from before ``resume_step``: Lightning begins the file anew."""
    path = Path(logger.log_dir, "metrics.csv")
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    for row in csv.DictReader(line for line in lines if line.endswith("\n")):  # a killed run may have cut the last one
        if (step := int(row.pop("step"))) < resume_step:
            logger.experiment.log_metrics({name: value for name, value in row.items() if value}, step)


def fit(
    cfg: DictConfig, module: VideoClassifier, datamodule: VideoDataModule, extra_callbacks: Sequence[L.Callback] = ()
) -> tuple[L.Trainer, Predictions]:
    """Trains, from the last checkpoint if there is one, and loads the best weights into ``module``.

    Returns the validation predictions of the best weights; for ``trainer.fast_dev_run``, which writes no checkpoints,
    those of the last weights.

    Raises:
        KeyboardInterrupt: Ctrl-C; the run can be resumed.
        UserError: the checkpoint to resume from is damaged, the network has non-deterministic operations, or no epoch
            was validated.
    """
    folder = Path(cfg.run_dir)
    last = load_last(folder, datamodule.classes)
    same_run = SameRun(cfg, datamodule, last and last[1])
    trainer = build_trainer(cfg, last[1].step if last else None, [same_run, *extra_callbacks])
    before = last[1].raw.get("world_size", trainer.world_size) if last else trainer.world_size
    if is_rank_zero() and before != trainer.world_size:
        note = f"Processes that train this run: {before} until now, {trainer.world_size} from now on"
        warnings.warn(f"{note}. Their batches have another size together, and so the result differs.", stacklevel=2)
    trainer.precision_plugin.convert_module(module)  # Lightning does it after it has loaded a checkpoint
    datamodule.first_epoch = int(last[1].raw["epoch"]) + 1 if last else 0
    if is_rank_zero():
        device = trainer.strategy.root_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        write_environment(folder, name, torch.get_num_threads())
    ckpt_path = str(last[0]) if last else None
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    except SystemExit:
        if trainer.interrupted:  # Lightning turns Ctrl-C into exit code 1
            raise KeyboardInterrupt from None
        raise
    except (MisconfigurationException, RuntimeError) as error:
        if isinstance(error, MisconfigurationException) or "conditioned on metric" in str(error):  # of early stopping
            expected, got = "options that Lightning can train with", one_line(error, 300)
            raise UserError(expected, got, "Change callbacks.*, trainer.* or optim.schedule.", "lightning") from error
        if "deterministic" not in str(error):  # as of max_pool3d of s3d and mvit_v2_s on CUDA
            raise
        raise UserError(
            "operations that repeat to the last bit, for trainer.deterministic=true",
            one_line(error, 120),
            "Give trainer.deterministic=warn, or trainer=gpu: results may differ a little from run to run.",
            "not-deterministic",
        ) from error
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        assert module.predictions is not None
        return trainer, module.predictions
    if trainer.is_global_zero and not best_checkpoint(folder).exists():
        raise UserError(
            "an epoch that ends with a validation, which chooses the best weights",
            f"none in {trainer.current_epoch} epochs and {trainer.global_step} steps",
            "Train longer, or leave out what limits validation (trainer.limit_val_batches, check_val_every_n_epoch).",
            "never-validated",
        )
    # Read by one process: a network file system may show others the file of an earlier epoch.
    best = load_checkpoint(best_checkpoint(folder)) if trainer.is_global_zero else None
    if best:
        find_callback(trainer, History).best_epoch = int(best.raw["epoch"]) + 1
    shared: Any = trainer.strategy.broadcast(best and (best.state_dict, best.val_predictions, best.oof_predictions))
    weights, val, module.oof_predictions = shared
    module.load_state_dict(weights)
    if val is None:  # saved at another step than that of a validation, as with trainer.val_check_interval
        val = test(trainer, module, datamodule, ("val",)).get("val")
    if val is None:
        got, remedy = "trainer.limit_test_batches=0", "Leave it out, or what has best.ckpt saved without a validation."
        raise UserError("val predictions of the best weights", got, remedy, "never-validated")
    return trainer, val


def test(
    trainer: L.Trainer, module: VideoClassifier, datamodule: VideoDataModule, splits: Sequence[str] = SPLITS
) -> dict[str, Predictions]:
    """Predicts each video of each split once; splits without videos or batches are left out."""
    predictions: dict[str, Predictions] = {}
    for split in splits:
        if not datamodule.rows(split).empty:
            if datamodule.features is not None:
                compute_features(trainer, module, datamodule, [split])
            module.predictions = None
            trainer.test(module, dataloaders=datamodule.loader(split, train=False), verbose=False)
            if module.predictions is not None:
                predictions[split] = module.predictions
    return predictions


def silence_lightning() -> None:
    """Silences what Lightning prints at every start."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        r".*module\(s\) in eval mode at the start of training.*",  # what is frozen
        ".*treespec, LeafSpec.*",
        ".*this fit will run with no optimizer.*",  # optim=logistic
        ".*It is recommended to use .*sync_dist=True.*",  # what is logged has been gathered
    ):
        warnings.filterwarnings("ignore", message)
