"""Temporal shift: 2D convolutions that see channels of neighbouring frames, without further parameters."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

FOLD = 8  # 1/8 of the channels in each direction, the paper's best for residual shifts


def shift(frames: Float[Tensor, "B T C *size"], fold: int = FOLD) -> Float[Tensor, "B T C *size"]:
    """Replaces the first C // fold channels of each frame by the next frame's, and the next C // fold by the previous'.

    Frames beyond either end are zero. Section 3 of Lin et al. 2019 (https://arxiv.org/abs/1811.08383).

    Example:
        >>> shift(torch.tensor([[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]]), fold=3)
        tensor([[[4., 0., 3.],
                 [7., 2., 6.],
                 [0., 5., 9.]]])
    """
    width = frames.shape[2] // fold
    later, earlier, same = frames.split([width, width, frames.shape[2] - 2 * width], dim=2)
    later = torch.cat([later[:, 1:], torch.zeros_like(later[:, :1])], dim=1)
    earlier = torch.cat([torch.zeros_like(earlier[:, :1]), earlier[:, :-1]], dim=1)
    return torch.cat([later, earlier, same], dim=2)


class TemporalShift:
    """Shifts the input of convolutions, [B*T, C, H, W]; T is ``num_frames``, to be set before each forward pass."""

    def __init__(self, convolutions: Sequence[nn.Module]) -> None:
        self.num_frames = 1
        for convolution in convolutions:
            # A hook, as a wrapper would change the keys of the state dict.
            convolution.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        clips = inputs[0].unflatten(0, (-1, self.num_frames))  # [B, T, C, H, W]
        return (shift(clips).flatten(0, 1).contiguous(memory_format=torch.channels_last),)  # [B*T, C, H, W]


def shifted_convolutions(net: nn.Module) -> list[nn.Module]:
    """The first convolution of each residual block, so that a shift does not affect the block's shortcut.

    Supports ResNets and similar networks, and inverted residual blocks of mobile networks, of torchvision and timm.
    """
    convolutions: list[nn.Module | None] = []
    for block in net.modules():
        parts = dict(block.named_children())
        if type(block).__name__ in ("BasicBlock", "Bottleneck"):
            convolutions.append(parts.get("conv1"))
        elif getattr(block, "use_res_connect", False):  # torchvision
            convolutions.append(next(part for part in block.modules() if isinstance(part, nn.Conv2d)))
        elif getattr(block, "has_skip", False) and "conv_pwl" in parts:  # timm; the last convolution tells them apart
            convolutions.append(parts.get("conv_pw"))
    return [convolution for convolution in convolutions if isinstance(convolution, nn.Conv2d)]
