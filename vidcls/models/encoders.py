"""From frames [B, T, 3, R, R] to features [B, T, D]."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter


class Encoder(nn.Module):
    """The interface of encoders; the defaults are for training from scratch."""

    num_features: int  # D
    normalisation: dict[str, list[float]] | None = None  # `mean` and `std` of its weights, per channel of 0..1 pixels
    is_frozen: bool = False  # nothing of it trains, so that the features of a clip never change

    def stages(self) -> list[list[Parameter]]:
        """The pretrained trainable parameters, by stages from the input to the output."""
        return []

    def load_weights(self) -> None:
        """Loads pretrained weights, if any; called at the start of a new training."""


class ConvEncoder(Encoder):
    """The notebook's frame network: (conv 3x3 same, ReLU, max-pool 2x2) for each entry of ``channels``, then flatten.

    Kernels start Glorot uniform and biases at zero, as in Keras (Glorot & Bengio 2010,
    https://proceedings.mlr.press/v9/glorot10a.html).

    Example:
        >>> ConvEncoder([32, 64, 128], resolution=64).num_features
        8192
    """

    def __init__(self, channels: Sequence[int], resolution: int, in_channels: int = 3) -> None:
        super().__init__()
        self.num_features = channels[-1] * (resolution // 2 ** len(channels)) ** 2  # D
        layers: list[nn.Module] = []
        for inputs, outputs in zip([in_channels, *channels], channels, strict=False):
            conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding="same")
            kernel, bias = conv.parameters()
            nn.init.xavier_uniform_(kernel)
            nn.init.zeros_(bias)
            # Pooling before ReLU is equivalent, as ReLU is monotonic, and saves three quarters of the ReLU.
            layers += [conv, nn.MaxPool2d(2), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, frames: Float[Tensor, "B T C R R"]) -> Float[Tensor, "B T D"]:
        # Stored frames are channels-last, which is a third faster for convolutions on a CPU.
        stack = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)  # [B*T, C, R, R]
        features = self.layers(stack)  # [B*T, D]
        return torch.unflatten(features, 0, frames.shape[:2])  # [B, T, D]
