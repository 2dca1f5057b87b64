"""What the encoder sees: frames, differences between frames, or both. Wrappers around encoders of frames."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from vidcls.models.encoders import Encoder


class Difference(Encoder):
    """Encodes the difference of each frame to the one before it: T frames give T - 1 features.

    A static background vanishes, and with it most of what identifies a camera (RGB difference of Wang et al. 2016,
    https://arxiv.org/abs/1608.00859). Frames arrive normalised, so differences are in units of ``std``.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_features = encoder.num_features
        self.normalisation = encoder.normalisation
        self.is_frozen = encoder.is_frozen

    def stages(self) -> list[list[Parameter]]:
        return self.encoder.stages()

    def load_weights(self) -> None:
        self.encoder.load_weights()

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T-1 D"]:
        return self.encoder(frames.diff(dim=1))


class FeatureDifference(Difference):
    """The difference of each frame's features to those of the one before it."""

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T-1 D"]:
        return self.encoder(frames).diff(dim=1)


class EarlyFusion(Difference):
    """Frame and difference as one image of six channels, for an encoder that takes six."""

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T-1 D"]:
        return self.encoder(torch.cat([frames[:, 1:], frames.diff(dim=1)], dim=2))


class LateFusion(Difference):
    """Frames and differences, each with an encoder of its own, and their features side by side."""

    def __init__(self, encoder: Encoder, motion_encoder: Encoder) -> None:
        super().__init__(encoder)
        self.motion_encoder = motion_encoder
        self.num_features = encoder.num_features + motion_encoder.num_features

    def stages(self) -> list[list[Parameter]]:
        return [one + two for one, two in zip(self.encoder.stages(), self.motion_encoder.stages(), strict=True)]

    def load_weights(self) -> None:
        self.encoder.load_weights()
        self.motion_encoder.load_weights()

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T-1 D"]:
        return torch.cat([self.encoder(frames[:, 1:]), self.motion_encoder(frames.diff(dim=1))], dim=-1)


MOTIONS: dict[str, Callable[[Callable[[int], Encoder]], Encoder]] = {
    "rgb": lambda build: build(3),
    "difference": lambda build: Difference(build(3)),
    "feature_difference": lambda build: FeatureDifference(build(3)),
    "early_fusion": lambda build: EarlyFusion(build(6)),
    "late_fusion": lambda build: LateFusion(build(3), build(3)),
}
"""What each motion input makes of ``build``, which gives an encoder for a number of channels."""


def build_motion(motion: str, num_frames: int, build: Callable[[int], Encoder]) -> tuple[Encoder, int]:
    """The encoder for one of `MOTIONS`, and T', the number of features it gives for a clip of ``num_frames``."""
    return MOTIONS[motion](build), num_frames - (motion != "rgb")
