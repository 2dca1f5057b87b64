"""Encoders from timm and torchvision: image networks on each frame, video networks on whole clips."""

import math
from typing import Any

import torch
import torchvision
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter
from torchvision.models import get_model

from vidcls.errors import UserError
from vidcls.models.i3d import I3D
from vidcls.models.network_names import check_network
from vidcls.models.pretrained import Pretrained, remove_classifier, repeat_channels, timm_config
from vidcls.models.temporal_shift import TemporalShift, shifted_convolutions

VIDEO_NETS = ("i3d", "r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t")


class Backbone(Pretrained):
    """An image network, timm/NAME or torchvision/NAME, without its last layer, applied to each frame.

    With ``temporal_shift``, features are shifted between neighbouring frames, see `TemporalShift`.

    Raises:
        UserError: no such network or stage, or one that does not take frames of this size, or has no residual blocks to
            shift.
    """

    def __init__(
        self,
        name: str,
        weights: str | None,
        trainable_from: str,
        temporal_shift: bool,
        resolution: int,
        in_channels: int = 3,
        norm_eval: bool = False,
        sizes: int = 1,
    ) -> None:
        net = build_net(name, in_channels)
        for halvings in range(sizes):  # see `MultiResolution`
            num_features = count_features(net, name, resolution >> halvings, in_channels)
        super().__init__(net, name, weights, trainable_from, norm_eval)
        self.num_features = num_features  # D
        self.shift = None
        if temporal_shift:
            convolutions = shifted_convolutions(self.net)
            if not convolutions:
                raise UserError(
                    "a network of residual blocks of 2D convolutions, for model.encoder.temporal_shift=true",
                    f"none in {name}",
                    "Use torchvision/resnet18, torchvision/mobilenet_v2 or timm/tf_efficientnet_lite0, for example.",
                    "model.encoder.temporal_shift",
                )
            self.shift = TemporalShift(convolutions)

    def forward(self, frames: Float[Tensor, "B T C R R"]) -> Float[Tensor, "B T D"]:
        stack = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)  # [B*T, C, R, R]
        if self.shift is not None:
            self.shift.num_frames = frames.shape[1]
        # Not folded where features are shifted: the hooks of `TemporalShift` are on this network's convolutions.
        net = self.net if self.shift else self.folded_net(stack)
        # On a CPU, a frozen network takes no longer for one clip after another, and the memory of one clip.
        one_by_one = self.is_frozen and not stack.is_cuda and not torch.compiler.is_compiling()
        features = torch.cat([net(part) for part in stack.split(frames.shape[1])]) if one_by_one else net(stack)
        return torch.unflatten(features, 0, frames.shape[:2])  # [B, T, D]


class VideoNet(Pretrained):
    """One of `VIDEO_NETS` without its last layer, on whole clips.

    r3d_18, mc3_18, r2plus1d_18: Tran et al. 2018 (https://arxiv.org/abs/1711.11248); s3d: Xie et al. 2018
    (https://arxiv.org/abs/1712.04851); mvit_v2_s: Li et al. 2022 (https://arxiv.org/abs/2112.01526); swin3d_t: Liu et
    al. 2022 (https://arxiv.org/abs/2106.13230).
    """

    def __init__(
        self,
        name: str,
        weights: str | None,
        trainable_from: str,
        resolution: int,
        num_frames: int,
        norm_eval: bool = False,
    ) -> None:
        net: Any = I3D() if name == "i3d" else get_model(name, weights=None)
        num_features = I3D.num_features if name == "i3d" else remove_classifier(net)
        if name == "s3d":
            net.avgpool = nn.AdaptiveAvgPool3d(1)  # torchvision's [2, 7, 7] is the same at 16 frames of 224 pixels
        if name == "mvit_v2_s":
            # The network depends on the clip's size by this number of patches, and by its table of relative positions,
            # which is that of its weights, for 16 frames of 224 pixels, and is interpolated for others.
            net.pos_encoding.temporal_size = math.ceil(num_frames / 2)
            net.pos_encoding.spatial_size = (math.ceil(resolution / 4), math.ceil(resolution / 4))
        super().__init__(net, name, weights, trainable_from, norm_eval)
        self.num_features = num_features  # D

    def forward(self, clips: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B D"]:
        # Stored frames are channels-last, which GPU kernels prefer.
        layout = torch.channels_last_3d if clips.is_cuda else torch.contiguous_format
        clips = clips.transpose(1, 2).contiguous(memory_format=layout)  # [B, 3, T, R, R]
        return self.folded_net(clips)(clips)


def build_net(name: str, in_channels: int) -> nn.Module:
    """An image network with random weights, without classifier: [B, C, R, R] to [B, D]; `UserError` if unknown."""
    check_network(name)
    library, _, model = name.partition("/")
    if library == "timm":
        import timm  # takes seconds

        return timm.create_model(model, num_classes=0, in_chans=in_channels)
    # These two would return a tuple in training.
    options = {"aux_logits": False, "init_weights": True} if model in ("googlenet", "inception_v3") else {}
    net = get_model(model, weights=None, **options)
    remove_classifier(net)
    if in_channels != 3:
        first = next(part for part in net.modules() if isinstance(part, nn.Conv2d))
        first.in_channels = in_channels
        first.weight = Parameter(repeat_channels(first.weight.detach(), in_channels))
    return net


def count_features(net: nn.Module, name: str, resolution: int, in_channels: int) -> int:
    """D, from encoding one black frame; `UserError` if the network does not take frames of this size."""
    try:
        with torch.no_grad():
            features = net.eval()(torch.zeros(1, in_channels, resolution, resolution))
    except (AssertionError, RuntimeError, ValueError) as error:  # too small for its strides, or not its fixed size
        raise UserError(
            f"data.resolution that {name} takes",
            f"{resolution}: {(str(error).splitlines() or ['refused'])[0]}",
            f"Set data.resolution={native_resolution(name)}, which it was trained with.",
            "data.resolution",
        ) from error
    return features.shape[-1]


def native_resolution(name: str) -> int:
    """The resolution that a network's weights were trained with."""
    if name.startswith("timm/"):
        return timm_config(name).input_size[-1]
    return torchvision.models.get_model_weights(name.partition("/")[2]).DEFAULT.transforms().crop_size[0]
