"""What the encoder sees: frames, differences between frames, or both. Wrappers around encoders of frames."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from vidcls.errors import UserError, check_choice
from vidcls.models.encoders import Encoder

MOTIONS = ("rgb", "difference", "feature_difference", "early_fusion", "late_fusion")


class Difference(Encoder):
    """Encodes the difference of each frame to the one before it: T frames give T - 1 features.

    A static background vanishes, and with it most of what identifies a camera (RGB difference of Wang et al. 2016,
    https://arxiv.org/abs/1608.00859). Frames arrive normalised, so differences are in units of ``std``.

    Args:
        encoder: [B, T, 3, R, R] to [B, T, D].
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_features = encoder.num_features
        self.normalisation = encoder.normalisation
        self.is_frozen = encoder.is_frozen

    def stages(self) -> list[list[Parameter]]:
        """The encoder's."""
        return self.encoder.stages()

    def load_weights(self) -> None:
        """The encoder's."""
        self.encoder.load_weights()

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T-1 D"]:
        """Subtracts, then encodes."""
        return self.encoder(frames.diff(dim=1))


class FeatureDifference(Difference):
    """The difference of each frame's features to those of the one before it."""

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T-1 D"]:
        """Encodes, then subtracts."""
        return self.encoder(frames).diff(dim=1)


class EarlyFusion(Difference):
    """Frame and difference as one image of six channels, for an encoder that takes six."""

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T-1 D"]:
        """Stacks, then encodes."""
        return self.encoder(torch.cat([frames[:, 1:], frames.diff(dim=1)], dim=2))


class LateFusion(Difference):
    """Frames and differences, each with its own encoder, and their features side by side.

    Args:
        encoder: of frames.
        motion_encoder: of differences.
    """

    def __init__(self, encoder: Encoder, motion_encoder: Encoder) -> None:
        super().__init__(encoder)
        self.motion_encoder = motion_encoder
        self.num_features = encoder.num_features + motion_encoder.num_features

    def stages(self) -> list[list[Parameter]]:
        """Of both, the same stages together."""
        return [one + two for one, two in zip(self.encoder.stages(), self.motion_encoder.stages(), strict=True)]

    def load_weights(self) -> None:
        """Both start from the same weights."""
        self.encoder.load_weights()
        self.motion_encoder.load_weights()

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T-1 D"]:
        """Encodes both, then stacks."""
        return torch.cat([self.encoder(frames[:, 1:]), self.motion_encoder(frames.diff(dim=1))], dim=-1)


def build_motion(motion: str, num_frames: int, build: Callable[[int], Encoder]) -> tuple[Encoder, int]:
    """The encoder for a motion input, and T', the number of features it gives for a clip.

    Args:
        motion: one of `MOTIONS`.
        num_frames: T.
        build: an encoder of frames, from its number of channels.

    Raises:
        UserError: no such motion input, or a single frame where differences are needed.
    """
    check_choice("model.motion", motion, MOTIONS)
    if motion == "rgb":
        return build(3), num_frames
    if num_frames < 2:
        remedy = "Set data.num_frames=2 or more."
        raise UserError(f"data.num_frames >= 2 for model.motion={motion}", str(num_frames), remedy, "data.num_frames")
    if motion == "late_fusion":
        return LateFusion(build(3), build(3)), num_frames - 1
    if motion == "early_fusion":
        return EarlyFusion(build(6)), num_frames - 1
    return (Difference if motion == "difference" else FeatureDifference)(build(3)), num_frames - 1
