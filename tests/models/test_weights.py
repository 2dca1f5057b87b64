"""Weights of other people's networks: where they may lie, what must be in them, what they were trained with."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.models import get_model, list_models

from vidcls.data.decoding.frames import decode
from vidcls.data.decoding.result import DECODERS
from vidcls.data.sampling import StoreSpec
from vidcls.errors import UserError
from vidcls.models.backbones import Backbone, build_net
from vidcls.models.pretrained import load_weights, normalisation

NAME = "timm/test_resnet"


def trained(seed: int = 1, **options: object) -> nn.Module:
    """A whole small network whose values, batch-norm statistics among them, are not those it is built with."""
    torch.manual_seed(seed)
    net = timm.create_model("test_resnet", **options)
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    return net


def assert_loaded(net: nn.Module, state: dict[str, Tensor]) -> None:
    own = net.state_dict()
    assert own and all(torch.equal(value, state[key]) for key, value in own.items())


@pytest.mark.parametrize("ending", [".pth", ".pt", ".safetensors"])
def test_a_whole_networks_file_loads_without_its_classifier(tmp_path: Path, ending: str) -> None:
    state, path = trained().state_dict(), tmp_path / f"weights{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    net = build_net(NAME, 3)
    assert "fc.weight" in state and "fc.weight" not in net.state_dict()
    load_weights(net, NAME, str(path))
    assert_loaded(net, state)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_state_dict_may_lie_under_a_name(tmp_path: Path, key: str) -> None:
    state = trained(num_classes=0).state_dict()  # nor need it have a classifier
    torch.save({"epoch": 3, key: state}, tmp_path / "weights.pth")
    net = build_net(NAME, 3)
    load_weights(net, NAME, str(tmp_path / "weights.pth"))
    assert_loaded(net, state)


def test_what_lacks_and_what_is_too_much_is_named_and_counted(tmp_path: Path) -> None:
    state = dict(trained().state_dict())
    for number in range(5):
        state[f"extra.{number}"] = torch.zeros(1)
    del state["conv1.0.weight"], state["bn1.running_mean"]
    state["bn1.weight"] = torch.zeros(7)
    torch.save(state, tmp_path / "weights.pth")
    net = build_net(NAME, 3)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    message = (
        r"2 missing: conv1.0.weight, bn1.running_mean; 5 unexpected: extra.0, extra.1, extra.2 and 2 more; "
        r"1 of another shape: bn1.weight \[7\] for \[\d+\].*\[weights-mismatch\]$"
    )
    with pytest.raises(UserError, match=message):
        load_weights(net, NAME, str(tmp_path / "weights.pth"))
    assert_loaded(net, before)  # nothing of it has been taken


def test_only_the_removed_layer_is_ignored_not_what_is_kept_of_the_classifier(tmp_path: Path) -> None:
    name = "torchvision/mobilenet_v3_small"  # classifier.0 gives the features, classifier.3 is gone
    state = get_model("mobilenet_v3_small").state_dict()
    net = build_net(name, 3)
    torch.save(state, tmp_path / "weights.pth")
    load_weights(net, name, str(tmp_path / "weights.pth"))
    assert_loaded(net, state)
    assert "classifier.0.weight" in net.state_dict() and "classifier.3.weight" not in net.state_dict()
    del state["classifier.0.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"1 missing: classifier.0.weight. "):
        load_weights(net, name, str(tmp_path / "weights.pth"))


def test_old_files_do_not_count_batches(tmp_path: Path) -> None:
    state = {key: value for key, value in trained().state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "weights.pth")
    net = build_net(NAME, 3)
    load_weights(net, NAME, str(tmp_path / "weights.pth"))
    assert torch.equal(net.state_dict()["bn1.running_var"], state["bn1.running_var"])


def test_densenets_old_names(tmp_path: Path) -> None:
    state = get_model("densenet121").state_dict()
    old = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", key) if "denselayer" in key else key: state[key] for key in state}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "weights.pth")
    net = build_net("torchvision/densenet121", 3)
    load_weights(net, "torchvision/densenet121", str(tmp_path / "weights.pth"))
    assert_loaded(net, state)


@pytest.mark.parametrize("name", ["torchvision/resnet18", NAME])
def test_six_channels_take_three_twice_and_halved(tmp_path: Path, name: str) -> None:
    state = build_net(name, 3).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    net = build_net(name, 6)
    load_weights(net, name, str(tmp_path / "weights.pth"))
    first = "conv1.weight" if name == "torchvision/resnet18" else "conv1.0.weight"
    kernel = state[first] / 2
    assert torch.equal(net.state_dict()[first], torch.cat([kernel, kernel], dim=1))
    assert_loaded(net, {**state, first: net.state_dict()[first]})


# ---- files that are none


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.pt.*\[weights-file\]$"):
        load_weights(build_net(NAME, 3), NAME, str(tmp_path / "a.pt"))


@pytest.mark.parametrize("file", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no tensors in here", b"hello\n", bytes(range(256))])
def test_a_file_that_cannot_be_read(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"{file}, .*\[weights-file\]$"):
        load_weights(build_net(NAME, 3), NAME, str(tmp_path / file))


def test_a_pickled_network_is_refused_not_run(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"UnpicklingError: Weights only load failed.*\[weights-file\]$"):
        load_weights(build_net(NAME, 3), NAME, str(tmp_path / "net.pth"))


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"epoch": 3}}, torch.zeros(2)])
def test_a_file_of_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a.pth, .*\[weights-file\]$"):
        load_weights(build_net(NAME, 3), NAME, str(tmp_path / "a.pth"))


def test_the_option_of_a_video_network_is_called_otherwise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected model.weights .*\[weights-file\]$"):
        load_weights(nn.Conv3d(1, 1, 1), "r3d_18", str(tmp_path / "a.pt"))


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/test_resnet"])
def test_default_weights_need_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    # Nothing is cached here, and nobody listens at the only way out.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    library = name.partition("/")[0]
    message = rf"{library} .*Error.*\[weights-download\]$"
    with pytest.raises(UserError, match=message):
        load_weights(build_net(name, 3), name, "default")


# ---- normalisation


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("timm/tf_efficientnet_lite0", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        ("timm/resnet18", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("timm/resnet18.a1_in1k", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("torchvision/resnet18", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("torchvision/efficientnet_v2_l", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        ("r3d_18", [0.43216, 0.394666, 0.37645], [0.22803, 0.22145, 0.216989]),
        ("mvit_v2_s", [0.45, 0.45, 0.45], [0.225, 0.225, 0.225]),
        ("swin3d_t", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ],
)
def test_normalisation(name: str, mean: list[float], std: list[float]) -> None:
    assert normalisation(name) == {"mean": mean, "std": std}


def test_normalisation_of_networks_that_torchvision_normalises_again() -> None:
    theirs = get_model("inception_v3", transform_input=True, init_weights=False)
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = theirs._transform_input((pixels - mean) / std)
    ours = normalisation("torchvision/inception_v3")
    mean, std = (torch.tensor(ours[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close((pixels - mean) / std, expected, atol=1e-6, rtol=0)


def test_every_network_of_torchvision_has_a_normalisation() -> None:
    names = list_models(module=models)
    assert len(names) > 70
    for name in names:
        values = normalisation(f"torchvision/{name}")
        assert len(values["mean"]) == len(values["std"]) == 3 and min(values["std"]) > 0.2


# ---- a real file


def test_features_of_a_real_picture_are_timms_own(real_data: Path) -> None:
    path = real_data / "weights" / "tf_efficientnet_lite0.pth"
    clip = min(real_data.glob("fights/train/*/*.mp4"), key=lambda clip: clip.stat().st_size)
    frames, _ = decode(clip, StoreSpec(2, 64, "uniform"), DECODERS)
    ours = Backbone("timm/tf_efficientnet_lite0", str(path), "none", False, resolution=64)
    ours.load_weights()
    assert ours.normalisation == {"mean": [0.5] * 3, "std": [0.5] * 3}
    pictures = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5  # [T, 3, R, R]
    theirs = timm.create_model("tf_efficientnet_lite0", checkpoint_path=str(path)).eval()
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(pictures), pre_logits=True)
        features = ours(pictures[None])[0]
    assert features.shape == (2, 1280) and features.std() > 0.1
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)  # channels-last sums in another order
