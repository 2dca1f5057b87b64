"""The LightningModule: its loss and its predictions."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from helpers.modules import CLASSES, build, clips, loader, trainer
from torch.nn import functional as F

from vidcls.metrics.predictions import Predictions
from vidcls.training.inference import clip_logits
from vidcls.training.module import VideoClassifier


class Logged(L.Callback):
    """Keeps what each epoch of training and validation leaves in the trainer."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.epochs.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[VideoClassifier, Logged, Path]:
    """A module after two epochs, what was logged, and its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    module, logged = build(label_smoothing=0.1, class_weights=[1.0, 2.0, 0.5]), Logged()
    fitter = trainer(folder, logged, epochs=2)
    fitter.fit(module, loader(clips(10)), loader(clips(7, seed=1)))
    fitter.save_checkpoint(folder / "last.ckpt")
    return module, logged, folder / "last.ckpt"


# ---- loss


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.25]])
def test_loss_is_cross_entropy_written_out(smoothing: float, weights: list[float] | None) -> None:
    module = build(label_smoothing=smoothing, class_weights=weights).eval()  # no dropout
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer to log to
    batch = next(iter(loader(clips(4))))
    log_p = module(batch.frames).log_softmax(1)
    w = torch.tensor(weights or [1.0] * 3)
    own = -w[batch.label] * log_p[range(4), batch.label]
    spread = -(w * log_p).sum(1) / 3
    expected = ((1 - smoothing) * own + smoothing * spread).mean()
    torch.testing.assert_close(module.training_step(batch, 0), expected)
    if weights is None:
        reference = F.cross_entropy(module(batch.frames), batch.label, label_smoothing=smoothing)
        assert torch.equal(module.training_step(batch, 0), reference)


def test_class_weights_hold_in_batches_of_any_size() -> None:
    module = build(class_weights=[1.0, 2.0, 0.25]).eval()
    losses = [
        torch.stack([module.training_step(batch, 0) for batch in loader(clips(6), size)]).mean() for size in (1, 2, 6)
    ]
    torch.testing.assert_close(losses, [losses[0]] * 3)


def test_num_trainable_leaves_out_the_fixed_bias() -> None:
    module = build()
    assert sum(p.numel() for p in module.parameters()) - module.num_trainable == 4 * 6


# ---- predictions


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_each_video_is_predicted_once_in_split_order(tmp_path: Path, batch_size: int) -> None:
    module, videos = build(), clips(10)
    shuffled = [videos[row] for row in (7, 2, 9, 0, 1, 8, 3, 6, 5, 4)]
    trainer(tmp_path).test(module, loader(shuffled, batch_size), verbose=False)
    predictions = module.predictions
    assert isinstance(predictions, Predictions)
    assert predictions.labels.tolist() == [row % 3 for row in range(10)]
    logits = module.eval()(torch.stack([video.frames for video in videos])).detach()
    np.testing.assert_allclose(predictions.probabilities, logits.softmax(1).numpy(), atol=1e-6)
    np.testing.assert_allclose(predictions.probabilities.sum(1), 1, atol=1e-6)
    losses = F.cross_entropy(logits, torch.tensor(predictions.labels), reduction="none")
    np.testing.assert_allclose(predictions.losses, losses.numpy(), atol=1e-6)


def test_a_second_split_does_not_see_the_first(tmp_path: Path) -> None:
    module, tester = build(), trainer(tmp_path)
    for count in (5, 3):
        tester.test(module, loader(clips(count)), verbose=False)
        assert module.predictions is not None and len(module.predictions.labels) == count


def test_losses_of_predictions_are_plain(tmp_path: Path) -> None:
    plain, weighted = build(), build(label_smoothing=0.3, class_weights=[5.0, 1.0, 0.1])
    for module in (plain, weighted):
        trainer(tmp_path).test(module, loader(clips(6)), verbose=False)
    assert plain.predictions is not None and weighted.predictions is not None
    assert np.array_equal(plain.predictions.losses, weighted.predictions.losses)


# ---- what is logged


def test_an_epoch_logs_its_metrics(trained: tuple[VideoClassifier, Logged, Path]) -> None:
    _, logged, _ = trained
    assert len(logged.epochs) == 2
    names = set(logged.epochs[-1])
    assert {"train/loss_step", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/macro_f1"} <= names
    assert {f"val_{metric}/{name}" for metric in ("precision", "recall", "f1") for name in CLASSES} <= names


def test_validation_metrics_are_of_each_video_once(trained: tuple[VideoClassifier, Logged, Path]) -> None:
    module, logged, _ = trained
    predictions = module.predictions  # of the last epoch's validation: 7 videos, in batches of 4 and 3
    assert predictions is not None and len(predictions.labels) == 7
    right = predictions.probabilities.argmax(1) == predictions.labels
    assert logged.epochs[-1]["val/accuracy"] == pytest.approx(right.mean())
    assert logged.epochs[-1]["val/loss"] == pytest.approx(predictions.losses.mean(), rel=1e-5)


# ---- full batches


def test_a_videos_prediction_does_not_depend_on_its_batch() -> None:
    module = build().eval()
    frames = torch.randint(256, (8, 3, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def logits(videos: torch.Tensor) -> torch.Tensor:
        return clip_logits(module, videos, num_clips=1, batch_size=4)

    with torch.inference_mode():
        full = torch.cat([logits(frames[:4]), logits(frames[4:])])
        assert torch.equal(torch.cat([logits(frame[None]) for frame in frames]), full)
        assert torch.equal(torch.cat([logits(frames[:3]), logits(frames[3:7]), logits(frames[7:])]), full)
        assert torch.equal(logits(frames.flip(0)[:4]), full.flip(0)[:4])
