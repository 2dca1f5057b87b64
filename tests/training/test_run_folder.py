"""A run folder: paths of a folder that has moved, what its configuration may name, and one process at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import pytest
from omegaconf import OmegaConf

from vidcls.errors import UserError
from vidcls.files import Owner
from vidcls.training.checkpoint_writer import AtomicCheckpoints
from vidcls.training.run_config import check_trusted, config_path, read_config
from vidcls.training.run_folder import check_run_options, claim_folder, hold

PLAIN = {
    "run_dir": "/x/run",
    "seed": 0,
    "compile": False,
    "data": {"source": "/x/run_videos", "cache_dir": "cache"},
    "trainer": {"accelerator": "cpu", "precision": "32-true", "deterministic": True},
    **{section: {} for section in ("model", "augment", "optim", "loss", "normalise")},
}


def written(folder: Path, **values: Any) -> Path:
    folder.mkdir()
    claim_folder(folder, OmegaConf.create(PLAIN | values))
    return folder


def test_paths_follow_a_folder_that_has_moved(tmp_path: Path) -> None:
    callbacks = {"last": {"dirpath": "/x/run/checkpoints"}, "names": ["/x/run", "/x", "x/run", "/x/run/a/../b"]}
    loggers = {"mlflow": {"tracking_uri": "file:/x/run/mlflow"}}
    folder = written(tmp_path / "a: b", callbacks=callbacks, logger=loggers)
    cfg = read_config(folder)
    assert cfg.run_dir == str(folder)
    assert cfg.data.source == "/x/run_videos"  # begins alike, and is another folder
    assert cfg.callbacks.last.dirpath == str(folder / "checkpoints")
    assert cfg.logger.mlflow.tracking_uri == f"file:{folder}/mlflow"
    assert cfg.callbacks.names == [str(folder), "/x", "x/run", str(folder / "a" / ".." / "b")]


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstuvwxyz"))


@pytest.mark.parametrize(
    "content",
    ["", "[1, 2]", "a: b", "run_dir: [", "run_dir: 3", "\x00", BOMB, "a: " + "[" * 5000, "x: 1\n" * 100_000],
    ids=range(9),
)
def test_a_damaged_config(content: str, tmp_path: Path) -> None:
    """Among them aliases that stand for 67 million values, and brackets within brackets."""
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    assert error.value.code == "bad-run-config"


@pytest.mark.parametrize("section", ["model", "optim", "augment"])
def test_a_config_without_a_section(section: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml({key: PLAIN[key] for key in PLAIN if key != section}))
    with pytest.raises(UserError, match=f"{section} is missing") as error:
        read_config(tmp_path)
    assert error.value.code == "bad-run-config"


def test_too_little_address_space_for_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (3 * 2**30, 3 * 2**30))
    with pytest.raises(UserError) as error:
        check_run_options(OmegaConf.create({"run": str(tmp_path), "accelerator": None}))
    assert error.value.code == "address-space"


def test_what_the_command_line_names_is_trusted_in_its_own_place_alone() -> None:
    given = OmegaConf.create({"model": {"_target_": "my.Net"}})
    check_trusted(given, given)
    with pytest.raises(UserError) as error:
        check_trusted(OmegaConf.create({"callbacks": {"mine": {"_target_": "my.Net"}}}), given)
    assert error.value.code == "untrusted-target"


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    with pytest.raises(UserError) as error:
        claim_folder(folder, OmegaConf.create({"run_dir": "/y"}))
    assert error.value.code == "used-run-dir"


def test_a_run_is_locked_where_locks_need_a_file_that_is_open_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS and SMB answer EBADF otherwise."""
    folder, flock = written(tmp_path / "run"), fcntl.flock

    def flock_over_nfs(file: TextIO, operation: int) -> None:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(file, operation)

    monkeypatch.setattr("fcntl.flock", flock_over_nfs)
    monkeypatch.setattr("vidcls.training.run_folder._held", [])
    hold(folder)
    with config_path(folder).open("r+") as other, pytest.raises(BlockingIOError):
        flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("locks", ["none", "local"])
def test_where_locks_do_not_hold_the_last_to_open_a_run_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    folder = written(tmp_path / "run")
    monkeypatch.setattr("vidcls.training.run_folder._held", [])
    if locks == "none":

        def no_locks(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", no_locks)
        with pytest.warns(UserWarning, match="has no locks"):
            hold(folder)
    else:
        hold(folder)
    AtomicCheckpoints().save_checkpoint({}, folder / "last.ckpt")
    before = (folder / "last.ckpt").read_bytes()
    Owner(folder / ".owner")  # of another machine
    with pytest.raises(UserError) as error:
        AtomicCheckpoints().save_checkpoint({"other": 1}, folder / "last.ckpt")
    assert error.value.code == "other-process" and (folder / "last.ckpt").read_bytes() == before


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
        {"callbacks": {"x_target_": node}},
        {"datamodule": node},
        node,
    ]


@pytest.mark.parametrize("target", TRUSTED)
def test_what_may_be_named(target: str) -> None:
    for config in nested(target):
        check_trusted(OmegaConf.create(config))


@pytest.mark.parametrize("target", UNTRUSTED, ids=str)
def test_what_may_not(target: Any) -> None:
    for config in nested(target):
        with pytest.raises(UserError) as error:
            check_trusted(OmegaConf.create(config))
        assert error.value.code == "untrusted-target"


def test_packages_that_are_trusted() -> None:
    for config in nested("my_package.nets.MyNet"):
        check_trusted(OmegaConf.create(config), trust=["my_package"])
        check_trusted(OmegaConf.create(config), trust=["my_package.nets.MyNet"])
        with pytest.raises(UserError) as error:
            check_trusted(OmegaConf.create(config), trust=["my"])
        assert error.value.code == "untrusted-target"


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "a ${b}", "${oc.create:{_target_:os.system}}"])
def test_interpolations_are_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml({**PLAIN, "b": 1, "callbacks": {"best": value}}))
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    assert error.value.code == "bad-run-config"


PLACES = {
    "callbacks.last.dirpath": "/etc",
    "callbacks.history.path": "train.py",  # of the current folder
    "callbacks.best.filename": "../../best",
    "callbacks.features.folder": "/home",
    "logger.tensorboard.save_dir": "/tmp",
    "logger.tensorboard.name": "../x",
    "logger.mlflow.tracking_uri": "file:/etc",
    "trainer.default_root_dir": "/var",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_run_writes_into_its_own_folder(place: str, tmp_path: Path) -> None:
    cfg = OmegaConf.create({"run_dir": str(tmp_path / "run"), "cache_dir": "cache"})
    own = {"last.dirpath": f"{tmp_path}/run/checkpoints", "best.filename": "best", "features.folder": "cache/features"}
    for key, value in own.items():
        OmegaConf.update(cfg, f"callbacks.{key}", value, force_add=True)
    check_trusted(cfg)
    OmegaConf.update(cfg, place, PLACES[place], force_add=True)
    with pytest.raises(UserError) as error:
        check_trusted(cfg)
    assert error.value.code == "untrusted-path"
    check_trusted(cfg, given=cfg)  # where the command line says the same
    if PLACES[place].startswith("/"):
        check_trusted(cfg, trust=[PLACES[place]])
