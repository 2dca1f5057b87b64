"""A run from its configuration to its folder: what train.py tells as a story, step by step."""

from __future__ import annotations

import json
import logging
import os
import pickle
import platform
import subprocess
import time
import warnings
from collections.abc import Sequence
from importlib import metadata
from inspect import isfunction, signature
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from vidcls.cli import in_sweep, run_folder
from vidcls.data.datamodule import SPLITS, VideoDataModule
from vidcls.data.ingest import MANIFEST_COLUMNS, read_manifest
from vidcls.errors import UserError, check_choice, check_integer
from vidcls.files import write_atomically
from vidcls.metrics.objectives import LOWER_IS_BETTER
from vidcls.metrics.predictions import Predictions
from vidcls.models import classifiers
from vidcls.models.classifiers import Classifier
from vidcls.training.feature_cache import compute_features
from vidcls.training.module import VideoModule
from vidcls.training.transforms import Augment, Preprocess

CHECKPOINT_FORMAT = 2
Settings = dict[str, Any]
"""Plain values that rebuild a network and its decoding: classes, model, normalise, data, and the format's number."""


def begin(cfg: DictConfig) -> DictConfig:
    """Claims the run folder and fixes all that is random; gives back the configuration that holds.

    Raises:
        UserError: a setting is missing or out of range, the folder is another run's or holds nothing to resume, or
            there is no GPU where one is asked for.
    """
    quieten()
    folder = run_folder().resolve()
    if cfg.resume is not None:
        cfg = _resumed(folder, debug=cfg.debug)
    with open_dict(cfg):
        cfg.run_dir = str(folder)  # Hydra's word counts: a process of another device composes another name
    if _is_first():
        if cfg.resume is None:
            _claim(folder, cfg)
        write_atomically(folder / "environment.json", json.dumps(_environment(), indent=2).encode())
    check_integer("seed", cfg.seed, minimum=0)
    check_choice("objective", cfg.objective, tuple(LOWER_IS_BETTER))
    check_integer("trainer.max_epochs", cfg.trainer.max_epochs)
    check_choice("loss.class_weights", cfg.loss.class_weights, ("none", "balanced"))
    if "limit_val_batches" in cfg.trainer:
        raise UserError("all of val, as its figures are the run's", "trainer.limit_val_batches", "Leave it out.")
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError("a CUDA GPU, as the trainer asks", "none that torch can see", "Leave trainer=gpu out.")
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    return cfg


