"""What an encoder is shown of a clip: differences between frames, frames and differences, or where things move."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from vidcls.models.encoders import Encoder


class WrappedEncoder(Encoder):
    """An encoder that is shown something else than the frames."""

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


class Difference(WrappedEncoder):
    """Encodes the difference of each frame to the one before it: T frames give T - 1 features.

    Removes a static background, and most of what identifies a camera (RGB difference of Wang et al. 2016,
    https://arxiv.org/abs/1608.00859). Frames are normalised, so differences are in units of ``std``.
    """

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T-1 D"]:
        return self.encoder(frames.diff(dim=1))


class MultiscaleDifference(WrappedEncoder):
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


class FeatureDifference(WrappedEncoder):
    """The difference of each frame's features to those of the one before it."""

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T-1 D"]:
        return self.encoder(frames).diff(dim=1)


class EarlyFusion(WrappedEncoder):
    """Frame and difference as one image of six channels, for an encoder that takes six."""

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T-1 D"]:
        return self.encoder(torch.cat([frames[:, 1:], frames.diff(dim=1)], dim=2))


class LateFusion(WrappedEncoder):
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


class MultiResolution(WrappedEncoder):
    """Encodes frames at several sizes, each half as large as the one before, and concatenates the features."""

    def __init__(self, encoder: Encoder, sizes: int) -> None:
        super().__init__(encoder)
        self.sizes = sizes
        self.num_features = sizes * encoder.num_features

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T2 D"]:
        features = [self.encoder(frames)]
        for _ in range(self.sizes - 1):
            frames = F.avg_pool2d(frames.flatten(0, 1), 2).unflatten(0, frames.shape[:2])
            features.append(self.encoder(frames))
        return torch.cat(features, dim=-1)


class MotionCrop(WrappedEncoder):
    """Encodes a square around what moves, the same in all frames of a clip, resized to ``size`` x ``size`` pixels.

    The square is the smallest, of sides from 0.3 to 1 of the frame, that holds `SHARE` of the motion: the mean of the
    absolute differences between frames, in cells of 1/40 of the frame, less their median, which is the noise of the
    camera. A still clip is shown as a whole.
    """

    CELLS = 40
    MIN_CELLS, STEP = 12, 2  # of the square's side
    SHARE = 0.8

    def __init__(self, encoder: Encoder, size: int) -> None:
        super().__init__(encoder)
        self.size = size

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B *features"]:
        precise = frames.float()  # half precision would move the square by pixels
        theta = self.squares(precise)[:, None].expand(-1, frames.shape[1], -1, -1).flatten(0, 1)  # [B*T, 2, 3]
        grid = F.affine_grid(theta, [theta.shape[0], 3, self.size, self.size], align_corners=False)
        cropped = F.grid_sample(precise.flatten(0, 1), grid, padding_mode="border", align_corners=False)
        return self.encoder(cropped.to(frames.dtype).unflatten(0, frames.shape[:2]))

    def squares(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B 2 3"]:
        """Each clip's square, as the affine transform of [-1, 1] coordinates that `affine_grid` takes."""
        change = frames.mean(dim=2).diff(dim=1).abs().mean(dim=1, keepdim=True)  # [B, 1, R, R]
        cells = F.adaptive_avg_pool2d(change, self.CELLS)  # [B, 1, CELLS, CELLS]
        median = cells.flatten(1).sort(dim=1).values[:, self.CELLS**2 // 2]  # ONNX has no median
        motion = (cells - median[:, None, None, None]).clamp(min=0)
        total = motion.sum(dim=(1, 2, 3))  # [B]
        scale, x, y = torch.ones_like(total), torch.zeros_like(total), torch.zeros_like(total)
        for side in range(self.CELLS - self.STEP, self.MIN_CELLS - 1, -self.STEP):
            sums = F.avg_pool2d(motion, side, stride=1) * side**2  # [B, 1, P, P], of each place of the square
            most, place = sums.flatten(1).max(dim=1)
            fits = (most >= self.SHARE * total) & (total > 0)
            top, left = place // sums.shape[-1], place % sums.shape[-1]
            scale = torch.where(fits, side / self.CELLS, scale)
            x = torch.where(fits, (2 * left + side) / self.CELLS - 1, x)
            y = torch.where(fits, (2 * top + side) / self.CELLS - 1, y)
        zero = torch.zeros_like(scale)
        return torch.stack([scale, zero, x, zero, scale, y], dim=1).unflatten(1, (2, 3))


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
