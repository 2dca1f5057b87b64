"""Reads checkpoints, without running any code from them, and rebuilds their networks."""

import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidcls.errors import UserError, one_line
from vidcls.metrics.predictions import Predictions
from vidcls.models.classifiers import Classifier, build_classifier
from vidcls.training.run_folder import PREVIOUS_CHECKPOINT, last_checkpoint
from vidcls.training.spec import RunSpec
from vidcls.training.transforms import Augment, Preprocess


@dataclass(frozen=True)
class Checkpoint:
    """The content of a ``.ckpt`` file."""

    spec: RunSpec
    state_dict: dict[str, Tensor]  # of the Lightning module
    step: int  # the number of optimiser steps
    val_predictions: Predictions | None  # of these weights; None if there was no validation
    oof_predictions: Predictions | None  # out-of-fold, of the training videos; of optim=logistic only
    raw: dict[str, Any]  # all of it

    @property
    def model_weights(self) -> dict[str, Tensor]:
        """The state dict of the network alone."""
        own = {name: value for name, value in self.state_dict.items() if name.startswith("model.")}
        return {name.removeprefix("model."): value for name, value in own.items()}


def load_checkpoint(path: Path, classes: Sequence[str] | None = None) -> Checkpoint:
    """Reads a checkpoint; raises `UserError` if it is not one, or has other classes than ``classes``."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not verify the checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} has been altered")
        raw = torch.load(path, map_location="cpu", weights_only=True)
        val, oof = (
            None if (tensors := raw.get(name)) is None else Predictions.from_tensors(tensors)
            for name in ("val_predictions", "oof_predictions")
        )
        checkpoint = Checkpoint(
            spec=RunSpec.from_dict(raw["vidcls"]),
            state_dict=raw["state_dict"],
            step=int(raw["global_step"]),
            val_predictions=val,
            oof_predictions=oof,
            raw=raw,
        )
    except Exception as error:  # a damaged file may raise anything
        why = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(
            "a checkpoint of vidcls", f"{path}: {why}", "Check the path, or train again.", "bad-checkpoint"
        ) from error
    if classes is not None and list(checkpoint.spec.classes) != list(classes):
        raise UserError(
            f"data of the checkpoint's classes {', '.join(checkpoint.spec.classes)}",
            ", ".join(classes),
            "Check data.source and data.classes, or train a new run.",
            "other-classes",
        )
    return checkpoint


def load_last(folder: Path, classes: Sequence[str]) -> tuple[Path, Checkpoint] | None:
    """The checkpoint to resume from: last.ckpt, or the one before if that is damaged; None before the first one.

    Raises:
        UserError: both are damaged, or of other classes.
    """
    last = last_checkpoint(folder)
    previous = last.with_name(PREVIOUS_CHECKPOINT)
    if not last.exists() and not previous.exists():
        return None
    try:
        return last, load_checkpoint(last, classes)
    except UserError as error:
        if error.code != "bad-checkpoint" or not previous.exists():
            raise
        checkpoint = load_checkpoint(previous, classes)
        warnings.warn(f"{error.args[1]}. Continuing from the epoch before, in {previous}.", stacklevel=2)
        return previous, checkpoint


def build_model(spec: RunSpec, trust: Sequence[str] = (), *, compiled: bool = False) -> Classifier:
    """The network of a run with random weights; see `vidcls.models.classifiers.build_classifier`."""
    options = {name: value for name, value in spec.model.items() if not name.startswith("_")}
    model = build_classifier(
        str(spec.model["_target_"]), options, len(spec.classes), spec.clip.resolution, spec.clip.num_frames, trust
    )
    # Not with a frozen encoder: its features may be cached, and parts of a compiled network round otherwise.
    if compiled and not model.encoder.is_frozen:
        model.compile(dynamic=False)  # there are two shapes: full batches and the last of an epoch
    return model


def rebuild(checkpoint: Checkpoint, trust: Sequence[str], *, compiled: bool) -> tuple[Classifier, Preprocess]:
    """The network of a checkpoint with its weights, and its preprocessing, in eval mode; raises `UserError`."""
    try:
        preprocess = build_preprocess(checkpoint.spec)
        model, weights = build_model(checkpoint.spec, trust, compiled=compiled), checkpoint.model_weights
        if any(value.dtype == torch.float64 for value in weights.values()):
            model.double()
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError) as error:
        expected, remedy = "weights that fit the network of their checkpoint", "Check the path, or train again."
        raise UserError(expected, one_line(error), remedy, "bad-checkpoint") from error
    return model.eval(), preprocess.eval()


def build_preprocess(spec: RunSpec, augment: Augment | None = None) -> Preprocess:
    """The preprocessing of stored frames; without ``augment``, as outside training."""
    return Preprocess(spec.clip.resolution, spec.normalisation.mean, spec.normalisation.std, augment or Augment())
