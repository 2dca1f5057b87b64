"""I3D, a network of 3D convolutions on whole clips, and its weights from Kinetics-400."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
"""The channels of each Inception block: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 after max-pooling."""
POOLED = {"4b": (3, 2), "5b": (2, 2)}  # kernel and stride of the max-pooling before a block


class I3D(nn.Module):
    """Inflated Inception-v1 without its classifier (Carreira & Zisserman 2017, https://arxiv.org/abs/1705.07750)."""

    num_features = 1024  # D

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleList([Unit(3, 64, 7, stride=2), Unit(64, 64, 1), Unit(64, 192, 3)])
        blocks, inputs = {}, 192
        for name, channels in CHANNELS.items():
            blocks[name] = Inception(inputs, channels)
            inputs = channels[0] + channels[2] + channels[4] + channels[5]
        self.blocks = nn.ModuleDict(blocks)

    def forward(self, clips: Float[Tensor, "B 3 T R R"]) -> Float[Tensor, "B D"]:
        first, second, third = self.stem
        x = max_pool(first(clips), (1, 3, 3), (1, 2, 2))  # [B, 64, T/2, R/4, R/4]
        x = max_pool(third(second(x)), (1, 3, 3), (1, 2, 2))  # [B, 192, T/2, R/8, R/8]
        for name, block in self.blocks.items():
            if name in POOLED:
                kernel, stride = POOLED[name]
                x = max_pool(x, (kernel,) * 3, (stride,) * 3)
            x = block(x)
        return x.mean(dim=(2, 3, 4))  # of [B, 1024, T/8, R/32, R/32]


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.norm = nn.BatchNorm3d(outputs, eps=1e-3, momentum=0.001)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D T2 H2 W2"]:
        return F.relu(self.norm(self.conv(pad_same(x, self.conv.kernel_size, self.conv.stride))))


class Inception(nn.Module):
    """Four branches side by side; ``channels`` as in `CHANNELS`."""

    def __init__(self, inputs: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.branch0 = Unit(inputs, channels[0], 1)
        self.branch1 = nn.Sequential(Unit(inputs, channels[1], 1), Unit(channels[1], channels[2], 3))
        self.branch2 = nn.Sequential(Unit(inputs, channels[3], 1), Unit(channels[3], channels[4], 3))
        self.branch3 = Unit(inputs, channels[5], 1)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D T H W"]:
        pooled = self.branch3(max_pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), pooled], dim=1)


def pad_same(x: Float[Tensor, "B C T H W"], kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pads a clip with zeros as TensorFlow's SAME does: to ceil(size / stride), with an odd one at the end.

    Example:
        >>> pad_same(torch.ones(1, 1, 1, 1, 4), (1, 1, 3), (1, 1, 2)).flatten().tolist()
        [1.0, 1.0, 1.0, 1.0, 0.0]
    """
    padding: list[int] = []
    for size, width, step in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        total = max((-(-size // step) - 1) * step + width - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


def max_pool(x: Float[Tensor, "B C T H W"], kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Max-pooling with SAME padding; zeros do not matter after a ReLU."""
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)


# ---- weights

BRANCHES = {
    "branch0": "Branch_0/Conv3d_0a_1x1",
    "branch1.0": "Branch_1/Conv3d_0a_1x1",
    "branch1.1": "Branch_1/Conv3d_0b_3x3",
    "branch2.0": "Branch_2/Conv3d_0a_1x1",
    "branch2.1": "Branch_2/Conv3d_0b_3x3",
    "branch3": "Branch_3/Conv3d_0b_1x1",
}
UNITS = {"stem.0": ("Conv3d_1a_7x7",), "stem.1": ("Conv3d_2b_1x1",), "stem.2": ("Conv3d_2c_3x3",)} | {
    f"blocks.{block}.{ours}": (f"Mixed_{block}", theirs) for block in CHANNELS for ours, theirs in BRANCHES.items()
}
"""What DeepMind's release calls a `Unit`."""


def read_kinetics_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of an `I3D` from a pickle of arrays, nested by the names of DeepMind's release.

    Raises:
        OSError, pickle.UnpicklingError: no such file, or one that holds more than arrays by name.
        LookupError: arrays are missing.
    """
    with path.open("rb") as file:
        variables = _ArrayUnpickler(file).load()
    state = {}
    for ours, theirs in UNITS.items():
        parameters, statistics = variables["params"], variables["batch_stats"]
        for name in theirs:
            parameters, statistics = parameters[name], statistics[name]
        kernel = parameters["Conv_0"]["kernel"]  # [T, H, W, inputs, outputs]
        bias = parameters["BatchNorm_0"]["bias"]
        arrays = {
            "conv.weight": kernel.transpose(4, 3, 0, 1, 2),
            "norm.weight": np.ones_like(bias),  # its batch norms have no scale
            "norm.bias": bias,
            "norm.running_mean": statistics["BatchNorm_0"]["mean"].ravel(),
            "norm.running_var": statistics["BatchNorm_0"]["var"].ravel(),
        }
        state.update({f"{ours}.{name}": torch.from_numpy(array.copy()) for name, array in arrays.items()})
    return state


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and dicts only, as anything else in a pickle could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")
