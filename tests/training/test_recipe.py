"""The training recipe at work: mixed clips, averaged weights, accumulated gradients, stages that wait."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.commands import train
from helpers.modules import CLASSES, OPTIM, SPEC, build, clips, loader, trainer
from helpers.runs import evaluate, metrics_of, results, scalars
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from vidcls.training.callbacks import EMA
from vidcls.training.checkpoint import load_checkpoint
from vidcls.training.module import VideoClassifier
from vidcls.training.transforms import Augment

PLAIN = OPTIM | {"schedule": "constant"}

# ---- mixed clips


def mixing(augment: Augment, **changes: Any) -> VideoClassifier:
    """A module without dropout."""
    return build(augment=augment, **changes).eval()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.25]])
def test_the_loss_of_mixed_clips_written_out(smoothing: float, weights: list[float] | None) -> None:
    augment = Augment(mixup=1.0)
    module = mixing(augment, label_smoothing=smoothing, class_weights=weights)
    batch = next(iter(loader(clips(4))))
    torch.manual_seed(1)
    loss = module.training_step(batch, 0)
    torch.manual_seed(1)
    frames, shares = augment.mix(module.preprocess(batch.frames), torch.eye(3)[batch.label])
    assert 0.1 < float(shares.max(dim=1).values.min()) < 0.9  # they are mixed indeed
    logits = module.model(frames)
    w = torch.tensor(weights or [1.0] * 3)
    targets = (1 - smoothing) * shares + smoothing / 3
    expected = -(w * targets * logits.log_softmax(1)).sum() / 4
    torch.testing.assert_close(loss, expected)
    correct = (logits.argmax(1) == shares.argmax(1)).float().mean()
    assert module.train_averages()["train/accuracy"] == correct


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.25]])
def test_a_clip_mixed_with_itself_has_the_loss_of_a_whole_one(weights: list[float] | None) -> None:
    plain = mixing(Augment(), label_smoothing=0.1, class_weights=weights)
    mixed = mixing(Augment(mixup=0.2, cutmix=1.0), label_smoothing=0.1, class_weights=weights)
    for clip in loader(clips(3), batch_size=1):
        torch.testing.assert_close(mixed.training_step(clip, 0), plain.training_step(clip, 0))


# ---- averaged weights


class Weights(L.Callback):
    """Keeps the weights that each step leaves."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.steps.append(copy.deepcopy(module.state_dict()))


def each_epoch(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)


Averaged = tuple[VideoClassifier, Weights, Path]


def fit(
    folder: Path, *callbacks: L.Callback, epochs: int = 2, resume: Path | None = None, **changes: Any
) -> VideoClassifier:
    """Trains and keeps a checkpoint of every epoch."""
    module = build(**({"optim": PLAIN} | changes))
    fitter = trainer(folder, *callbacks, each_epoch(folder), epochs=epochs, enable_checkpointing=True)
    data = (loader(clips(10)), loader(clips(7, seed=1)))
    fitter.fit(module, *data, ckpt_path=None if resume is None else str(resume), weights_only=True)
    return module


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Averaged:
    """A run of four epochs of three steps with averaged weights."""
    folder, steps = tmp_path_factory.mktemp("averaged"), Weights()
    return fit(folder, steps, EMA(decay=0.5), epochs=4), steps, folder


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_average_written_out(averaged: Averaged) -> None:
    _, weights, folder = averaged
    average = weights.steps[0]
    for n, step in enumerate(weights.steps[1:], start=1):
        kept = min(0.5, n / (9 + n))  # 1/10, 2/11, ..., 8/17, 0.5, 0.5, 0.5
        average = {name: kept * average[name] + (1 - kept) * value for name, value in step.items()}
        if (n + 1) % 3 == 0:
            saved = load_checkpoint(folder / f"epoch={n // 3}.ckpt")
            torch.testing.assert_close(saved.state_dict, average)
            assert same(saved.raw["current_model_state"], step) and not same(saved.state_dict, step)


def test_validation_is_of_the_average(averaged: Averaged) -> None:
    module, _, folder = averaged
    average = load_checkpoint(folder / "epoch=3.ckpt").state_dict
    averaged_module = build().eval()
    averaged_module.load_state_dict(average)
    with torch.inference_mode():
        logits = torch.cat([averaged_module(batch.frames) for batch in loader(clips(7, seed=1))])
    assert module.predictions is not None
    torch.testing.assert_close(torch.from_numpy(module.predictions.probabilities), logits.softmax(1))
    assert same(module.state_dict(), average)  # and it is what training ends with


def test_training_goes_on_as_without_the_average(averaged: Averaged, tmp_path: Path) -> None:
    fit(tmp_path, epochs=4)
    alone = load_checkpoint(tmp_path / "epoch=3.ckpt").state_dict
    assert same(load_checkpoint(averaged[2] / "epoch=3.ckpt").raw["current_model_state"], alone)


def test_a_resumed_average_is_the_same_to_the_bit(averaged: Averaged, tmp_path: Path) -> None:
    fit(tmp_path, EMA(decay=0.5), epochs=4, resume=averaged[2] / "epoch=1.ckpt")
    one, two = (load_checkpoint(folder / "epoch=3.ckpt").raw for folder in (tmp_path, averaged[2]))
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert same(one[part], two[part]), part


