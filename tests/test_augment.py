"""Preprocessing and augmentation: tables of values, torchvision's resize, and one draw per clip."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from vidcls.augment import Augment, Preprocess
from vidcls.errors import UserError

SETTINGS: dict[str, float] = {"flip": 0.0, "crop_scale": 1.0, "jitter": 0.0}
IDENTITY = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


def augment(**changes: float) -> Augment:
    return Augment(**(SETTINGS | changes))


def preprocess(resolution: int, **changes: Any) -> Preprocess:
    return Preprocess(resolution, **({"augment": augment()} | IDENTITY | changes))


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def still_clips(clips: int, frames: int, size: int = 16) -> Tensor:
    """Clips [B, T, 3, H, W] that all show one picture that does not move: whatever differs, the draw did."""
    return noise(1, 1, 3, size, size).expand(clips, frames, -1, -1, -1).contiguous()


# ---- augmentation


def test_off_is_the_identity() -> None:
    clips = noise(2, 3, 3, 16, 16)
    assert torch.equal(augment()(clips), clips)


def test_flip_1_mirrors_exactly() -> None:
    clips = noise(2, 3, 3, 8, 10)
    assert torch.equal(augment(flip=1.0)(clips), clips.flip(-1))


def test_flip_05_mirrors_about_half_of_the_clips() -> None:
    torch.manual_seed(0)
    clips = still_clips(200, 1, size=4)
    flipped = (augment(flip=0.5)(clips) != clips).flatten(1).any(1)
    assert 70 <= int(flipped.sum()) <= 130  # four standard deviations


@pytest.mark.parametrize(
    "settings", [{"flip": 0.5}, {"crop_scale": 0.3}, {"jitter": 0.5}, {"flip": 0.5, "crop_scale": 0.5, "jitter": 0.2}]
)
def test_one_draw_per_clip(settings: dict[str, float]) -> None:
    torch.manual_seed(0)
    clips = still_clips(8, 4)
    changed = augment(**settings)(clips)
    assert changed.shape == clips.shape and changed.dtype == torch.uint8
    for clip in changed:  # a picture that stood still stands still
        assert all(torch.equal(frame, clip[0]) for frame in clip)
    looks = {clip[0].numpy().tobytes() for clip in changed}
    assert len(looks) == 2 if settings == {"flip": 0.5} else len(looks) >= 6


def test_crops_keep_the_shape_and_show_a_part() -> None:
    torch.manual_seed(0)
    ramp = torch.arange(0, 240, 10, dtype=torch.uint8).expand(1, 1, 3, 24, 24)  # brighter from left to right
    clips = ramp.expand(6, 2, -1, -1, -1).contiguous()
    changed = augment(crop_scale=0.1)(clips)
    assert changed.shape == clips.shape
    ranges = changed.flatten(1).max(1).values.int() - changed.flatten(1).min(1).values.int()
    assert (ranges <= 230).all() and (ranges < 180).any()


def test_jitter_changes_colours_and_not_places() -> None:
    torch.manual_seed(0)
    clips = torch.full((4, 2, 3, 8, 8), 100, dtype=torch.uint8)
    changed = augment(jitter=0.5)(clips)
    assert all(clip[:, c].unique().numel() == 1 for clip in changed for c in range(3))
    assert changed.unique().numel() > 1


def test_the_seed_repeats_the_draws() -> None:
    clips, everything = noise(4, 2, 3, 16, 16), augment(flip=0.5, crop_scale=0.5, jitter=0.3)
    torch.manual_seed(5)
    first = everything(clips)
    torch.manual_seed(5)
    assert torch.equal(first, everything(clips))
    assert not torch.equal(first, everything(clips))


@pytest.mark.parametrize(
    ("knob", "value", "bounds"),
    [("flip", 1.5, "0 to 1"), ("flip", -0.1, "0 to 1"), ("crop_scale", 0.0, "0.01 to 1"), ("jitter", 2.0, "0 to 1")],
)
def test_settings_out_of_range(knob: str, value: float, bounds: str) -> None:
    with pytest.raises(UserError, match=rf"expected augment.{knob} to be a number from {bounds}; got {value}"):
        augment(**{knob: value})


# ---- preprocessing


@pytest.mark.parametrize(
    ("byte", "mean", "std", "expected"),
    [
        (0, 0.0, 1.0, 0.0),
        (255, 0.0, 1.0, 1.0),
        (51, 0.0, 1.0, 0.2),
        (255, 0.5, 0.5, 1.0),
        (0, 0.5, 0.5, -1.0),
        (102, 0.3, 0.2, 0.5),
    ],
)
def test_a_table_of_values(byte: int, mean: float, std: float, expected: float) -> None:
    frames = torch.full((1, 2, 4, 4, 3), byte, dtype=torch.uint8)
    floats = preprocess(4, mean=[mean] * 3, std=[std] * 3)(frames)
    assert floats.dtype == torch.float32 and floats.shape == (1, 2, 3, 4, 4)
    torch.testing.assert_close(floats, torch.full_like(floats, expected))


def test_channels_keep_their_order_and_their_own_normalisation() -> None:
    frames = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 1, 2, 2, 3).contiguous()
    floats = preprocess(2, mean=[0.0, 0.2, 0.5], std=[1.0, 1.0, 0.25])(frames)
    torch.testing.assert_close(floats[0, 0, :, 0, 0], torch.tensor([0.0, 0.0, 2.0]))


def test_frames_of_the_right_size_are_not_resampled() -> None:
    frames = noise(2, 3, 16, 16, 3)
    assert torch.equal(preprocess(16)(frames), frames.movedim(-1, 2).float() / 255)


@pytest.mark.parametrize(("stored", "resolution"), [(32, 16), (40, 24), (16, 32)])
def test_resizes_as_torchvision_with_antialiasing(stored: int, resolution: int) -> None:
    frames = noise(2, 3, stored, stored, 3)
    floats = preprocess(resolution)(frames)
    expected = TF.resize(frames.movedim(-1, 2).flatten(0, 1).contiguous(), [resolution, resolution], antialias=True)
    assert floats.shape == (2, 3, 3, resolution, resolution)
    assert torch.equal(floats.flatten(0, 1), expected.float() / 255)


def test_the_stored_frames_stay_as_they_are() -> None:
    frames = noise(1, 2, 8, 8, 3)
    before = frames.clone()
    preprocess(8, augment=augment(flip=1.0, jitter=0.5))(frames)
    preprocess(4)(frames)
    assert torch.equal(frames, before)


def test_augments_in_training_mode_only() -> None:
    frames = noise(2, 3, 8, 8, 3)
    flipping = preprocess(8, augment=augment(flip=1.0))
    plain = frames.movedim(-1, 2).float() / 255
    assert torch.equal(flipping.train()(frames), plain.flip(-1))
    assert torch.equal(flipping.eval()(frames), plain)


def test_nothing_of_it_is_in_a_checkpoint() -> None:
    assert preprocess(8).state_dict() == {}


@pytest.mark.parametrize(
    "wrong", [{"mean": [0.5]}, {"std": [1.0, 1.0]}, {"std": [1.0, 0.0, 1.0]}, {"std": [1.0, -1.0, 1.0]}]
)
def test_wrong_normalisation(wrong: dict[str, list[float]]) -> None:
    with pytest.raises(UserError, match=r"expected three means and three positive stds; got \["):
        preprocess(8, **wrong)
