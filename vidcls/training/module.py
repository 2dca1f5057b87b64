"""The LightningModule: loss, optimiser, and one prediction per video gathered over all devices."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F

from vidcls.data.dataset import FeatureBatch, VideoBatch
from vidcls.errors import UserError
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
from vidcls.training.logistic_options import is_logistic
from vidcls.training.optim import build_optimizer
from vidcls.training.spec import RunSpec, fitted_splits
from vidcls.training.transforms import Preprocess


class VideoClassifier(L.LightningModule):
    """Trains a classifier of videos, from uint8 [B, T, H, W, 3] to logits [B, K].

    Each epoch is seeded by (``seed``, epoch), so that a resumed run repeats it. ``class_weights`` [K] and
    ``label_smoothing`` affect only the training loss; for ``optim`` see `vidcls.training.optim.build_optimizer`. With
    ``refit``, the network is fitted to val too, and the predictions of val are out-of-fold. ``settings`` are stored in
    checkpoints, see `vidcls.training.run_config.lasting_settings`.

    Attributes:
        predictions: of the last validation or test, the same on every rank; a checkpoint holds those of its epoch.
        oof_predictions: out-of-fold, of the videos fitted to; of optim=logistic only.
        metrics: of the last validation, as in metrics.json.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: Classifier,
        preprocess: Preprocess,
        spec: RunSpec,
        optim: Mapping[str, Any],
        seed: int = 0,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        refit: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.spec = spec
        self.optim = optim
        self.seed = seed
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.refit = refit
        self.settings = dict(settings or {})
        self.predictions: Predictions | None = None
        self.oof_predictions: Predictions | None = None
        self.metrics: dict[str, Any] | None = None
        self._validated_at: int | None = None  # the step of the last validation
        self.features_dtype = torch.float32  # of the encoder's output in this precision
        self._outputs: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._train_totals = torch.zeros(2)  # the sums of loss and accuracy over this epoch's clips so far
        self._train_clips = 0

    @property
    def num_trainable(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @property
    def fitted_splits(self) -> tuple[str, ...]:
        """The splits that the network is fitted to, in the order of ``oof_predictions``."""
        return fitted_splits(self.refit)

    @property
    def features_cacheable(self) -> bool:
        """Whether the features of a clip are the same in every epoch: the encoder is frozen, nothing is augmented."""
        return self.model.encoder.is_frozen and self.preprocess.augment.is_identity

    def forward(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B K"]:
        return self.model(self.preprocess(frames))

    def encode(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B *features"]:
        """Features of stored frames, in a full batch as in evaluation."""
        with without_cudnn_benchmark():
            return self.model.encode(self.preprocess(pad_batch(frames, self.spec.batch_size)))[: len(frames)]

    def _classify(self, features: Float[Tensor, "B *features"]) -> Float[Tensor, "B K"]:
        return self.model.classify(features.to(self.features_dtype))

    def setup(self, stage: str) -> None:
        use_channels_last(self.model, self.trainer.strategy.root_device)  # where Lightning moves it afterwards

    def on_train_epoch_start(self) -> None:
        """Makes the epoch's random numbers a function of seed, epoch and rank."""
        sequence = np.random.SeedSequence([self.seed, self.current_epoch, self.global_rank])
        torch.manual_seed(int(sequence.generate_state(1)[0]))
        self._train_totals, self._train_clips = torch.zeros(2, device=self.device), 0

    def training_step(self, batch: VideoBatch | FeatureBatch, _: int) -> Tensor:
        """The mean weighted cross-entropy of a batch's clips, with soft labels for mixed ones."""
        weights, mix = self.class_weights, self.preprocess.augment.mix
        if isinstance(batch, FeatureBatch) or mix.is_identity:
            labels = batch.label
            logits = self._classify(batch.features) if isinstance(batch, FeatureBatch) else self(batch.frames)
            loss = F.cross_entropy(logits, labels, weight=weights, label_smoothing=self.label_smoothing)
            if weights is not None:  # PyTorch divides by those of the batch: of one class, they would cancel
                loss = loss * weights[labels].mean()
        else:
            one_hot = F.one_hot(batch.label, len(self.spec.classes)).float()
            frames, shares = mix(self.preprocess(batch.frames), one_hot)
            logits, labels = self.model(frames), shares.argmax(dim=1)
            loss = F.cross_entropy(logits, shares, weights, label_smoothing=self.label_smoothing)
        correct = (logits.argmax(dim=1) == labels).float().mean()
        # `log` would take a third of a small step's time on a GPU.
        self._train_totals += torch.stack([loss.detach(), correct]) * len(labels)
        self._train_clips += len(labels)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0: never
        if every and self.trainer.global_step % every == 0:
            loss = outputs["loss"] * self.trainer.accumulate_grad_batches  # Lightning has divided it by that
            self.log("train/loss_step", loss, on_step=True, on_epoch=False)

    def train_averages(self) -> dict[str, Tensor]:
        """Means over the epoch's clips so far, of all ranks, with dropout and augmentation, as Keras reports them."""
        sums = torch.cat([self._train_totals, self._train_totals.new_tensor([self._train_clips])])
        if self._trainer is not None:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        loss, accuracy, clips = sums
        return {"train/loss": loss / clips, "train/accuracy": accuracy / clips}

    def on_train_epoch_end(self) -> None:
        # The callback History sends these to the loggers, before the epoch's checkpoint rather than after it.
        self.log_dict(self.train_averages(), logger=False)

    def validation_step(self, batch: VideoBatch | FeatureBatch, _: int) -> None:
        if isinstance(batch, FeatureBatch):
            network, videos = self._classify, batch.features
        else:
            network, videos = self, batch.frames
        logits = clip_logits(network, videos, self.spec.clip.num_clips, self.spec.batch_size)  # [B, M, K]
        losses = video_losses(logits, batch.label)
        self._outputs.append((batch.index, batch.label, average_clips(logits), losses))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.predictions = self._gather()
        self._validated_at = self.global_step
        if self.refit and self.oof_predictions is not None:  # these weights have seen val
            self.predictions = self.oof_predictions.last(len(self.predictions.labels))
        self.metrics = self.predictions.summary(self.spec.classes)
        for name in ("loss", "accuracy", "macro_f1", "auroc", "calibration_error"):
            if self.metrics[name] is not None:
                self.log(f"val/{name}", self.metrics[name], prog_bar=name in ("loss", "accuracy"))
        for label, values in self.metrics["per_class"].items():
            for name in ("precision", "recall", "f1"):
                self.log(f"val_{name}/{label}", values[name])

    def on_test_epoch_end(self) -> None:
        self.predictions = self._gather()

    def _gather(self) -> Predictions:
        """The predictions of all ranks, in the split's order."""
        index, labels, probabilities, losses = (torch.cat(part).cpu() for part in zip(*self._outputs, strict=True))
        self._outputs.clear()
        if self.trainer.world_size > 1:
            shares: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(shares, (index, labels, probabilities, losses))
            index, labels, probabilities, losses = (torch.cat(part) for part in zip(*shares, strict=True))
        if not bool(probabilities.isfinite().all()):
            raise UserError(
                "finite probabilities",
                f"NaN in epoch {self.current_epoch + 1}: training has diverged",
                "Lower optim.lr, or give trainer.gradient_clip_val=1.",
                "diverged",
            )
        order = np.unique(index.numpy(), return_index=True)[1]  # where ranks outnumber videos, some have the same one
        return Predictions(labels[order].numpy(), probabilities[order].numpy(), losses[order].numpy())

    def configure_optimizers(self) -> Any:
        if is_logistic(self.optim):
            return None  # a callback fits the output layer
        total_steps = int(self.trainer.estimated_stepping_batches)
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        epochs = total_steps / max(steps_per_epoch, 1)  # fewer than max_epochs if there is a limit of steps
        # Lightning refuses to clip the gradients of fused optimisers.
        fused = self.device.type == "cuda" and not self.trainer.gradient_clip_val
        return build_optimizer(self.optim, self.model.stages(), total_steps, epochs, fused)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the spec to rebuild the model and repeat the decoding, the settings, and predictions."""
        checkpoint["vidcls"], checkpoint["settings"] = self.spec.to_dict(), self.settings
        checkpoint["world_size"] = self.trainer.world_size
        val = self.predictions if self._validated_at == self.global_step else None  # others are of earlier weights
        for name, predictions in (("val_predictions", val), ("oof_predictions", self.oof_predictions)):
            checkpoint[name] = None if predictions is None else predictions.tensors()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Updates the folder of checkpoint callbacks, as the run folder may have moved."""
        for callback in self.trainer.checkpoint_callbacks if self._trainer is not None else []:
            if isinstance(callback, ModelCheckpoint) and callback.state_key in checkpoint["callbacks"]:
                checkpoint["callbacks"][callback.state_key]["dirpath"] = callback.dirpath
