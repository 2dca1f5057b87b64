"""Classifies videos with a run's network, with the same numerics as the run's own test."""

import os
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor

from vidcls.data.sampling import select_frames
from vidcls.data.videos import Videos
from vidcls.errors import UserError, check_choice
from vidcls.metrics.predictions import Predictions
from vidcls.models.classifiers import Classifier
from vidcls.training.inference import (
    average_clips,
    clip_logits,
    pad_batch,
    use_channels_last,
    video_losses,
    without_cudnn_benchmark,
)
from vidcls.training.reference import Reference
from vidcls.training.run_folder import ACCELERATORS
from vidcls.training.spec import RunSpec
from vidcls.training.transforms import Preprocess

# The meaning of trainer.precision in Lightning: the dtype of the weights, and that of autocast.
PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    **dict.fromkeys(("64", "64-true"), (torch.float64, None)),
    **dict.fromkeys(("32", "32-true"), (torch.float32, None)),
    **dict.fromkeys(("16", "16-mixed"), (torch.float32, torch.float16)),
    **dict.fromkeys(("bf16", "bf16-mixed"), (torch.float32, torch.bfloat16)),
    "16-true": (torch.float16, None),
    "bf16-true": (torch.bfloat16, None),
}


class Predictor:
    """Classifies new videos on ``accelerator``, one of `ACCELERATORS`, by default that of training.

    Raises:
        UserError: there is no such device.
    """

    def __init__(
        self,
        model: Classifier,
        preprocess: Preprocess,
        spec: RunSpec,
        reference: Reference | None,
        trainer: DictConfig,
        accelerator: str | None = None,
    ) -> None:
        self.spec = spec
        self.device = choose_device(accelerator or str(trainer.accelerator))
        dtype, self._autocast_dtype = PRECISIONS[
            check_choice("trainer.precision", str(trainer.precision), tuple(PRECISIONS))
        ]
        if self.device.type == "cpu" and self._autocast_dtype == torch.float16:
            note = f"Computes in bfloat16, as a CPU cannot in trainer.precision={trainer.precision}"
            warnings.warn(f"{note}: probabilities differ a little from those of training.", stacklevel=2)
            self._autocast_dtype = torch.bfloat16
        self._model = model.to(self.device, dtype)
        self._preprocess = preprocess.to(self.device, dtype)
        if trainer.deterministic:  # as Lightning's trainer does it
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=trainer.deterministic == "warn")
        use_channels_last(self._model, self.device)
        self._projection = None
        if reference is not None:
            pair = reference.mean, reference.components
            self._projection = [torch.from_numpy(array).to(self.device) for array in pair]
        store, clip = spec.store, spec.clip
        self._indices = select_frames(store.stored_frames, clip.num_frames, clip.sampling)

    def _network(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B Q"]:
        """Logits, and clip vectors in the P components of the run's reference (Q = K + P); P is 0 without one."""
        autocast = torch.autocast(
            self.device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None, cache_enabled=False
        )
        with autocast, without_cudnn_benchmark():
            inputs = self._preprocess(frames.to(self.device, non_blocking=True))
            if self._projection is None:
                return self._model(inputs)
            clips = self._model.embed(self._model.encode(inputs))
            logits = self._model.output(clips)  # as `Classifier.forward`, whose dropout does nothing here
        mean, components = self._projection
        return torch.cat([logits.float(), (clips.float() - mean) @ components.T], dim=1)

    def __call__(self, stacks: Sequence[UInt8[np.ndarray, "_ H W 3"]]) -> Float[np.ndarray, "B K"]:
        """Probabilities of stacks of frames from `vidcls.data.decoding.frames.decode`.

        A stack of F frames is one clip; the probabilities of the M clips in a stack of M * F frames are averaged.
        """
        return self.outputs(stacks)[:, : len(self.spec.classes)]

    @torch.inference_mode()
    def outputs(self, stacks: Sequence[UInt8[np.ndarray, "_ H W 3"]]) -> Float[np.ndarray, "B Q"]:
        """Probabilities, as of `__call__`, and clip vectors in the P components of the run's reference."""
        stored, batch_size = self.spec.store.stored_frames, self.spec.batch_size
        counts = [len(stack) // stored for stack in stacks]
        clips = [stack.reshape(-1, stored, *stack.shape[1:])[:, self._indices] for stack in stacks]
        batches = torch.from_numpy(np.concatenate(clips)).split(batch_size)
        found = [self._network(pad_batch(batch, batch_size))[: len(batch)].float() for batch in batches]
        averaged = [_average_outputs(video[None], len(self.spec.classes)) for video in torch.cat(found).split(counts)]
        return np.concatenate([torch.cat(pair, dim=1).cpu().numpy() for pair in averaged])

    def predict_split(self, videos: Videos, split: str) -> Predictions:
        """Predicts each video of a split once; raises `UserError` if the network returns NaN."""
        return self.classify_split(videos, split)[0]

    @torch.inference_mode()
    def classify_split(self, videos: Videos, split: str) -> tuple[Predictions, Float[np.ndarray, "N P"]]:
        """`predict_split`, and the clip vectors as in `outputs`."""
        spec, count = self.spec, len(self.spec.classes)
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
    """Averages the clips of each video: the probabilities of ``count`` classes, and the clip vectors."""
    # Contiguous, as in training: a softmax along another stride may round differently.
    return average_clips(outputs[..., :count].contiguous()), outputs[..., count:].mean(dim=1)


def choose_device(accelerator: str) -> torch.device:
    """The device that Lightning uses for an accelerator; raises `UserError` if there is none."""
    check_choice("accelerator", accelerator, ACCELERATORS)
    found = torch.accelerator.current_accelerator(check_available=True)
    if accelerator == "cpu" or (accelerator == "auto" and found is None):
        return torch.device("cpu")
    if found is None or accelerator not in ("auto", "gpu", found.type):
        expected = "a GPU, as the run was trained on one"
        raise UserError(expected, "no GPU visible to PyTorch", "Pass accelerator=cpu.", "no-gpu")
    return torch.device(found.type, torch.accelerator.current_device_index())