def _is_first() -> bool:
    """Whether this process writes; before the trainer exists, the launcher's environment variables tell."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _claim(folder: Path, cfg: DictConfig) -> None:
    text = OmegaConf.to_yaml(cfg, resolve=True)
    try:
        with (folder / "config.yaml").open("x") as file:  # fails where the file exists, whoever came first
            file.write(text)
    except FileExistsError:
        raise UserError(
            "a run_dir that no other run has used",
            f"{folder}, which holds a config.yaml",
            f"Choose another one, or continue that run with resume={folder}.",
        ) from None


def _resumed(folder: Path, debug: bool) -> DictConfig:
    told = HydraConfig.get().overrides.task
    others = [text for text in told if text.split("=")[0] not in ("resume", "debug", "trust")]
    if in_sweep():  # which tells its jobs again what it told them at first
        others = []
    if others:
        raise UserError(
            "resume=DIR alone, as the run's own config.yaml says everything else",
            f"also {' '.join(others)}",
            "Leave those out, or start a new run.",
        )
    if not (folder / "config.yaml").is_file():
        raise UserError("a run folder to resume", f"{folder}, which holds no config.yaml", "Check resume=.")
    cfg = read_config(folder)
    cfg.resume, cfg.debug = str(folder), debug
    return cfg


def read_config(folder: Path) -> DictConfig:
    """The config.yaml of a run folder, whose paths lead into the folder also where it has moved."""
    text = (folder / "config.yaml").read_text()
    cfg = OmegaConf.create(text)
    assert isinstance(cfg, DictConfig)
    cfg = OmegaConf.create(text.replace(cfg.run_dir, str(folder)))
    assert isinstance(cfg, DictConfig)
    return cfg


def prepare_data(cfg: DictConfig, console: Console) -> VideoDataModule:
    """Lists, decodes and splits the videos; writes manifest.csv.

    Raises:
        UserError: see `build_module` and `vidcls.data.datamodule.VideoDataModule`.
    """
    datamodule: VideoDataModule = instantiate(cfg.data)
    path = Path(cfg.run_dir, "manifest.csv")
    if _is_first():
        with torch.random.fork_rng(devices=[]):  # a setting out of range is refused now, not after hours of decoding
            _build(cfg, datamodule, ["a", "b"], None)
        datamodule.prepare(console)
        write_atomically(path, datamodule.manifest[MANIFEST_COLUMNS].to_csv(index=False).encode())
    else:  # the first device does the work, and the others take its word
        while not path.exists():
            time.sleep(0.2)
        datamodule.adopt(read_manifest(path))
    return datamodule


def build_module(cfg: DictConfig, datamodule: VideoDataModule) -> VideoModule:
    """The network and its training, as the configuration asks; a resumed run has its weights from its last checkpoint.

    Raises:
        UserError: a setting is out of range, or the checkpoint is not one or is of other classes.
    """
    weights = datamodule.balanced_class_weights() if cfg.loss.class_weights == "balanced" else None
    module = _build(cfg, datamodule, datamodule.classes, weights)
    last = _last_checkpoint(cfg)
    if last.exists():  # now, not when the trainer restores all else: features are computed before that
        module.load_state_dict(load_checkpoint(last, datamodule.classes)["state_dict"])
    return module


def _build(
    cfg: DictConfig, datamodule: VideoDataModule, classes: list[str], class_weights: list[float] | None
) -> VideoModule:
    settings: Settings = {
        "format": CHECKPOINT_FORMAT,
        "classes": classes,
        "model": OmegaConf.to_container(cfg.model, resolve=True),
        "data": {
            "num_frames": datamodule.num_frames,
            "resolution": datamodule.resolution,
            "batch_size": datamodule.batch_size,
            "sampling": datamodule.store.sampling,
            "clip_seconds": datamodule.store.clips.seconds,
            "num_clips": datamodule.store.clips.count,
            "store_num_frames": datamodule.store.num_frames,
            "store_resolution": datamodule.store.resolution,
        },
    }
    model = build_model(settings)
    if not _last_checkpoint(cfg).exists():
        model.encoder.load_weights()
    settings["normalise"] = _normalisation(cfg, model)
    preprocess = Preprocess(datamodule.resolution, **settings["normalise"], augment=instantiate(cfg.augment))
    if cfg.compile:
        model.compile()
    return VideoModule(
        model,
        preprocess,
        optim=instantiate(cfg.optim),
        seed=cfg.seed,
        label_smoothing=cfg.loss.label_smoothing,
        class_weights=class_weights,
        settings=settings,
    )


def _last_checkpoint(cfg: DictConfig) -> Path:
    """Where training goes on from; it does not exist before the end of the first epoch."""
    return Path(cfg.run_dir, "checkpoints", "last.ckpt")


def _normalisation(cfg: DictConfig, model: Classifier) -> dict[str, list[float]]:
    """What ``normalise`` says; where it says nothing, what the weights were trained with; without weights, none."""
    trained_with = model.encoder.normalisation or {"mean": [0.0] * 3, "std": [1.0] * 3}
    return {
        name: trained_with[name] if cfg.normalise[name] is None else list(cfg.normalise[name]) for name in trained_with
    }


def build_network(settings: Settings, augment: Augment) -> tuple[Classifier, Preprocess]:
    """The network and its preprocessing from the plain ``settings`` that a checkpoint holds, with random weights.

    Raises:
        UserError: see `build_model`.
    """
    return build_model(settings), Preprocess(settings["data"]["resolution"], **settings["normalise"], augment=augment)


def build_model(settings: Settings) -> Classifier:
    """The network that ``settings`` describe, with random weights.

    Raises:
        UserError: they name something that is not a model of this package, or have a value out of range.
    """
    target, knobs = settings["model"]["_target_"], settings["model"].items()
    build = getattr(classifiers, str(target).removeprefix("vidcls.models.classifiers."), None)
    if not isfunction(build) or build.__module__ != classifiers.__name__:  # a checkpoint must not call just anything
        raise UserError("a model of vidcls.models.classifiers", str(target), "Do not trust this file.")
    arguments = {name: value for name, value in knobs if not name.startswith("_")}
    data = settings["data"]
    clip = {"num_classes": len(settings["classes"]), "resolution": data["resolution"], "num_frames": data["num_frames"]}
    arguments |= {name: value for name, value in clip.items() if name in signature(build).parameters}
    return build(**arguments)


def load_checkpoint(path: Path, classes: list[str] | None = None) -> dict[str, Any]:
    """Reads a checkpoint of this package, running no code from it.

    Args:
        path: a ``.ckpt`` file.
        classes: what the data at hand holds; None takes the checkpoint's.

    Raises:
        UserError: it is not a checkpoint of this package, or one of other classes.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        settings = checkpoint["vidcls"]
        if settings["format"] != CHECKPOINT_FORMAT:
            raise ValueError(f"format {settings['format']}")
        # Those from before there were clips do not say so: one clip, the whole video.
        settings["data"] = {"clip_seconds": None, "num_clips": 1} | settings["data"]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError("a checkpoint of vidcls", f"{path}: {why}", "Check the path, or train again.") from error
    if classes is not None and list(settings["classes"]) != list(classes):
        raise UserError(
            f"data of the checkpoint's classes {', '.join(settings['classes'])}",
            ", ".join(classes),
            "Check data.source and data.classes, or train a new run.",
        )
    return checkpoint


