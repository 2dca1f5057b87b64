"""The LightningModule: its loss, its predictions, and what a checkpoint needs to rebuild it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from helpers.modules import CLASSES, SETTINGS, build, clips, loader, trainer
from torch import Tensor
from torch.nn import functional as F

from vidcls.errors import UserError
from vidcls.metrics.predictions import Predictions
from vidcls.training.loop import build_network, load_checkpoint
from vidcls.training.module import VideoModule
from vidcls.training.transforms import Augment

OFF = Augment()


class Logged(L.Callback):
    """Keeps what each epoch of training and validation leaves in the trainer."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.epochs.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[VideoModule, Logged, Path]:
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
    expected = ((1 - smoothing) * own + smoothing * spread).sum() / w[batch.label].sum()
    torch.testing.assert_close(module.training_step(batch, 0), expected)
    reference = F.cross_entropy(
        module(batch.frames), batch.label, torch.tensor(weights) if weights else None, label_smoothing=smoothing
    )
    assert torch.equal(module.training_step(batch, 0), reference)


def test_label_smoothing_out_of_range() -> None:
    with pytest.raises(UserError, match=r"expected loss.label_smoothing to be a number from 0 to 1; got 1.5"):
        build(label_smoothing=1.5)


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


def test_an_epoch_logs_its_figures(trained: tuple[VideoModule, Logged, Path]) -> None:
    _, logged, _ = trained
    assert len(logged.epochs) == 2
    names = set(logged.epochs[-1])
    assert {"train/loss_step", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/macro_f1"} <= names
    assert {f"val_{figure}/{name}" for figure in ("precision", "recall", "f1") for name in CLASSES} <= names


def test_validation_figures_are_of_each_video_once(trained: tuple[VideoModule, Logged, Path]) -> None:
    module, logged, _ = trained
    predictions = module.predictions  # of the last epoch's validation: 7 videos, in batches of 4 and 3
    assert predictions is not None and len(predictions.labels) == 7
    right = predictions.probabilities.argmax(1) == predictions.labels
    assert logged.epochs[-1]["val/accuracy"] == pytest.approx(right.mean())
    assert logged.epochs[-1]["val/loss"] == pytest.approx(predictions.losses.mean(), rel=1e-5)


# ---- checkpoints


def test_a_checkpoint_rebuilds_the_network(trained: tuple[VideoModule, Logged, Path]) -> None:
    module, _, path = trained
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["vidcls"] == SETTINGS == json.loads(json.dumps(checkpoint["vidcls"]))
    torch.manual_seed(99)  # the initial values must not matter
    model, preprocess = build_network(checkpoint["vidcls"], OFF)
    weights = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    assert all(name.startswith("model.") for name in checkpoint["state_dict"])
    model.load_state_dict(weights)
    frames = torch.stack([video.frames for video in clips(5, seed=2)])
    assert torch.equal(model.eval()(preprocess.eval()(frames)), module.eval()(frames))


@pytest.mark.parametrize(
    "target", ["os.system", "vidcls.data.demo.draw_demo", "vidcls.models.encoders.torch.hub.load", None]
)
def test_a_checkpoint_may_not_run_just_anything(target: str | None) -> None:
    settings = SETTINGS | {"model": SETTINGS["model"] | {"_target_": target}}
    with pytest.raises(UserError, match=rf"expected a model of vidcls.models.classifiers; got {target}"):
        build_network(settings, OFF)


def test_nor_may_what_is_nested_in_it(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    nested = {
        "channels": {"_target_": "pathlib.Path.mkdir", "_args_": [{"_target_": "pathlib.Path", "_args_": [str(trap)]}]}
    }
    with pytest.raises(Exception, match="channels"):  # refused by whichever check comes first, and never called
        build_network(SETTINGS | {"model": SETTINGS["model"] | {"encoder": nested}}, OFF)
    assert not trap.exists()


def test_load_checkpoint_gives_what_was_saved(trained: tuple[VideoModule, Logged, Path]) -> None:
    module, _, path = trained
    for classes in (None, CLASSES):
        state = load_checkpoint(path, classes)["state_dict"]
        assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("classes", [["adult", "harmful", "safe"], ["harmful", "safe"], ["cat", "dog", "cow"]])
def test_a_checkpoint_of_other_classes_is_refused(
    trained: tuple[VideoModule, Logged, Path], classes: list[str]
) -> None:
    with pytest.raises(UserError, match=rf"classes harmful, safe, adult; got {', '.join(classes)}\. Check data"):
        load_checkpoint(trained[2], classes)


def truncated(path: Path) -> bytes:
    return path.read_bytes()[:-200]


def altered(path: Path) -> bytes:
    return path.read_bytes()[:100] + bytes(2000) + path.read_bytes()[2100:]


@pytest.mark.parametrize("damage", [truncated, altered])
def test_a_damaged_checkpoint_is_refused(
    trained: tuple[VideoModule, Logged, Path], tmp_path: Path, damage: Callable[[Path], bytes]
) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(damage(trained[2]))
    with pytest.raises(UserError, match=r"expected a checkpoint of vidcls; got .*last.ckpt: "):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PK\x03\x04 not a zip", b"\x80\x02}q\x00.", bytes(100)])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "best.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"expected a checkpoint of vidcls; got .*best.ckpt: "):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [{}, {"state_dict": {}}, [1, 2], {"vidcls": {"format": 999, "classes": []}}, Tensor([1.0])]
)
def test_a_file_of_torch_that_is_no_checkpoint_of_ours_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"expected a checkpoint of vidcls; got .*best.ckpt: "):
        load_checkpoint(tmp_path / "best.ckpt")


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "trap",)

    torch.save({"vidcls": Trap()}, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"expected a checkpoint of vidcls; got .*best.ckpt: "):
        load_checkpoint(tmp_path / "best.ckpt")
    assert not (tmp_path / "trap").exists()


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a checkpoint of vidcls; got .*nowhere.ckpt: .*No such file"):
        load_checkpoint(tmp_path / "nowhere.ckpt")


def test_a_video_is_judged_alike_whoever_comes_with_it() -> None:
    module = build().eval()
    frames = torch.randint(256, (8, 3, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        full = torch.cat([module(frames[:4]), module(frames[4:])])
        assert torch.equal(torch.cat([module(frame[None]) for frame in frames]), full)
        assert torch.equal(torch.cat([module(frames[:3]), module(frames[3:7]), module(frames[7:])]), full)
        assert torch.equal(module(frames.flip(0)[:4]), full.flip(0)[:4])
