"""Video networks as encoders of clips; that all of each learns is in test_architectures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from vidcls.errors import UserError
from vidcls.models.backbones import VIDEO_NETS, VideoNet
from vidcls.models.pretrained import split_stages


def build(
    name: str = "mc3_18",
    weights: str | None = None,
    trainable_from: str = "all",
    resolution: int = 32,
    num_frames: int = 4,
) -> VideoNet:
    torch.manual_seed(0)
    return VideoNet(name, weights, trainable_from, resolution, num_frames)


@pytest.mark.parametrize("name", ["r3d_18", "swin3d_t"])
def test_features_are_what_the_last_layer_took(name: str) -> None:
    torch.manual_seed(0)
    theirs = get_model(name).eval()
    encoder = build(name).eval()
    encoder.net.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in encoder.net.state_dict()})
    clips = torch.rand(2, 4, 3, 32, 32)
    last = theirs.fc if name == "r3d_18" else theirs.head
    with torch.no_grad():
        logits = theirs(clips.permute(0, 2, 1, 3, 4))
        torch.testing.assert_close(last(encoder(clips)), logits, atol=1e-4, rtol=1e-4)


def test_s3d_is_torchvisions_at_its_own_size() -> None:
    torch.manual_seed(0)
    theirs = get_model("s3d").eval()
    encoder = build("s3d", resolution=224, num_frames=16).eval()
    encoder.net.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in encoder.net.state_dict()})
    clips = torch.rand(1, 16, 3, 224, 224)
    convolution = theirs.classifier[1]
    with torch.no_grad():
        logits = convolution(encoder(clips)[:, :, None, None, None]).flatten(1)
        torch.testing.assert_close(logits, theirs(clips.transpose(1, 2)), atol=1e-5, rtol=1e-4)


def test_mvit_is_torchvisions_at_its_own_size() -> None:
    theirs, encoder = get_model("mvit_v2_s"), build("mvit_v2_s", resolution=224, num_frames=16)
    size = encoder.net.pos_encoding.temporal_size, encoder.net.pos_encoding.spatial_size
    assert size == (theirs.pos_encoding.temporal_size, theirs.pos_encoding.spatial_size) == (8, (56, 56))


@pytest.mark.parametrize(("resolution", "num_frames"), [(30, 3), (17, 1)])
def test_mvit_takes_its_weights_to_clips_of_any_size(tmp_path: Path, resolution: int, num_frames: int) -> None:
    torch.manual_seed(1)
    state = get_model("mvit_v2_s").state_dict()  # for 16 frames of 224 pixels
    torch.save(state, tmp_path / "mvit.pth")
    encoder = build("mvit_v2_s", str(tmp_path / "mvit.pth"), resolution=resolution, num_frames=num_frames).eval()
    encoder.load_weights()
    assert torch.equal(encoder.net.blocks[0].attn.rel_pos_h, state["blocks.0.attn.rel_pos_h"])
    tokens: list[int] = []
    encoder.net.blocks[0].register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[1]))
    with torch.no_grad():
        features = encoder(torch.rand(1, num_frames, 3, resolution, resolution))
    assert features.shape == (1, 768) and bool(features.isfinite().all())
    assert tokens == [1 + math.ceil(num_frames / 2) * math.ceil(resolution / 4) ** 2]


def test_gradients_of_the_shortest_clips_that_s3d_takes() -> None:
    encoder = build("s3d", resolution=17, num_frames=8).eval()
    clips, weights = torch.rand(1, 8, 3, 17, 17), torch.randn(1024)
    (encoder(clips) * weights).sum().backward()
    gradients = [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]
    encoder.zero_grad()
    with torch.backends.mkldnn.flags(enabled=False):  # which is wrong for 5 to 7 frames
        (encoder(clips) * weights).sum().backward()
    assert len(gradients) > 100
    for gradient, parameter in zip(gradients, encoder.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=float(gradient.abs().max()) * 1e-4, rtol=0)


@pytest.mark.parametrize("name", VIDEO_NETS)
def test_the_least_that_each_takes(name: str) -> None:
    num_frames, resolution = (8, 17) if name == "s3d" else (1, 1)
    encoder = build(name, resolution=resolution, num_frames=num_frames).eval()
    with torch.no_grad():
        features = encoder(torch.rand(1, num_frames, 3, resolution, resolution))
    expected = {"i3d": 1024, "s3d": 1024, "mvit_v2_s": 768, "swin3d_t": 768}.get(name, 512)
    assert features.shape == (1, expected) and encoder.num_features == expected and bool(features.isfinite().all())


def test_order_of_frames_counts() -> None:
    encoder = build("r3d_18").eval()
    clips = torch.rand(1, 4, 3, 32, 32)
    with torch.no_grad():
        assert bool((encoder(clips) - encoder(clips.flip(1))).abs().max() > 1e-4)


# ---- weights, freezing, stages: as for `Backbone`, see test_backbones


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "mc3_18.pth"
    torch.save(get_model("mc3_18").state_dict(), path)
    return str(path)


def test_weights_are_loaded_when_asked(weights: str) -> None:
    encoder, state = build(weights=weights), torch.load(weights)
    assert not torch.equal(encoder.net.stem[0].weight, state["stem.0.weight"])
    encoder.load_weights()
    assert all(torch.equal(value, state[key]) for key, value in encoder.net.state_dict().items())
    assert encoder.normalisation == {"mean": [0.43216, 0.394666, 0.37645], "std": [0.22803, 0.22145, 0.216989]}
    assert build().normalisation is None


def test_weights_of_another_network(weights: str) -> None:
    with pytest.raises(UserError, match=r"of another shape: layer2.*\[weights-mismatch\]$"):
        build("r3d_18", weights).load_weights()


def test_unknown_stage() -> None:
    with pytest.raises(UserError, match=r"\[model.trainable_from\]$"):
        build(trainable_from="layer5")


def test_freezing_and_stages(weights: str) -> None:
    encoder = build(weights=weights, trainable_from="layer4")
    encoder.load_weights()
    (stage,) = encoder.stages()
    assert {id(parameter) for parameter in stage} == {id(parameter) for parameter in encoder.net.layer4.parameters()}
    before = {key: value.clone() for key, value in encoder.net.state_dict().items()}
    encoder.train()(torch.rand(2, 4, 3, 32, 32)).sum().backward()
    torch.optim.SGD(stage, lr=1.0).step()
    changed = {key for key, value in encoder.net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith("layer4.")}  # batch statistics among them
    assert len(build(weights=weights).stages()) == 5 and not encoder.is_frozen


def test_frozen(weights: str) -> None:
    encoder = build(weights=weights, trainable_from="none").train()
    assert encoder.is_frozen and encoder.stages() == []
    assert not any(part.training for part in encoder.net.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("name", "first", "last", "count"),
    [
        ("s3d", "features.0", "features.15", 12),
        ("mvit_v2_s", "conv_proj", "blocks.15", 17),
        ("swin3d_t", "patch_embed", "features.6", 8),
    ],
)
def test_stages_of_networks(name: str, first: str, last: str, count: int) -> None:
    net: nn.Module = build(name, num_frames=8).net
    names = list(split_stages(net))
    assert (names[0], names[-1], len(names)) == (first, last, count)
