"""Clips to features with a video network of torchvision: [B, T, 3, R, R] to [B, D]."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import get_model

from vidcls.errors import UserError, check_choice
from vidcls.models.pretrained import Pretrained, remove_classifier

NAMES = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t")
# 5 frames pass through s3d. But of fewer than 8, oneDNN, which torch uses on CPUs, computes a wrong gradient for its
# kernels of 7 frames, or writes past the end of its memory (seen in torch 2.15).
LEAST_FRAMES = {"s3d": 8}
LEAST_RESOLUTION = {"s3d": 17}


class VideoNet(Pretrained):
    """A network that reads a clip as a whole, without its last layer.

    r3d_18, mc3_18, r2plus1d_18: Tran et al. 2018 (https://arxiv.org/abs/1711.11248); s3d: Xie et al. 2018
    (https://arxiv.org/abs/1712.04851); mvit_v2_s: Li et al. 2022 (https://arxiv.org/abs/2112.01526); swin3d_t: Liu et
    al. 2022 (https://arxiv.org/abs/2106.13230).

    Args:
        name: one of `NAMES`.
        weights: see `Pretrained`.
        trainable_from: see `Pretrained`.
        resolution: R, in pixels.
        num_frames: T.
        norm_eval: see `Pretrained`.

    Raises:
        UserError: no such network or stage, or clips that are too small or short for it.
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
        check_choice("model.name", name, NAMES)
        for data, value, least in (
            ("data.num_frames", num_frames, LEAST_FRAMES.get(name, 1)),
            ("data.resolution", resolution, LEAST_RESOLUTION.get(name, 1)),
        ):
            if value < least:
                raise UserError(f"{data} >= {least} for {name}", str(value), "Raise it.")
        net = get_model(name, weights=None)
        num_features = remove_classifier(net)
        if name == "s3d":
            net.avgpool = nn.AdaptiveAvgPool3d(1)  # the same at 16 frames of 224 pixels, where its own is [2, 7, 7]
        if name == "mvit_v2_s":
            # How many patches there are is all that it keeps of a clip's size but for its table of relative positions.
            # That stays as its weights have it, for 16 frames of 224 pixels; the network interpolates it for others.
            net.pos_encoding.temporal_size = math.ceil(num_frames / 2)
            net.pos_encoding.spatial_size = (math.ceil(resolution / 4), math.ceil(resolution / 4))
        super().__init__(net, name, weights, trainable_from, norm_eval)
        self.num_features = num_features  # D

    def forward(self, clips: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B D"]:
        """Encodes clips."""
        return self.net(clips.transpose(1, 2).contiguous())  # from [B, 3, T, R, R]
