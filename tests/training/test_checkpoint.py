"""Checkpoints: what they rebuild, that they run no code, and which files are refused."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.modules import CLASSES, SPEC, build, clips, loader, trainer
from torch import Tensor

from vidcls.errors import UserError
from vidcls.training.checkpoint import build_model, build_preprocess, load_checkpoint
from vidcls.training.checkpoint_writer import AtomicCheckpoints
from vidcls.training.module import VideoClassifier
from vidcls.training.spec import RunSpec


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[VideoClassifier, Path]:
    """A module after an epoch, and its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    module, fitter = build(), trainer(folder)
    fitter.fit(module, loader(clips(10)), loader(clips(7, seed=1)))
    fitter.save_checkpoint(folder / "last.ckpt")
    return module, folder / "last.ckpt"


def test_a_checkpoint_rebuilds_the_network(trained: tuple[VideoClassifier, Path]) -> None:
    module, path = trained
    assert RunSpec.from_dict(torch.load(path, weights_only=True)["vidcls"]) == SPEC
    checkpoint = load_checkpoint(path)
    assert checkpoint.spec == SPEC and checkpoint.step == 3
    torch.manual_seed(99)  # the initial values must not matter
    model, preprocess = build_model(checkpoint.spec), build_preprocess(checkpoint.spec)
    model.load_state_dict(checkpoint.model_weights)
    frames = torch.stack([video.frames for video in clips(5, seed=2)])
    assert torch.equal(model.eval()(preprocess.eval()(frames)), module.eval()(frames))


@pytest.mark.parametrize(
    "target", ["os.system", "vidcls.data.demo.draw_demo", "vidcls.models.encoders.torch.hub.load", "None"]
)
def test_a_checkpoint_may_not_run_just_anything(target: str) -> None:
    with pytest.raises(UserError) as error:
        build_model(replace(SPEC, model=SPEC.model | {"_target_": target}))
    assert error.value.code == "untrusted-model"


def test_nor_may_what_is_nested_in_it(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    nested = {
        "channels": {"_target_": "pathlib.Path.mkdir", "_args_": [{"_target_": "pathlib.Path", "_args_": [str(trap)]}]}
    }
    with pytest.raises(Exception, match="channels"):  # refused by whichever check comes first, and never called
        build_model(replace(SPEC, model=SPEC.model | {"encoder": nested}))
    assert not trap.exists()


def test_load_checkpoint_gives_what_was_saved(trained: tuple[VideoClassifier, Path]) -> None:
    module, path = trained
    for classes in (None, CLASSES):
        state = load_checkpoint(path, classes).state_dict
        assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("classes", [["adult", "harmful", "safe"], ["harmful", "safe"], ["cat", "dog", "cow"]])
def test_a_checkpoint_of_other_classes_is_refused(trained: tuple[VideoClassifier, Path], classes: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_checkpoint(trained[1], classes)
    assert error.value.code == "other-classes"


def truncated(path: Path) -> bytes:
    return path.read_bytes()[:-200]


def altered(path: Path) -> bytes:
    return path.read_bytes()[:100] + bytes(2000) + path.read_bytes()[2100:]


def one_bit_of_the_weights(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["state_dict"]["model.output.weight"]
    content[content.index(weight.numpy().tobytes()) + 3] ^= 64
    return bytes(content)


@pytest.mark.parametrize("damage", [truncated, altered, one_bit_of_the_weights])
def test_a_damaged_checkpoint_is_refused(
    trained: tuple[VideoClassifier, Path], tmp_path: Path, damage: Callable[[Path], bytes]
) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(damage(trained[1]))
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert error.value.code == "bad-checkpoint"


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PK\x03\x04 not a zip", b"\x80\x02}q\x00.", bytes(100)])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "best.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert error.value.code == "bad-checkpoint"


@pytest.mark.parametrize(
    "content", [{}, {"state_dict": {}}, [1, 2], {"vidcls": {"format": 999, "classes": []}}, Tensor([1.0])]
)
def test_a_file_of_torch_that_is_no_checkpoint_of_ours_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(UserError) as error:
        load_checkpoint(tmp_path / "best.ckpt")
    assert error.value.code == "bad-checkpoint"


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "trap",)

    torch.save({"vidcls": Trap()}, tmp_path / "best.ckpt")
    with pytest.raises(UserError) as error:
        load_checkpoint(tmp_path / "best.ckpt")
    assert error.value.code == "bad-checkpoint"
    assert not (tmp_path / "trap").exists()


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_checkpoint(tmp_path / "nowhere.ckpt")
    assert error.value.code == "bad-checkpoint"


# ---- writing


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where TMPDIR is full or on another file system; the one before is kept."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    last, writer = tmp_path / "last.ckpt", AtomicCheckpoints()
    for epoch in range(3):
        writer.save_checkpoint({"epoch": epoch}, last)
    before = {path.name: torch.load(path)["epoch"] for path in tmp_path.iterdir()}
    assert before == {"last.ckpt": 2, "previous.ckpt": 1}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as error:
        writer.save_checkpoint({"epoch": 3}, last)
    assert error.value.code == "disk-full"
    assert {path.name: torch.load(path)["epoch"] for path in tmp_path.iterdir()} == {"last.ckpt": 2, "previous.ckpt": 2}
