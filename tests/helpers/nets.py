"""Helpers that several test files share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vidcls.models.backbones import Backbone

SMALL = "timm/test_efficientnet"  # conv_stem, blocks.0 to blocks.4, conv_head


def build(
    name: str = SMALL,
    weights: str | None = None,
    trainable_from: str = "all",
    temporal_shift: bool = False,
    resolution: int = 32,
    in_channels: int = 3,
    norm_eval: bool = False,
) -> Backbone:
    torch.manual_seed(0)
    return Backbone(name, weights, trainable_from, temporal_shift, resolution, in_channels, norm_eval)


class Unrepeatable(nn.Module):
    """A network with an operation that has no deterministic implementation on any device."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        logits = self.layer(clips.mean(dim=(1, 3, 4)))
        return logits.clone().put_(torch.tensor([0]), torch.tensor([1.0]))


class Hungry(nn.Module):
    """A network that needs more memory than there is."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, clips: Tensor) -> Tensor:
        return self.bias + torch.empty(2**50, dtype=torch.uint8)[: len(clips), None]
