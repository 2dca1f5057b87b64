"""Checkpoints, read without running any code from them, and the networks that they describe."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidcls.errors import UserError
from vidcls.metrics.predictions import Predictions
from vidcls.models.classifiers import Classifier, build_classifier
from vidcls.training.spec import RunSpec
from vidcls.training.transforms import Augment, Preprocess


@dataclass(frozen=True)
class Checkpoint:
    """What a ``.ckpt`` file holds.

    Attributes:
        spec: the run's description.
        state_dict: of the Lightning module; those of its network start with ``model.``.
        step: how many optimiser steps these weights have seen.
        val_predictions: of these weights; None where the validation split was not predicted.
        raw: the whole file.
    """

    spec: RunSpec
    state_dict: dict[str, Tensor]
    step: int
    val_predictions: Predictions | None
    raw: dict[str, Any]

    @property
    def model_weights(self) -> dict[str, Tensor]:
        """The state dict of the network alone."""
        return {
            name.removeprefix("model."): value for name, value in self.state_dict.items() if name.startswith("model.")
        }


def load_checkpoint(path: Path, classes: Sequence[str] | None = None) -> Checkpoint:
    """Reads a checkpoint of this package with ``weights_only=True``.

    Args:
        path: a ``.ckpt`` file.
        classes: those of the data at hand; None takes the checkpoint's.

    Raises:
        UserError: it is not a checkpoint of this package, or one of other classes.
    """
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
        spec, predictions = RunSpec.from_dict(raw["vidcls"]), raw.get("val_predictions")
        checkpoint = Checkpoint(
            spec=spec,
            state_dict=raw["state_dict"],
            step=int(raw["global_step"]),
            val_predictions=None if predictions is None else Predictions.from_tensors(predictions),
            raw=raw,
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError, ValueError) as error:
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


def build_model(spec: RunSpec, trust: Sequence[str] = ()) -> Classifier:
    """The network that a run describes, with random weights.

    Args:
        spec: of the run.
        trust: packages that a model may come from, beside this one.

    Raises:
        UserError: the model is not of a trusted package, or an option is out of range.
    """
    options = {name: value for name, value in spec.model.items() if not name.startswith("_")}
    return build_classifier(
        str(spec.model["_target_"]), options, len(spec.classes), spec.clip.resolution, spec.clip.num_frames, trust
    )


def build_preprocess(spec: RunSpec, augment: Augment | None = None) -> Preprocess:
    """What turns stored frames into the network's input; without ``augment``, as outside training."""
    return Preprocess(spec.clip.resolution, spec.normalisation.mean, spec.normalisation.std, augment or Augment())
