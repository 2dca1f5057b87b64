"""Frozen networks without their BatchNorm layers, which cost a CPU a quarter of a small network's time."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

Convolution = nn.Conv2d | nn.Conv3d


@torch.no_grad()
def fold_batchnorm(net: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a network in eval mode, in which each BatchNorm right after a convolution is part of its kernel.

    Which they are is seen by running ``example``. The network itself is returned where the copy would give something
    else, such as where a convolution's output has a second use. (Jacob et al. 2018, https://arxiv.org/abs/1712.05877,
    section 3.2.)

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fold_batchnorm(net, torch.randn(1, 3, 8, 8))[1]
        Sequential()
    """
    folded = copy.deepcopy(net)
    made_by: dict[int, tuple[nn.Module, Tensor]] = {}  # by id of a tensor, which is kept so that the id stays its own
    calls: list[nn.Module] = []
    pairs: list[tuple[Any, Any]] = []

    def after_convolution(convolution: nn.Module, _: Any, output: Tensor) -> None:
        made_by[id(output)] = (convolution, output)
        calls.append(convolution)

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls.append(norm)
        if id(inputs[0]) in made_by:
            pairs.append((made_by[id(inputs[0])][0], norm))

    hooks = []
    for part in folded.modules():
        if isinstance(part, Convolution):
            hooks.append(part.register_forward_hook(after_convolution))
        elif isinstance(part, _BatchNorm):
            hooks.append(part.register_forward_pre_hook(before_norm))
    expected = folded(example)
    for hook in hooks:
        hook.remove()
    owners = {child: (parent, name) for parent in folded.modules() for name, child in parent.named_children()}
    for convolution, norm in pairs:
        if calls.count(convolution) == calls.count(norm) == 1:
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            kernel, bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *statistics)
            convolution.weight, convolution.bias = kernel, bias
            parent, name = owners[norm]
            setattr(parent, name, nn.Sequential(*norm.children()))  # timm's BatchNorm holds the activation
    same = torch.allclose(folded(example).float(), expected.float(), rtol=1e-2, atol=1e-2 * float(expected.std()))
    return folded if same else net