def build_trainer(cfg: DictConfig, resume_step: int | None, extra_callbacks: Sequence[L.Callback]) -> L.Trainer:
    """The trainer with its callbacks and logger; a resumed logger forgets the steps that will be repeated."""
    loggers = []
    for node in (cfg.get("logger") or {}).values():
        more = {"purge_step": resume_step} if node._target_.endswith("TensorBoardLogger") else {}
        loggers.append(instantiate(node, **more))
    callbacks = [*extra_callbacks, *instantiate(cfg.callbacks).values()]
    if not loggers:  # it refuses to run without one
        callbacks = [each for each in callbacks if not isinstance(each, LearningRateMonitor)]
    return instantiate(cfg.trainer, logger=loggers, callbacks=callbacks)


def fit(
    cfg: DictConfig, module: VideoModule, datamodule: VideoDataModule, extra_callbacks: Sequence[L.Callback] = ()
) -> tuple[L.Trainer, Predictions]:
    """Trains, from the last checkpoint where there is one, and loads the best weights into ``module``.

    ``extra_callbacks`` come before the configured ones. Gives the trainer, and what the best weights have said of val.

    Raises:
        KeyboardInterrupt: Ctrl-C; the run can be resumed.
        UserError: the checkpoint to resume from is not one, or is of other classes.
    """
    last = _last_checkpoint(cfg)
    resume_step = load_checkpoint(last, datamodule.classes)["global_step"] if last.exists() else None
    trainer = build_trainer(cfg, resume_step, extra_callbacks)
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    except SystemExit:
        if trainer.interrupted:  # Lightning turns Ctrl-C into exit code 1
            raise KeyboardInterrupt from None
        raise
    best = load_checkpoint(Path(cfg.run_dir, "checkpoints", "best.ckpt"))
    module.load_state_dict(best["state_dict"])
    return trainer, Predictions.from_tensors(best["val_predictions"])


def test(
    trainer: L.Trainer, module: VideoModule, datamodule: VideoDataModule, splits: Sequence[str] = SPLITS
) -> dict[str, Predictions]:
    """Predicts each video of each split once, with the weights that ``module`` holds; leaves out empty splits."""
    predictions = {}
    for split in splits:
        if not datamodule.rows(split).empty:
            if datamodule.features is not None:
                compute_features(trainer, module, datamodule, [split])
            trainer.test(module, dataloaders=datamodule.loader(split, train=False), verbose=False)
            assert module.predictions is not None
            predictions[split] = module.predictions
    return predictions


def _environment() -> dict[str, Any]:
    packages = ("torch", "torchvision", "lightning", "hydra-core", "decord", "av", "torchmetrics", "numpy")
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=False)
    return {
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
        "git_commit": git.stdout.strip() if git.returncode == 0 else None,
        "git_changes": bool(dirty.stdout.strip()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def quieten() -> None:
    """Silences what Lightning says at every start and no user needs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*The number of training batches .* is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", r".*module\(s\) in eval mode at the start of training.*")  # what is frozen
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
