"""The training loop's content: loss, optimiser, and one prediction per video gathered over all devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F

from vidcls.data.dataset import Clip
from vidcls.errors import UserError, check_number
from vidcls.metrics.predictions import Predictions
from vidcls.models.classifiers import Classifier
from vidcls.training.optim import AdamW
from vidcls.training.transforms import Preprocess


def average_clips(logits: Float[Tensor, "B M K"]) -> Float[Tensor, "B K"]:
    """Probabilities of videos, from logits of their M clips: the mean of the clips' probabilities.

    Summed one clip after the other, since a sum in another order, or along another axis, may round otherwise.

    Example:
        >>> average_clips(torch.tensor([[[0.0, 0.0], [50.0, 0.0]]]))
        tensor([[0.7500, 0.2500]])
    """
    return reduce(torch.add, logits.softmax(dim=2).unbind(dim=1)) / logits.shape[1]


class VideoModule(L.LightningModule):
    """Trains a classifier of videos.

    Validation and test leave their result in ``predictions``, the same on every device. A checkpoint holds those of its
    epoch's validation.

    Args:
        model: [B, T, 3, R, R] to logits [B, K].
        preprocess: uint8 [B, T, H, W, 3] to what the model takes.
        optim: builds the optimiser.
        seed: of the whole run; each epoch draws from (seed, epoch), so that a resumed run repeats it.
        label_smoothing: 0..1, in the training loss.
        class_weights: [K], in the training loss; None weighs all alike.
        settings: plain values that go into every checkpoint, enough to rebuild all of this.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: Classifier,
        preprocess: Preprocess,
        optim: AdamW,
        seed: int,
        label_smoothing: float,
        class_weights: Sequence[float] | None,
        settings: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.optim = optim
        self.seed = seed
        self.label_smoothing = check_number("loss.label_smoothing", label_smoothing, 0.0, 1.0)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.settings = settings
        self.predictions: Predictions | None = None
        self._outputs: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    @property
    def num_trainable(self) -> int:
        """How many parameters training changes."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def forward(self, frames: UInt8[Tensor, "B T H W 3"] | Float[Tensor, "B *features"]) -> Float[Tensor, "B K"]:
        """Logits of raw stored frames, or of what the encoder has said of them (see `vidcls.training.feature_cache`).

        Outside training a batch that is not full is filled up with black clips: a matrix product of another shape may
        round otherwise, and what is said of a video must not hang on how many others came with it.
        """
        filled = frames if self.training else self._filled(frames)
        logits = self.model.classify(filled) if filled.is_floating_point() else self.model(self.preprocess(filled))
        return logits[: len(frames)]

    def _clip_logits(self, frames: Tensor) -> Float[Tensor, "B M K"]:
        """Logits of the clips of videos, [B, M, ...] where M > 1, in batches as those of single clips."""
        clips = frames.unbind(dim=1) if self.settings["data"]["num_clips"] > 1 else [frames]
        return torch.stack([self(clip).float() for clip in clips], dim=1)

    def encode(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B *features"]:
        """What the encoder says of raw stored frames, in a full batch as in `forward`."""
        return self.model.encode(self.preprocess(self._filled(frames)))[: len(frames)]

    def _filled(self, frames: Tensor) -> Tensor:
        missing = max(self.settings["data"]["batch_size"] - len(frames), 0)
        return torch.cat([frames, frames.new_zeros(missing, *frames.shape[1:])]) if missing else frames

    @property
    def is_repeatable(self) -> bool:
        """Whether the encoder says the same of a clip in every epoch: it is frozen, and nothing is augmented."""
        return self.model.encoder.is_frozen and self.preprocess.augment.changes_nothing

    def on_train_epoch_start(self) -> None:
        """Makes the epoch's random draws a function of seed, epoch and device alone."""
        sequence = np.random.SeedSequence([self.seed, self.current_epoch, self.global_rank])
        torch.manual_seed(int(sequence.generate_state(1)[0]))

    def training_step(self, clip: Clip, _: int) -> Tensor:
        """Cross-entropy of a batch; of mixed clips, with as much of each class as is in them."""
        weights, mix = self.class_weights, self.preprocess.augment.mix
        if mix.changes_nothing:
            logits, labels = self(clip.frames), clip.label
            loss = F.cross_entropy(logits, labels, weight=weights, label_smoothing=self.label_smoothing)
        else:
            one_hot = F.one_hot(clip.label, len(self.settings["classes"])).float()
            frames, shares = mix(self.preprocess(clip.frames), one_hot)
            logits, labels = self.model(frames), shares.argmax(dim=1)
            loss = F.cross_entropy(logits, shares, weights, label_smoothing=self.label_smoothing, reduction="sum")
            loss = loss / (shares if weights is None else shares * weights).sum()  # as it is for whole labels
        right = (logits.argmax(dim=1) == labels).float().mean()
        self.log("train/loss_step", loss, on_step=True, on_epoch=False, prog_bar=True)
        # Averaged over the epoch's batches in training mode (dropout and augmentation on), as Keras reports it. The
        # callback History sends these to the logger, before the epoch's checkpoint rather than after it.
        for name, value in (("loss", loss.detach()), ("accuracy", right)):
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, logger=False, batch_size=len(clip.label))
        return loss

    def validation_step(self, clip: Clip, _: int) -> None:
        """Keeps what is said of each video of the batch."""
        logits = self._clip_logits(clip.frames)
        # The logarithm of the mean probability, finite where that is too small for a float.
        log_p = logits.log_softmax(dim=2).logsumexp(dim=1) - math.log(logits.shape[1])
        losses = F.nll_loss(log_p, clip.label, reduction="none")
        self._outputs.append((clip.row, clip.label, average_clips(logits), losses))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Gathers the predictions and logs the split's figures."""
        self.predictions = self._gather()
        figures = self.predictions.summary(self.settings["classes"])
        for name in ("loss", "accuracy", "macro_f1", "auroc", "calibration_error"):
            if figures[name] is not None:
                self.log(f"val/{name}", figures[name], prog_bar=name in ("loss", "accuracy"))
        for label, values in figures["per_class"].items():
            for name in ("precision", "recall", "f1"):
                self.log(f"val_{name}/{label}", values[name])

    def on_test_epoch_end(self) -> None:
        """Gathers the predictions."""
        self.predictions = self._gather()

    def _gather(self) -> Predictions:
        rows, labels, probabilities, losses = (torch.cat(part).cpu() for part in zip(*self._outputs, strict=True))
        self._outputs.clear()
        if self.trainer.world_size > 1:
            shares: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(shares, (rows, labels, probabilities, losses))
            rows, labels, probabilities, losses = (torch.cat(part) for part in zip(*shares, strict=True))
        if not bool(probabilities.isfinite().all()):
            raise UserError(
                "finite probabilities",
                f"NaN in epoch {self.current_epoch + 1}: training has diverged",
                "Lower optim.lr, or give trainer.gradient_clip_val=1.",
            )
        order = rows.argsort()
        return Predictions(labels[order].numpy(), probabilities[order].numpy(), losses[order].numpy())

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, stepped after every batch."""
        total_steps, epochs = int(self.trainer.estimated_stepping_batches), self.trainer.max_epochs or 1
        optimizer, schedule = self.optim.build(self.model.stages(), total_steps, epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what rebuilds the model and repeats the decoding, and what its weights have said of val."""
        checkpoint["vidcls"] = self.settings
        checkpoint["val_predictions"] = None if self.predictions is None else self.predictions.tensors()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Tells the checkpoint callbacks that a run folder which has moved is still the same."""
        for callback in self.trainer.checkpoint_callbacks if self._trainer is not None else []:
            if isinstance(callback, ModelCheckpoint) and callback.state_key in checkpoint["callbacks"]:
                checkpoint["callbacks"][callback.state_key]["dirpath"] = callback.dirpath
