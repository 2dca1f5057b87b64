"""What train.py's options must be: mistakes are named by the option, and every shipped configuration is fine."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
from helpers.conf_files import CONF
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import vidcls.sweeps.jobs  # noqa: F401  # registers the resolvers that the configuration uses
from vidcls.errors import UserError
from vidcls.training.options import check_train_options

BACKBONE = ["model=encoder_head", "model.encoder.name=timm/test_resnet"]
STRONG = ["experiment=strong"]
PLAIN_VIDEO = ["model=r3d_18"]
PLATEAU = "_target_:torch.optim.lr_scheduler.ReduceLROnPlateau"


@cache
def composed_groups(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def composed(*overrides: str) -> DictConfig:
    """As the command line composes it; single values are set afterwards, which is faster."""
    single = [text for text in overrides if "." in text.partition("=")[0] and text[0] != "~"]
    cfg = copy.deepcopy(composed_groups(*(text for text in overrides if text not in single)))
    for override in OverridesParser.create().parse_overrides(single):
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=False)
    return cfg


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        (["seed=-1"], "seed"),
        (["seed=4294967296"], "seed"),  # NumPy takes no more than 32 bits
        (["objective=auc"], "objective"),
        (["compile=1"], "compile"),
        (["trainer.max_epochs=0"], "trainer.max_epochs"),
        (["trainer.accelerator=gpus"], "trainer.accelerator"),
        (["trainer.precision=8"], "trainer.precision"),
        (["trainer.deterministic=no"], "trainer.deterministic"),
        (["model=encoder_head", "model/head=lstm", "model.head.bidirectional=off"], "model.head.bidirectional"),
        (["loss.class_weights=some"], "loss.class_weights"),
        (["loss.class_weights=balanced", "data.sampler=balanced"], "loss.class_weights"),
        (["loss.label_smoothing=2.0"], "loss.label_smoothing"),
        (["normalise.std=[0.0,1.0,1.0]"], "normalise.std"),
        (["normalise.mean=[0.5]"], "normalise.mean"),
        (["optim.lr=-1.0"], "optim.lr"),
        (["optim.schedule=step"], "optim.schedule"),
        (["optim.schedule=one_cycle"], "optim.warmup"),
        (["optim.schedule={_target_:torch.optim.lr_scheduler.ConstantLR}", "optim.warmup=0.1"], "optim.schedule"),
        (["augment.flip=2.0"], "augment.flip"),
        (["augment.randaugment=1.5"], "augment.randaugment"),
        (["augment.randaugment_magnitude=9.5"], "augment.randaugment_magnitude"),  # an index
        (["callbacks=ema", "callbacks.ema.decay=2"], "callbacks.ema.decay"),
        (["callbacks=ema", "trainer.precision=bf16-true"], "trainer.precision"),
        (["model.dropout=1.5"], "model.dropout"),
        (["model.lstm.hidden_size=0"], "model.lstm.hidden_size"),
        (["model.encoder.channels=[]"], "model.encoder.channels"),
        (["model.encoder.channels=[8,0]"], "model.encoder.channels"),
        (["data.resolution=7"], "data.resolution"),
        (["data.num_frames=0"], "data.num_frames"),
        (["data.split.val_fraction=1"], "data.split.val_fraction"),
        (["model._target_=no_such_package.Net"], "model._target_"),
        (["model._target_=vidcls.models.classifiers.cnn_lstmm"], "model._target_"),
        (["model._target_=torch.nnn.Flatten"], "model._target_"),  # in torch, whose source does not tell
        (["optim._target_=torch.optim.Adamm"], "optim._target_"),
        (["optim.schedule={_target_:torch.optim.lr_scheduler.StepLRR}"], "optim.schedule._target_"),
        (["callbacks.timing._target_=vidcls.training.callbacks.Timer"], "callbacks.timing._target_"),
        (["model=encoder_head", "model.encoder.name=timm/resnet1888"], "model.encoder.name"),
        (["model=encoder_head", "model.encoder.name=timm/resnet18.a1_in2k"], "model.encoder.name"),
        ([*BACKBONE, "model.encoder.weights=nowhere.pt"], "model.encoder.weights"),
        ([*BACKBONE, "model.encoder.trainable_from=none"], "model.encoder.weights"),
        ([*BACKBONE, "model.head.pooling=median"], "model.head.pooling"),
        ([*BACKBONE, "model/head=transformer", "model.head.num_heads=5"], "model.head.num_heads"),
        ([*BACKBONE, "model.motion=difference", "data.num_frames=1"], "data.num_frames"),
        ([*BACKBONE, "model.motion=multiscale_difference", "data.num_frames=4"], "data.num_frames"),
        (["model=s3d", "data.num_frames=4"], "data.num_frames"),
        (["model=s3d", "data.num_frames=8", "data.resolution=16"], "data.resolution"),
        (["model=cnn_mean", "data.resolution=3", "model.encoder.channels=[4,8]"], "data.resolution"),
        (["model=encoder_head", "model.head.name=mamba"], "model.head.name"),
        (["model=encoder_head", "model.motion=flow"], "model.motion"),
        (["model=encoder_head", "model/encoder=cnn", "model.sizes=2"], "model.sizes"),
        (["model=r3d_18", "model.name=resnet"], "model.name"),
        (["model=r3d_18", "model.norm_eval=true"], "model.weights"),
        (["model=r3d_18", "model.motion_crop=16"], "model.motion_crop"),
        (["callbacks.best.monitor=val/accuracy"], "callbacks.best.mode"),  # min: the worst epoch
        (["callbacks.best.mode=max"], "callbacks.best.mode"),
        (["callbacks=early_stopping", "callbacks.early_stopping.monitor=val_f1/safe"], "callbacks.early_stopping.mode"),
        ([f"optim.schedule={{{PLATEAU},mode:max}}"], "optim.schedule.mode"),
        ([f"optim.schedule={{{PLATEAU},monitor:val/auroc}}"], "optim.schedule.mode"),
        (["~callbacks.history"], "callbacks"),
        (["~callbacks"], "callbacks"),
        (["logger=wandb"], "missing-package"),
        (["logger=[csv,mlflow]"], "missing-package"),
        (["refit=true"], "refit"),
        ([*BACKBONE, "model.standardise=true"], "model.encoder.trainable_from"),
        (["optim=logistic"], "model.encoder.trainable_from"),
        (["optim=logistic", "model=r3d_18"], "model.trainable_from"),
        (["optim=logistic", "model._target_=json.loads"], "model._target_"),
        ([*STRONG, "optim.C=0"], "optim.C"),
        ([*STRONG, "optim.C=[]"], "optim.C"),
        ([*STRONG, "optim.folds=1"], "optim.folds"),
        ([*STRONG, "optim.max_iter=0"], "optim.max_iter"),
        ([*STRONG, "model.encoder.trainable_from=blocks.5"], "model.encoder.trainable_from"),
        ([*STRONG, "model/head=lstm"], "model.head.name"),
        ([*STRONG, "model.head.pooling=attention"], "model.head.pooling"),
        ([*STRONG, "augment=standard"], "augment.flip"),
        ([*STRONG, "augment.mixup=0.2"], "augment.mixup"),
        ([*STRONG, "data.temporal_jitter=true", "data.store.num_frames=64"], "data.temporal_jitter"),
        ([*STRONG, "~callbacks.features"], "callbacks.features"),
        ([*STRONG, "callbacks=ema"], "callbacks.ema"),
        ([*STRONG, "model.dropout=0.5"], "model.dropout"),
        ([*STRONG, "loss.label_smoothing=0.1"], "loss.label_smoothing"),
        ([*STRONG, "data.sampler=balanced"], "data.sampler"),
        ([*STRONG, "trainer=ddp_sim"], "trainer.devices"),
        ([*STRONG, "trainer=ddp", "trainer.devices=1"], "trainer.strategy"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_out_of_range(overrides: list[str], code: str) -> None:
    with pytest.raises(UserError) as error:
        check_train_options(composed(*overrides))
    assert error.value.code == code


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        BACKBONE,
        ["model=s3d"],
        ["logger=[tensorboard,csv]"],
        ["~logger"],
        ["trainer=gpu"],
        ["optim=adamw", "optim.warmup=0", "optim.schedule={_target_:torch.optim.lr_scheduler.StepLR,step_size:5}"],
        ["callbacks.best.monitor=val/accuracy", "callbacks.best.mode=max"],
        ["callbacks.best.monitor=epoch", "callbacks.best.mode=max"],
        ["model._target_=json.loads", "model.dropout=7"],
    ],
    ids=str,
)
def test_fine(overrides: list[str]) -> None:
    check_train_options(composed(*overrides))


def test_the_source_is_listed(demo_folder: Path, tmp_path: Path) -> None:
    folder = ["data=folder", f"data.source={demo_folder}"]
    check_train_options(composed(*folder, "data.classes=[safe,harmful]"))
    with pytest.raises(UserError) as error:
        check_train_options(composed(*folder, "data.classes=[safe,unheard_of]"))
    assert "unheard_of" in str(error.value)
    with pytest.raises(UserError) as error:
        check_train_options(composed("data=folder", f"data.source={tmp_path / 'nowhere'}"))
    check_train_options(composed("data=folder", f"data.source={tmp_path / 'nowhere'}", "resume=runs/train/one"))


def test_a_resumed_run_has_its_weights_in_its_checkpoint() -> None:
    check_train_options(composed(*BACKBONE, "model.encoder.weights=gone.pt", "resume=runs/train/one"))
