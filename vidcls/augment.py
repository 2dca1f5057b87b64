"""On the device: uint8 frames from the store to the float frames a network sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.transforms import v2

from vidcls.errors import UserError, check_number


class Augment(nn.Module):
    """Random changes to training clips, one draw per clip: all its frames change alike, so motion stays motion.

    Args:
        flip: the probability of mirroring left and right.
        crop_scale: the smallest share of the picture that a random crop keeps; 1 crops nothing.
        jitter: how far brightness, contrast and saturation may change, 0..1; 0 changes nothing.

    Raises:
        UserError: a setting is out of range.
    """

    def __init__(self, flip: float, crop_scale: float, jitter: float) -> None:
        super().__init__()
        self.flip = check_number("augment.flip", flip, 0.0, 1.0)
        self.crop_scale = check_number("augment.crop_scale", crop_scale, 0.01, 1.0)
        self.jitter = check_number("augment.jitter", jitter, 0.0, 1.0)

    def forward(self, clips: UInt8[Tensor, "B T 3 H W"]) -> UInt8[Tensor, "B T 3 H W"]:
        """Augments each clip on its own."""
        transforms: list[nn.Module] = []
        if self.flip > 0:
            transforms.append(v2.RandomHorizontalFlip(self.flip))
        if self.crop_scale < 1:
            size = (clips.shape[-2], clips.shape[-1])
            transforms.append(v2.RandomResizedCrop(size, scale=(self.crop_scale, 1.0), antialias=True))
        if self.jitter > 0:
            transforms.append(v2.ColorJitter(self.jitter, self.jitter, self.jitter))
        if not transforms:
            return clips
        one_draw = v2.Compose(transforms)
        return torch.stack([one_draw(clip) for clip in clips])


class Preprocess(nn.Module):
    """uint8 [B, T, H, W, 3] to normalised float [B, T, 3, R, R]: augment, resize, scale to 0..1, normalise.

    Args:
        resolution: R, in pixels. Stored frames of another size are resized with antialiasing.
        mean: per channel, on the 0..1 scale.
        std: per channel, on the 0..1 scale.
        augment: applied in training mode only.

    Example:
        >>> preprocess = Preprocess(64, mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5], augment=Augment(0.0, 1.0, 0.0))
        >>> preprocess(torch.full((1, 2, 64, 64, 3), 255, dtype=torch.uint8)).unique().tolist()
        [1.0]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, resolution: int, mean: Sequence[float], std: Sequence[float], augment: Augment) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UserError("three means and three positive stds", f"{list(mean)} and {list(std)}", "Mend normalise.")
        self.resolution = resolution
        self.augment = augment
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B T 3 R R"]:
        """Prepares a batch of clips."""
        clips = frames.movedim(-1, 2)  # [B, T, 3, H, W], a view
        if self.training:
            clips = self.augment(clips)
        if clips.shape[-2:] != (self.resolution, self.resolution):
            clips = v2.functional.resize(clips, [self.resolution, self.resolution], antialias=True)
        return (clips.float().div_(255) - self.mean) / self.std  # [B, T, 3, R, R]
