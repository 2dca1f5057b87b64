"""A finished run, loaded from its folder, and how it classifies videos."""

from __future__ import annotations

import warnings
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from vidcls.data.decoding.result import DECODERS, UndecodableError
from vidcls.data.options import DataOptions
from vidcls.data.videos import Videos
from vidcls.errors import UserError
from vidcls.metrics.predictions import Predictions
from vidcls.models.classifiers import Classifier
from vidcls.moderation.aggregation import video_score
from vidcls.prediction.members import Member
from vidcls.prediction.options import PredictOptions
from vidcls.prediction.predictor import Predictor
from vidcls.training.reference import Reference
from vidcls.training.run_folder import policy_path
from vidcls.training.spec import RunSpec, fitted_splits
from vidcls.training.transforms import Preprocess


@dataclass(frozen=True, kw_only=True)
class BaseRun(Member):
    """The interface of a finished run and of an ensemble of several."""

    spec: RunSpec  # to rebuild the network
    step: int  # the number of optimiser steps
    oof_predictions: Predictions | None  # out-of-fold, of the videos it was fitted to; None but for optim=logistic
    val_predictions: Predictions | None  # of these weights
    reference: Reference | None = None  # to compare new videos with; of a single run

    @property
    def name(self) -> str:
        """The name in reports."""
        return self.folder.name

    @property
    def refit(self) -> bool:
        """Whether it was fitted to val too."""
        return bool(self.config.get("refit"))

    @property
    def fitted_splits(self) -> tuple[str, ...]:
        """The splits that it was trained on, in the order of ``oof_predictions``."""
        return fitted_splits(self.refit)

    @property
    def held_out_splits(self) -> tuple[str, ...]:
        """The splits whose predictions were made by networks that had not seen them: those a policy is fitted on."""
        return ("val",) if self.oof_predictions is None else self.fitted_splits

    @property
    def policy_path(self) -> Path:
        return policy_path(self.folder)

    @property
    def policy_fitted_on(self) -> str:
        return "val" if self.oof_predictions is None else "out-of-fold"

    @cached_property
    def predictor(self) -> Predictor:
        return self.make_predictor()

    def make_predictor(self, accelerator: str | None = None) -> Predictor:
        raise NotImplementedError

    @property
    def members(self) -> tuple[LoadedRun, ...]:
        """The runs whose probabilities are averaged; a single run itself."""
        raise NotImplementedError

    def default_options(self) -> PredictOptions:
        """Those with which predict.py classifies videos if none are given."""
        return PredictOptions().complete(self.spec.clip.clip_seconds, self.manifest)

    def predict(self, video: Path | str) -> dict[str, float]:
        """The probability of each class for one video, as of predict.py with its default options.

        Of a long video each is the highest of its windows, so they need not sum to 1. Warns if the video could only be
        decoded in part.

        Raises:
            UserError: the video cannot be decoded, or the network returns NaN.
        """
        from vidcls.data.decoding.windows import stream_windows  # imports the decoders

        options = self.default_options()
        try:
            stream = stream_windows(Path(video), options.plan(self.spec.store), DECODERS)
            parts = []
            with closing(iter(stream)) as windows:  # or other threads would wait for it
                while batch := [window.frames for window in islice(windows, self.spec.batch_size)]:
                    parts.append(self.predictor(batch))
        except (UndecodableError, OSError) as error:
            got = f"{video}: {error}"
            raise UserError("a decodable video", got, "Check the file.", "undecodable-video") from error
        if stream.result is not None and stream.result.status != "ok":
            warnings.warn(f"{video} is {stream.result.status}: {stream.result.reason}", stacklevel=2)
        probabilities = np.concatenate(parts)
        if not np.isfinite(probabilities).all():
            remedy = "Its training has diverged: train again with a lower optim.lr."
            raise UserError("finite probabilities from the network", f"none for {video}", remedy, "diverged-network")
        scores = video_score(probabilities, options.aggregation, options.top_k)
        return dict(zip(self.classes, scores.tolist(), strict=True))

    def videos(self, source: str | None = None, cache_dir: str | None = None) -> Videos:
        """The run's own videos, or those of ``source`` with the run's decode options and classes."""
        options: Any = OmegaConf.to_container(self.config.data, resolve=True)
        store = {"num_frames": self.spec.store.stored_frames, "resolution": self.spec.store.stored_resolution}
        options |= vars(self.spec.clip) | {"batch_size": self.spec.batch_size, "store": store}
        options |= {"classes": self.classes, "cache_dir": cache_dir or options["cache_dir"], "engine": None}
        if source is not None:
            options |= {"source": source, "demo": None, "decisions": []}
        videos = Videos(DataOptions.from_config(options))
        if source is None:
            videos.load_manifest(self.manifest)
        return videos


@dataclass(frozen=True, kw_only=True)
class LoadedRun(BaseRun):
    """A finished run."""

    model: Classifier  # with the weights of best.ckpt, in eval mode
    preprocess: Preprocess  # from stored frames to the network's input

    @property
    def members(self) -> tuple[LoadedRun, ...]:
        return (self,)

    def make_predictor(self, accelerator: str | None = None) -> Predictor:
        parts = self.model, self.preprocess, self.spec, self.reference
        return Predictor(*parts, self.config.trainer, accelerator)
