"""Frozen networks run without BatchNorm, and give what they gave."""

import copy

import pytest
import torch
from helpers.nets import build
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidcls.models.backbones import Backbone, build_net
from vidcls.models.folding import fold_batchnorm


def shuffle_statistics(net: nn.Module) -> None:
    for part in net.modules():
        if isinstance(part, _BatchNorm):
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.weight, 1.0, 0.3)
            nn.init.normal_(part.bias, std=0.3)


def count_norms(net: nn.Module) -> int:
    return sum(isinstance(part, _BatchNorm) for part in net.modules())


@pytest.mark.parametrize(
    ("name", "left"),  # of densenet's norms, every second comes before a convolution; resnetv2 has such too
    [("timm/tf_efficientnet_lite0", 0), ("torchvision/resnet18", 0), ("torchvision/densenet121", 62)],
)
def test_the_copy_gives_the_same(name: str, left: int) -> None:
    net, images = build_net(name, 3).eval(), torch.randn(2, 3, 64, 64)
    shuffle_statistics(net)
    with torch.no_grad():
        folded = fold_batchnorm(net, images[:1])
        expected = net(images)
        assert count_norms(net) > left == count_norms(folded)
        torch.testing.assert_close(folded(images), expected, rtol=1e-3, atol=1e-4 * float(expected.std()))


class Residual(nn.Module):
    """The convolution's output has a second use, beside BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made = self.conv(images)
        return made + self.norm(made)


class Shared(Residual):
    """The convolution is called twice, once without BatchNorm."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(self.conv(images)))


@pytest.mark.parametrize("kind", [Residual, Shared])
def test_what_cannot_be_folded_stays(kind: type[Residual]) -> None:
    net, images = kind().eval(), torch.randn(2, 3, 8, 8)
    shuffle_statistics(net)
    with torch.no_grad():
        assert torch.equal(fold_batchnorm(net, images)(images), net(images))


def ran(encoder: Backbone) -> nn.Module:
    return encoder.folded_net(torch.zeros(2, 3, 64, 64))


def test_only_a_frozen_encoder_is_folded() -> None:
    frozen, trainable = build("torchvision/resnet18", trainable_from="none"), build("torchvision/resnet18")
    assert count_norms(ran(frozen)) == 0 and ran(trainable) is trainable.net
    assert set(frozen.state_dict()) == set(trainable.state_dict())


def test_the_copy_follows_the_weights() -> None:
    encoder, frames = build("torchvision/resnet18", trainable_from="none"), torch.randn(1, 2, 3, 64, 64)
    before, kept = encoder(frames), ran(encoder)
    assert ran(encoder) is kept
    state = copy.deepcopy(encoder.state_dict())
    state["net.bn1.bias"] += 1
    encoder.load_state_dict(state)
    other = build("torchvision/resnet18", trainable_from="none")
    other.load_state_dict(state)
    assert not torch.equal(before, encoder(frames)) and torch.equal(encoder(frames), other(frames))
    assert encoder.double()(frames.double()).dtype == torch.float64
    assert count_norms(ran(encoder.bfloat16())) > 0  # whose weights would be rounded twice


def test_a_copy_made_in_inference_mode_serves_training() -> None:
    encoder, frames = build("torchvision/resnet18", trainable_from="none"), torch.randn(1, 2, 3, 64, 64)
    with torch.inference_mode():
        expected = encoder(frames).clone()
    scale = nn.Parameter(torch.ones(()))
    features = encoder(frames * scale)
    features.sum().backward()
    assert torch.equal(features.detach(), expected) and scale.grad is not None