def test_what_does_not_train_is_averaged_to_itself(tmp_path: Path) -> None:
    """Also where 0.3 x + 0.7 x would not be x to the last digit."""

    class Freeze(L.Callback):
        def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
            assert isinstance(module, VideoClassifier)
            module.model.encoder.requires_grad_(False)

    average = EMA(decay=0.7)
    module = fit(tmp_path, Freeze(), average, epochs=2)
    now, start = module.state_dict(), build().state_dict()
    encoder = [name for name in start if name.startswith("model.encoder")]
    assert encoder and all(torch.equal(now[name], start[name]) for name in encoder)
    assert torch.equal(module.preprocess.std, build().preprocess.std)


def test_batch_counts_are_copied() -> None:
    """What a batch norm has seen is a whole number, and its running figures are averaged as the weights are."""
    average, current = EMA(decay=0.0), [torch.tensor(7)]
    counts = [torch.tensor(3)]
    average._update(counts, current, torch.tensor(5))
    assert counts[0] == 7


# ---- accumulated gradients


class Rates(L.Callback):
    """Keeps the learning rate of each step of the optimiser."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def test_two_batches_of_two_are_one_of_four(tmp_path: Path) -> None:
    """The network has no batch norm, so only the order of sums differs; schedules count steps, not batches."""
    seen = []
    for accumulate, batch_size in ((1, 4), (2, 2)):
        spec = replace(SPEC, model=SPEC.model | {"dropout": 0.0})
        rates = Rates()
        optim = OPTIM | {"eps": 1e-4, "weight_decay": 0.01, "schedule": "one_cycle", "warmup": 0.5}
        module = build(spec, optim=optim)
        fitter = trainer(tmp_path, rates, epochs=3, accumulate_grad_batches=accumulate)
        fitter.fit(module, loader(clips(8), batch_size), loader(clips(4)))
        seen.append((fitter.global_step, rates.rates, module.state_dict()))
    (steps, one, weights), (steps_too, two, weights_too) = seen
    assert steps == steps_too == 6 and one == two
    assert one == pytest.approx([0.0004, 0.0052, 0.01, 0.00750001, 0.00250003, 4e-8])
    torch.testing.assert_close(weights_too, weights, rtol=1e-4, atol=1e-6)


# ---- stages


class TwoStages(nn.Module):
    """A layer that could be pretrained, below one that is new."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(3, 5), nn.Linear(5, len(CLASSES))

    def stages(self) -> list[list[nn.Parameter]]:
        return [list(self.below.parameters()), list(self.above.parameters())]

    def forward(self, frames: Tensor) -> Tensor:
        return self.above(F.relu(self.below(frames.mean((1, 3, 4)))))


@pytest.mark.parametrize("limits", [{"epochs": 3}, {"epochs": 50, "max_steps": 6}])
def test_a_networks_stages_reach_the_optimiser(limits: dict[str, int], tmp_path: Path) -> None:
    module = build(optim=PLAIN | {"weight_decay": 0.1, "encoder_lr_factor": 0.5, "unfreeze_epochs": 2})
    module.model = TwoStages()
    start = copy.deepcopy(module.model.state_dict())
    fitter = trainer(tmp_path, each_epoch(tmp_path), enable_checkpointing=True, **limits)
    fitter.fit(module, loader(clips(8)), loader(clips(4)))
    for epoch, changed in enumerate(([False, True], [False, True], [True, True])):
        weights = load_checkpoint(tmp_path / f"epoch={epoch}.ckpt").state_dict
        layers = ("below.weight", "above.weight")
        assert [not torch.equal(weights[f"model.{name}"], start[name]) for name in layers] == changed
    assert [group["lr"] for group in fitter.optimizers[0].param_groups] == [0.005, 0.01]


# ---- all together


def test_a_run_with_all_of_it(tiny: list[str], tmp_path: Path) -> None:
    """Trains, saves the averaged weights as best, and evaluation repeats the figures from them."""
    run = tmp_path / "run"
    recipe = ["optim=adamw", "augment=strong", "augment.cutmix=1.0", "callbacks=ema"]
    recipe += ["loss.label_smoothing=0.1", "loss.class_weights=balanced"]
    recipe += ["trainer.accumulate_grad_batches=2", "data.batch_size=2"]
    result = train(*tiny, *recipe, f"run_dir={run}")
    assert result.code == 0, result.stderr
    best = load_checkpoint(run / "checkpoints" / "best.ckpt")
    assert not same(best.state_dict, best.raw["current_model_state"])
    evaluate(run, "split=val")
    again, before = results(run / "evaluations" / "val")["val"], metrics_of(run)["val"]
    assert {name: again[name] for name in before} == before


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_clips_are_mixed_in_half_precision(precision: str, tiny: list[str], tmp_path: Path) -> None:
    """A CPU, which draws the shares, cannot do it in that."""
    half = [f"trainer.precision={precision}", "augment.mixup=0.2", "trainer.max_epochs=1"]
    result = train(*tiny, *half, f"run_dir={tmp_path / 'run'}")
    assert result.code == 0, result.stderr


def test_the_loss_of_a_step_does_not_depend_on_accumulation(tiny: list[str], tmp_path: Path) -> None:
    never = ["trainer.log_every_n_steps=0", "trainer.max_epochs=1", f"run_dir={tmp_path / 'never'}"]
    assert train(*tiny, *never).code == 0 and "train/loss_step" not in scalars(tmp_path / "never")
    still, runs = ["optim.lr=0.0", "model.dropout=0.0", "data.batch_size=2", "trainer.max_epochs=1"], []
    for number in (1, 3):
        run = tmp_path / str(number)
        result = train(*tiny, *still, f"trainer.accumulate_grad_batches={number}", f"run_dir={run}")
        assert result.code == 0, result.stderr
        runs.append(scalars(run)["train/loss_step"])
    assert runs[1] == pytest.approx(runs[0][2::3])
