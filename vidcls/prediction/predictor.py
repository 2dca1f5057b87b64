"""A trained run, from its folder alone, and its network over videos. Runs no code of the folder's."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from omegaconf import DictConfig, OmegaConf
from rich.progress import track
from torch import Tensor

from vidcls.data.decoding.result import DECODERS, UndecodableError
from vidcls.data.options import DataOptions
from vidcls.data.sampling import select_frames
from vidcls.data.videos import Videos
from vidcls.errors import UserError, check_choice
from vidcls.files import hash_file
from vidcls.metrics.predictions import Predictions
from vidcls.models.classifiers import Classifier
from vidcls.moderation.aggregation import video_score
from vidcls.prediction.options import PredictOptions
from vidcls.training.checkpoint import compile_model, load_checkpoint, rebuild
from vidcls.training.inference import average_clips, clip_logits, fixed_kernels, match_layout, pad_batch, video_losses
from vidcls.training.reference import Reference, read_reference
from vidcls.training.run_folder import (
    ACCELERATORS,
    best_checkpoint,
    policy_path,
    read_finished,
    read_run_manifest,
)
from vidcls.training.spec import RunSpec, fitted_splits
from vidcls.training.transforms import Preprocess

# What trainer.precision means in Lightning: the type of the weights, and that of autocast.
PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    **dict.fromkeys(("64", "64-true"), (torch.float64, None)),
    **dict.fromkeys(("32", "32-true"), (torch.float32, None)),
    **dict.fromkeys(("16", "16-mixed"), (torch.float32, torch.float16)),
    **dict.fromkeys(("bf16", "bf16-mixed"), (torch.float32, torch.bfloat16)),
    "16-true": (torch.float16, None),
    "bf16-true": (torch.bfloat16, None),
}


@dataclass(frozen=True, kw_only=True)
class BaseRun:
    """What a finished run and an ensemble of several have in common."""

    folder: Path  # for results
    config: DictConfig  # with paths into the folder as it lies now
    spec: RunSpec  # what the network is built from
    identity: str  # 12 hex digits that change with anything that the probabilities depend on
    step: int  # how many optimiser steps these weights have seen
    manifest: pd.DataFrame  # its videos
    oof_predictions: Predictions | None  # out-of-fold, of the videos it was fitted to; None but for optim=logistic
    val_predictions: Predictions | None  # of these weights
    reference: Reference | None = None  # to compare new videos with; of a single run

    @property
    def classes(self) -> list[str]:
        """The K names, in the order of the probabilities."""
        return list(self.spec.classes)

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self.folder.name

    @property
    def refit(self) -> bool:
        """Whether it was fitted to val too."""
        return bool(self.config.get("refit"))

    @property
    def fitted_splits(self) -> tuple[str, ...]:
        """The splits that it has been trained on, in the order of ``oof_predictions``."""
        return fitted_splits(self.refit)

    @property
    def policy_path(self) -> Path:
        """Where its policy is, or would be."""
        return policy_path(self.folder)

    @cached_property
    def predictor(self) -> Predictor:
        """The network on the device of training."""
        return self.make_predictor()

    def make_predictor(self, accelerator: str | None = None) -> Predictor:
        """The network on a device, see `Predictor`."""
        raise NotImplementedError

    @property
    def members(self) -> tuple[LoadedRun, ...]:
        """The runs whose probabilities are averaged: of a single one, itself."""
        raise NotImplementedError

    def predict(self, video: Path | str) -> dict[str, float]:
        """The probability of each class for one video, the same as predict.py's with its default options.

        A video of which not all could be decoded is a warning.

        Raises:
            UserError: the video cannot be decoded.
        """
        from vidcls.data.decoding.windows import stream_windows  # late, as it imports the decoders

        options = PredictOptions().complete(self.spec.clip.clip_seconds, self.manifest)
        try:
            stream = stream_windows(Path(video), options.plan(self.spec.store), DECODERS)
            windows, parts = iter(stream), []
            while batch := [window.frames for window in islice(windows, self.spec.batch_size)]:
                parts.append(self.predictor(batch))
        except (UndecodableError, OSError) as error:
            got = f"{video}: {error}"
            raise UserError("a decodable video", got, "Check the file.", "undecodable-video") from error
        if stream.result is not None and stream.result.status != "ok":
            warnings.warn(f"{video} is {stream.result.status}: {stream.result.reason}", stacklevel=2)
        scores = video_score(np.concatenate(parts), options.aggregation, options.top_k)
        return dict(zip(self.classes, scores.tolist(), strict=True))

    def videos(self, source: str | None = None, cache_dir: str | None = None) -> Videos:
        """The run's own videos, or those of ``source`` with the run's decode options and classes."""
        plain: Any = OmegaConf.to_container(self.config.data, resolve=True)
        options = {name: value for name, value in plain.items() if not name.startswith("_")}
        store = {"num_frames": self.spec.store.stored_frames, "resolution": self.spec.store.stored_resolution}
        options |= vars(self.spec.clip) | {"batch_size": self.spec.batch_size, "store": store}
        options |= {"classes": self.classes, "cache_dir": cache_dir or options["cache_dir"]}
        if source is not None:
            options |= {"source": source, "demo": None, "decisions": []}
        videos = Videos(DataOptions(**options))
        if source is None:
            videos.load_manifest(self.manifest)
        return videos


@dataclass(frozen=True, kw_only=True)
class LoadedRun(BaseRun):
    """A finished run; its identity is the first 12 hex digits of the SHA-256 of best.ckpt."""

    model: Classifier  # with the weights of best.ckpt, in eval mode
    preprocess: Preprocess  # from stored frames to the network's input

    @property
    def members(self) -> tuple[LoadedRun, ...]:
        return (self,)

    def make_predictor(self, accelerator: str | None = None) -> Predictor:
        return Predictor(self, accelerator)


def load_single(folder: Path | str, trust: Sequence[str] = ()) -> LoadedRun:
    """Reads one finished run, see `vidcls.prediction.loading.load_run`."""
    folder, config = read_finished(Path(folder))
    best = best_checkpoint(folder)
    checkpoint, identity = load_checkpoint(best), hash_file(best)[:12]
    model, preprocess = rebuild(checkpoint, trust)
    if config.compile:
        compile_model(model)  # as it was tested
    return LoadedRun(
        folder=folder,
        config=config,
        spec=checkpoint.spec,
        identity=identity,
        step=checkpoint.step,
        manifest=read_run_manifest(folder, checkpoint.spec.classes),
        oof_predictions=checkpoint.oof_predictions,
        val_predictions=checkpoint.val_predictions,
        reference=read_reference(folder, identity, model),
        model=model,
        preprocess=preprocess,
    )


class Predictor:
    """A run's network over new videos, in the arithmetic of the run's own test.

    ``accelerator`` is one of `ACCELERATORS`, by default the one of training; the run's network is moved there.

    Raises:
        UserError: no such device here.
    """

    def __init__(self, run: LoadedRun, accelerator: str | None = None) -> None:
        trainer = run.config.trainer
        self.run: BaseRun = run
        self.device = choose_device(accelerator or str(trainer.accelerator))
        dtype, self._autocast_dtype = PRECISIONS[
            check_choice("trainer.precision", str(trainer.precision), tuple(PRECISIONS))
        ]
        if self.device.type == "cpu" and self._autocast_dtype == torch.float16:  # as Lightning does it
            self._autocast_dtype = torch.bfloat16
        self._model = run.model.to(self.device, dtype)
        self._preprocess = run.preprocess.to(self.device, dtype)
        if trainer.deterministic:  # as Lightning's trainer does it
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=trainer.deterministic == "warn")
        match_layout(self._model, self.device)
        self._projection = None
        if run.reference is not None:
            pair = run.reference.mean, run.reference.components
            self._projection = [torch.from_numpy(array).to(self.device) for array in pair]
        store, clip = run.spec.store, run.spec.clip
        self._indices = select_frames(store.stored_frames, clip.num_frames, clip.sampling)

    def _network(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B Q"]:
        """Logits, and clip vectors in the P components of the run's reference (Q = K + P); P is 0 without one."""
        autocast = torch.autocast(
            self.device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None, cache_enabled=False
        )
        with autocast, fixed_kernels():
            inputs = self._preprocess(frames.to(self.device, non_blocking=True))
            if self._projection is None:
                return self._model(inputs)
            clips = self._model.embed(self._model.encode(inputs))
            logits = self._model.output(clips)  # as `Classifier.forward`, whose dropout does nothing here
        mean, components = self._projection
        return torch.cat([logits.float(), (clips.float() - mean) @ components.T], dim=1)

    def __call__(self, stacks: Sequence[UInt8[np.ndarray, "_ H W 3"]]) -> Float[np.ndarray, "B K"]:
        """Probabilities of stacks of frames, as `vidcls.data.decoding.frames.decode` gives them.

        A stack of F frames is a clip; those of the M clips in one of M F frames are averaged.
        """
        return self.outputs(stacks)[:, : len(self.run.classes)]

    @torch.inference_mode()
    def outputs(self, stacks: Sequence[UInt8[np.ndarray, "_ H W 3"]]) -> Float[np.ndarray, "B Q"]:
        """Probabilities, as by calling it, and the clip vectors in the P components of `BaseRun.reference`."""
        stored, batch_size = self.run.spec.store.stored_frames, self.run.spec.batch_size
        counts = [len(stack) // stored for stack in stacks]
        clips = [stack.reshape(-1, stored, *stack.shape[1:])[:, self._indices] for stack in stacks]
        batches = torch.from_numpy(np.concatenate(clips)).split(batch_size)
        found = [self._network(pad_batch(batch, batch_size))[: len(batch)].float() for batch in batches]
        averaged = [_average_outputs(video[None], len(self.run.classes)) for video in torch.cat(found).split(counts)]
        return np.concatenate([torch.cat(pair, dim=1).cpu().numpy() for pair in averaged])

    def predict_split(self, videos: Videos, split: str) -> Predictions:
        """Predicts each video of a split once; raises `UserError` where the network returns NaN."""
        return self.classify_split(videos, split)[0]

    @torch.inference_mode()
    def classify_split(self, videos: Videos, split: str) -> tuple[Predictions, Float[np.ndarray, "N P"]]:
        """`predict_split`, and the clip vectors as in `outputs`."""
        spec, count = self.run.spec, len(self.run.classes)
        parts: list[list[np.ndarray]] = []
        for batch in track(videos.loader(split), f"Predicting {split}", transient=True):
            outputs = clip_logits(self._network, batch.frames, spec.clip.num_clips, spec.batch_size)  # [B, M, K + P]
            probabilities, vectors = _average_outputs(outputs, count)
            losses = video_losses(outputs[..., :count].contiguous(), batch.label.to(self.device))
            parts.append([tensor.cpu().numpy() for tensor in (batch.label, probabilities, losses, vectors)])
        arrays = [np.concatenate(part) for part in zip(*parts, strict=True)]
        found = Predictions(*arrays[:3])
        if lost := int((~np.isfinite(found.probabilities)).any(axis=1).sum()):
            remedy = "Its training has diverged: train again with a lower optim.lr."
            got = f"none for {lost} of {len(found.labels)} {split} videos"
            raise UserError("finite probabilities from the network", got, remedy, "diverged-network")
        return found, arrays[3]


def _average_outputs(outputs: Float[Tensor, "B M Q"], count: int) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B P"]]:
    """Of the clips of each video, with ``count`` classes: probabilities and clip vectors."""
    # Contiguous, as in training: a softmax along another stride may round otherwise.
    return average_clips(outputs[..., :count].contiguous()), outputs[..., count:].mean(dim=1)


def choose_device(accelerator: str) -> torch.device:
    """The device that an accelerator's name means in Lightning; raises `UserError` where there is none."""
    check_choice("accelerator", accelerator, ACCELERATORS)
    found = torch.accelerator.current_accelerator(check_available=True)
    if accelerator == "cpu" or (accelerator == "auto" and found is None):
        return torch.device("cpu")
    if found is None or accelerator not in ("auto", "gpu", found.type):
        expected = "a GPU, as the run was trained on one"
        raise UserError(expected, "no GPU visible to PyTorch", "Pass accelerator=cpu.", "no-gpu")
    return torch.device(found.type, torch.accelerator.current_device_index())
