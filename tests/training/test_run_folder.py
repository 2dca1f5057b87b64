"""A run folder's configuration: paths of a folder that has moved, and what it may name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from vidcls.errors import UserError
from vidcls.training.run_folder import check_targets, claim_folder, read_config


def written(folder: Path, **values: Any) -> Path:
    folder.mkdir()
    claim_folder(folder, OmegaConf.create({"run_dir": "/x/run"} | values))
    return folder


def test_paths_follow_a_folder_that_has_moved(tmp_path: Path) -> None:
    callbacks = {"last": {"dirpath": "/x/run/checkpoints"}, "names": ["/x/run", "/x", "x/run", "/x/run/a/../b"]}
    folder = written(tmp_path / "run", data={"source": "/x/run_videos", "seed": 3}, callbacks=callbacks)
    cfg = read_config(folder)
    assert cfg.run_dir == str(folder)
    assert cfg.data == {"source": "/x/run_videos", "seed": 3}  # begins alike, and is another folder
    assert cfg.callbacks.last.dirpath == str(folder / "checkpoints")
    assert cfg.callbacks.names == [str(folder), "/x", "x/run", str(folder / "a" / ".." / "b")]


@pytest.mark.parametrize("content", ["", "[1, 2]", "a: b", "run_dir: [", "run_dir: 3", "\x00"])
def test_a_damaged_config(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    assert error.value.code == "bad-run-config"


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    with pytest.raises(UserError) as error:
        claim_folder(folder, OmegaConf.create({"run_dir": "/y"}))
    assert error.value.code == "used-run-dir"


TRUSTED = [
    "vidcls.data.options.DataOptions",
    "vidcls.models.classifiers.cnn_lstm",
    "vidcls.training.callbacks.EMA",
    "lightning.Trainer",
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.loggers.WandbLogger",
    "torch.optim.SGD",
    "torch.optim.lr_scheduler.StepLR",
    "optuna.pruners.MedianPruner",
]
UNTRUSTED = [
    "os.system",
    "my_package.MyNet",
    "vidcls.files.os.system",
    "vidcls.models.classifiers.nn.Linear",
    "vidcls.models.backbones.Backbone",
    "lightning.pytorch.callbacks.model_checkpoint.os.system",
    "lightning.pytorch.Trainer",
    "lightning.Trainer.fit",
    "torch.optim.lr_scheduler.warnings.warn",
    "torch.load",
    "torch.hub.load",
    "optuna.pruners.MedianPruner.prune",
    "vidcls",
    "",
    None,
    ["os.system"],
]


def nested(target: Any) -> list[dict[str, Any]]:
    node = {"_target_": target}
    return [
        {"model": node},
        {"callbacks": {"best": node}},
        {"callbacks": {"best": {"_target_": "torch.optim.SGD", "pruner": {"deep": [1, {"deeper": node}]}}}},
        {"logger": [[node]]},
        node,
    ]


@pytest.mark.parametrize("target", TRUSTED)
def test_what_may_be_named(target: str) -> None:
    for config in nested(target):
        check_targets(OmegaConf.create(config))


@pytest.mark.parametrize("target", UNTRUSTED, ids=str)
def test_what_may_not(target: Any) -> None:
    for config in nested(target):
        with pytest.raises(UserError) as error:
            check_targets(OmegaConf.create(config))
        assert error.value.code == "untrusted-target"


def test_packages_that_are_trusted() -> None:
    for config in nested("my_package.nets.MyNet"):
        check_targets(OmegaConf.create(config), trust=["my_package"])
        check_targets(OmegaConf.create(config), trust=["my_package.nets.MyNet"])
        with pytest.raises(UserError) as error:
            check_targets(OmegaConf.create(config), trust=["my"])
        assert error.value.code == "untrusted-target"


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "a ${b}", "${oc.create:{_target_:os.system}}"])
def test_interpolations_are_refused(value: str) -> None:
    with pytest.raises(UserError) as error:
        check_targets(OmegaConf.create({"b": 1, "callbacks": {"best": value}}))
    assert error.value.code == "untrusted-config"
