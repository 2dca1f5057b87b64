"""From stored uint8 frames to the network's float input, on the device.

torchvision is imported where it is used, as its import takes seconds and most predictions do not need it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn


class Augment(nn.Module):
    """Augments training clips; all frames of a clip get the same transform.

    For the options see conf/augment/none.yaml; the defaults change nothing. RandAugment: Cubuk et al. 2020
    (https://arxiv.org/abs/1909.13719). ``mix`` must be applied to the batch after preprocessing.
    """

    def __init__(
        self,
        flip: float = 0.0,
        crop_scale: float = 1.0,
        jitter: float = 0.0,
        randaugment: int = 0,
        randaugment_magnitude: int = 9,
        mixup: float | int = 0.0,
        cutmix: float | int = 0.0,
    ) -> None:
        super().__init__()
        self.flip = flip
        self.crop_scale = crop_scale
        self.jitter = jitter
        self.randaugment = randaugment
        self.magnitude = randaugment_magnitude
        self.mix = Mix(mixup, cutmix)

    @property
    def is_identity(self) -> bool:
        return not self._changes_clips and self.mix.is_identity

    @property
    def _changes_clips(self) -> bool:
        return self.flip > 0 or self.crop_scale < 1 or self.jitter > 0 or self.randaugment > 0

    def _transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        from torchvision.transforms import v2

        transforms: list[nn.Module] = []
        if self.flip > 0:
            transforms.append(v2.RandomHorizontalFlip(self.flip))
        if self.crop_scale < 1:
            transforms.append(v2.RandomResizedCrop(size, scale=(self.crop_scale, 1.0), antialias=True))
        if self.jitter > 0:
            transforms.append(v2.ColorJitter(self.jitter, self.jitter, self.jitter))
        if self.randaugment > 0:
            transforms.append(v2.RandAugment(self.randaugment, self.magnitude))
        return transforms

    def forward(self, clips: UInt8[Tensor, "B T 3 H W"]) -> UInt8[Tensor, "B T 3 H W"]:
        if not self._changes_clips:
            return clips
        transform = nn.Sequential(*self._transforms((clips.shape[-2], clips.shape[-1])))
        return torch.stack([transform(clip) for clip in clips])


class Mix(nn.Module):
    """Mixes each clip of a batch with the one before it, and their labels in the same proportion.

    The proportion is drawn per batch from Beta(mixup, mixup) or Beta(cutmix, cutmix): of pixel values in mixup (Zhang
    et al. 2018, https://arxiv.org/abs/1710.09412), of the area in cutmix (Yun et al. 2019,
    https://arxiv.org/abs/1905.04899). 0 turns either off; with both, each batch draws one of the two.
    """

    def __init__(self, mixup: float | int, cutmix: float | int) -> None:
        super().__init__()
        self.mixes: list[nn.Module] = []
        if mixup > 0 or cutmix > 0:
            from torchvision.transforms import v2  # here, and built once, where half precision is not yet the default

            # torch draws nothing from integers.
            alphas = (v2.MixUp, float(mixup)), (v2.CutMix, float(cutmix))
            self.mixes = [make(alpha=alpha) for make, alpha in alphas if alpha > 0]

    @property
    def is_identity(self) -> bool:
        return not self.mixes

    def forward(
        self, clips: Float[Tensor, "B T 3 R R"], targets: Float[Tensor, "B K"]
    ) -> tuple[Float[Tensor, "B T 3 R R"], Float[Tensor, "B K"]]:
        """Mixed clips and labels; ``targets`` are one-hot."""
        if self.is_identity:
            return clips, targets
        from torchvision import tv_tensors

        mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
        videos, targets = mix(tv_tensors.Video(clips), targets)
        return videos.as_subclass(Tensor), targets


def resize_frames(clips: UInt8[Tensor, "B T 3 H W"], resolution: int) -> UInt8[Tensor, "B T 3 R R"]:
    if clips.shape[-2:] == (resolution, resolution):
        return clips
    from torchvision.transforms import v2

    return v2.functional.resize(clips, [resolution, resolution], antialias=True)


class Preprocess(nn.Module):
    """uint8 [B, T, H, W, 3] to normalised float [B, T, 3, R, R]: augment, resize, scale to 0..1, normalise.

    ``augment`` is applied in training mode only. Stored frames of another size are resized with antialiasing.

    Example:
        >>> preprocess = Preprocess(64, mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5], augment=Augment())
        >>> preprocess(torch.full((1, 2, 64, 64, 3), 255, dtype=torch.uint8)).unique().tolist()
        [1.0]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, resolution: int, mean: Sequence[float], std: Sequence[float], augment: Augment) -> None:
        super().__init__()
        self.resolution = resolution
        self.augment = augment
        self.normalises = any(value != 0 for value in mean) or any(value != 1 for value in std)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def forward(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B T 3 R R"]:
        clips = frames.movedim(-1, 2)  # [B, T, 3, H, W], a view
        if self.training:
            clips = self.augment(clips)
        scaled = resize_frames(clips, self.resolution).to(self.mean.dtype).div_(255)  # [B, T, 3, R, R]
        return (scaled - self.mean) / self.std if self.normalises else scaled
