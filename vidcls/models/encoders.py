"""Frames to features: [B, T, 3, R, R] to [B, T, D]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter

from vidcls.errors import UserError, check_integer


class Encoder(nn.Module):
    """What a classifier asks of its encoder; the answers here are those of one that always trains from scratch.

    Attributes:
        num_features: D.
        normalisation: ``mean`` and ``std`` per channel that its weights were trained with; None: none were.
        is_frozen: whether nothing of it trains, so that what it says of a video never changes.
    """

    num_features: int
    normalisation: dict[str, list[float]] | None = None
    is_frozen: bool = False

    def stages(self) -> list[list[Parameter]]:
        """The pretrained parameters that train on, block by block from the input to the output."""
        return []

    def load_weights(self) -> None:
        """Loads the pretrained weights, when a new training starts; a checkpoint brings its own."""


class ConvEncoder(Encoder):
    """The notebook's frame network: (conv 3x3 same, ReLU, max-pool 2x2) for each entry of ``channels``, then flatten.

    Kernels start Glorot uniform and biases at zero, as in Keras (Glorot & Bengio 2010,
    https://proceedings.mlr.press/v9/glorot10a.html).

    Args:
        channels: output channels of the convolutions.
        resolution: R, in pixels; each pooling halves it, rounding down.
        in_channels: C.

    Raises:
        UserError: no channels, fewer than one, or frames too small for that many poolings.

    Example:
        >>> ConvEncoder([32, 64, 128], resolution=64).num_features
        8192
    """

    def __init__(self, channels: Sequence[int], resolution: int, in_channels: int = 3) -> None:
        super().__init__()
        if not channels:
            raise UserError("model.encoder.channels to be one or more integers", "none", "Give [32,64,128], say.")
        for number in channels:
            check_integer("model.encoder.channels", number)
        side = resolution // 2 ** len(channels)
        if side == 0:
            least = 2 ** len(channels)
            raise UserError(f"data.resolution >= {least} for {len(channels)} poolings", str(resolution), "Raise it.")
        self.num_features = channels[-1] * side**2  # D
        layers: list[nn.Module] = []
        for inputs, outputs in zip([in_channels, *channels], channels, strict=False):
            conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding="same")
            kernel, bias = conv.parameters()
            nn.init.xavier_uniform_(kernel)
            nn.init.zeros_(bias)
            # Pooling first is the same function (ReLU keeps the order of values) on a quarter of the activations.
            layers += [conv, nn.MaxPool2d(2), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, frames: Float[Tensor, "B T C R R"]) -> Float[Tensor, "B T D"]:
        """Encodes each frame on its own."""
        # The store's frames come channels-last, which convolutions like best: on a CPU a third faster.
        stack = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)  # [B*T, C, R, R]
        features = self.layers(stack)  # [B*T, D]
        return torch.unflatten(features, 0, frames.shape[:2])  # [B, T, D]
