"""Motion inputs: wrappers that give an encoder differences between frames, or frames and differences."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from vidcls.models.encoders import Encoder


class Difference(Encoder):
    """Encodes the difference of each frame to the one before it: T frames give T - 1 features.

    Removes a static background, and most of what identifies a camera (RGB difference of Wang et al. 2016,
    https://arxiv.org/abs/1608.00859). Frames are normalised, so differences are in units of ``std``.
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


class MultiscaleDifference(Difference):
    """Encodes the grey differences of each frame to those 1, 2 and 4 before it, as the three channels of one image.

    The colour of an edge then tells its speed. Grey is the mean of the normalised channels. Each difference is scaled
    to the same standard deviation over the clip, so that contrast and noise of a camera matter less; a still clip stays
    zero.
    """

    GAPS = (1, 2, 4)
    STD = 0.15  # typical of the differences of a clip with much motion

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T-4 D"]:
        grey = frames.mean(dim=2)  # [B, T, R, R]
        first, num_frames = max(self.GAPS), frames.shape[1]
        differences = [grey[:, first:] - grey[:, first - gap : num_frames - gap] for gap in self.GAPS]
        image = torch.stack(differences, dim=2)  # [B, T-4, 3, R, R]
        std = image.std(dim=(1, 3, 4), keepdim=True, correction=0).clamp(min=1e-3)  # [B, 1, 3, 1, 1]
        return self.encoder(image / std * self.STD)


class FeatureDifference(Difference):
    """The difference of each frame's features to those of the one before it."""

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T-1 D"]:
        return self.encoder(frames).diff(dim=1)


class EarlyFusion(Difference):
    """Frame and difference as one image of six channels, for an encoder that takes six."""

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T-1 D"]:
        return self.encoder(torch.cat([frames[:, 1:], frames.diff(dim=1)], dim=2))


class LateFusion(Difference):
    """Concatenates the features of frames and of differences, each with an encoder of its own."""

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
    "multiscale_difference": lambda build: MultiscaleDifference(build(3)),
    "feature_difference": lambda build: FeatureDifference(build(3)),
    "early_fusion": lambda build: EarlyFusion(build(6)),
    "late_fusion": lambda build: LateFusion(build(3), build(3)),
}
"""The encoder for each motion input; ``build`` returns an encoder for a number of channels."""


def build_motion(motion: str, num_frames: int, build: Callable[[int], Encoder]) -> tuple[Encoder, int]:
    """The encoder for one of `MOTIONS`, and T', the number of its features for a clip of ``num_frames``."""
    lost = {"rgb": 0, "multiscale_difference": max(MultiscaleDifference.GAPS)}.get(motion, 1)
    return MOTIONS[motion](build), num_frames - lost
