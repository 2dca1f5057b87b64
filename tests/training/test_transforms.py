"""Preprocessing and augmentation: tables of values, torchvision's resize, and one draw per clip."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from vidcls.training.transforms import Augment, Mix, Preprocess

IDENTITY = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


def preprocess(resolution: int, **changes: Any) -> Preprocess:
    return Preprocess(resolution, **({"augment": Augment()} | IDENTITY | changes))


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def still_clips(clips: int, frames: int, size: int = 16) -> Tensor:
    """Clips [B, T, 3, H, W] that all show one picture that does not move: whatever differs, the draw did."""
    return noise(1, 1, 3, size, size).expand(clips, frames, -1, -1, -1).contiguous()


# ---- augmentation


def test_off_is_the_identity() -> None:
    clips = noise(2, 3, 3, 16, 16)
    assert torch.equal(Augment()(clips), clips)


def test_flip_1_mirrors_exactly() -> None:
    clips = noise(2, 3, 3, 8, 10)
    assert torch.equal(Augment(flip=1.0)(clips), clips.flip(-1))


def test_flip_05_mirrors_about_half_of_the_clips() -> None:
    torch.manual_seed(0)
    clips = still_clips(200, 1, size=4)
    flipped = (Augment(flip=0.5)(clips) != clips).flatten(1).any(1)
    assert 70 <= int(flipped.sum()) <= 130  # four standard deviations


@pytest.mark.parametrize(
    "settings",
    [
        {"flip": 0.5},
        {"crop_scale": 0.3},
        {"jitter": 0.5},
        {"randaugment": 2, "randaugment_magnitude": 20},
        {"flip": 0.5, "crop_scale": 0.5, "jitter": 0.2, "randaugment": 1},
    ],
)
def test_one_draw_per_clip(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    clips = still_clips(8, 4)
    changed = Augment(**settings)(clips)
    assert changed.shape == clips.shape and changed.dtype == torch.uint8
    for clip in changed:  # a picture that stood still stands still
        assert all(torch.equal(frame, clip[0]) for frame in clip)
    looks = {clip[0].numpy().tobytes() for clip in changed}
    assert len(looks) == 2 if settings == {"flip": 0.5} else len(looks) >= 6


def test_crops_keep_the_shape_and_show_a_part() -> None:
    torch.manual_seed(0)
    ramp = torch.arange(0, 240, 10, dtype=torch.uint8).expand(1, 1, 3, 24, 24)  # brighter from left to right
    clips = ramp.expand(6, 2, -1, -1, -1).contiguous()
    changed = Augment(crop_scale=0.1)(clips)
    assert changed.shape == clips.shape
    ranges = changed.flatten(1).max(1).values.int() - changed.flatten(1).min(1).values.int()
    assert (ranges <= 230).all() and (ranges < 180).any()


def test_jitter_changes_colours_and_not_places() -> None:
    torch.manual_seed(0)
    clips = torch.full((4, 2, 3, 8, 8), 100, dtype=torch.uint8)
    changed = Augment(jitter=0.5)(clips)
    assert all(clip[:, c].unique().numel() == 1 for clip in changed for c in range(3))
    assert changed.unique().numel() > 1


def test_the_seed_repeats_the_draws() -> None:
    clips, everything = noise(4, 2, 3, 16, 16), Augment(flip=0.5, crop_scale=0.5, jitter=0.3, randaugment=2)
    torch.manual_seed(5)
    first = everything(clips)
    torch.manual_seed(5)
    assert torch.equal(first, everything(clips))
    assert not torch.equal(first, everything(clips))


def test_randaugment_is_torchvisions() -> None:
    clips = noise(1, 3, 3, 16, 16)
    torch.manual_seed(2)
    ours = Augment(randaugment=2, randaugment_magnitude=12)(clips)
    torch.manual_seed(2)
    assert torch.equal(ours[0], v2.RandAugment(num_ops=2, magnitude=12)(clips[0]))
    assert not torch.equal(ours, clips)


@pytest.mark.parametrize(
    "option", [{"flip": 0.1}, {"crop_scale": 0.9}, {"jitter": 0.1}, {"randaugment": 1}, {"mixup": 0.1}, {"cutmix": 1.0}]
)
def test_any_option_changes_something(option: dict[str, Any]) -> None:
    assert not Augment(**option).is_identity
    assert Augment().is_identity and Augment(randaugment_magnitude=30).is_identity


# ---- mixing clips


def levels(*values: float) -> Tensor:
    """One clip [T, 3, R, R] of a single value for each; their labels are all different."""
    return torch.tensor(values).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, 8, 8).contiguous()


def test_mixing_turned_off_is_the_identity_and_draws_nothing() -> None:
    clips, targets, state = levels(1.0, 2.0), torch.eye(2), torch.get_rng_state()
    mixed = Mix(0.0, 0.0)(clips, targets)
    assert mixed[0] is clips and mixed[1] is targets and torch.equal(torch.get_rng_state(), state)


def test_mixup_blends_each_clip_and_label_with_the_one_before() -> None:
    torch.manual_seed(0)
    clips, targets = Mix(mixup=1.0, cutmix=0.0)(levels(0.0, 1.0, 3.0), torch.eye(3))
    share = float(targets[0, 0])
    assert 0.05 < share < 0.95
    expected = torch.tensor([[share, 0, 1 - share], [1 - share, share, 0], [0, 1 - share, share]])
    torch.testing.assert_close(targets, expected)
    blends = [3 * (1 - share), share, 3 * share + 1 - share]
    torch.testing.assert_close(clips, levels(*blends))
    assert type(clips) is Tensor


def test_cutmix_pastes_one_box_into_all_frames() -> None:
    torch.manual_seed(0)
    boxes = set()
    for _ in range(20):
        clips, targets = Mix(mixup=0.0, cutmix=1.0)(levels(0.0, 1.0), torch.eye(2))
        pasted = clips[0] == 1  # [T, 3, R, R]
        assert torch.equal(pasted, pasted[:1, :1].expand_as(pasted)) and torch.equal(clips[1] == 0, pasted)
        assert bool(((clips == 0) | (clips == 1)).all())
        area = float(pasted.float().mean())
        torch.testing.assert_close(targets, torch.tensor([[1 - area, area], [area, 1 - area]]))
        boxes.add(pasted.numpy().tobytes())
    assert len(boxes) > 5


def test_with_both_each_batch_draws_one() -> None:
    torch.manual_seed(0)
    mix, kinds = Mix(mixup=1, cutmix=1), []
    for _ in range(200):
        clips, _ = mix(levels(0.0, 1.0), torch.eye(2))
        kinds.append("cutmix" if bool(((clips == 0) | (clips == 1)).all()) else "mixup")
    assert 70 <= kinds.count("mixup") <= 130  # four standard deviations


def test_the_share_follows_its_alpha() -> None:
    """Beta(0.1, 0.1) hardly mixes, Beta(100, 100) always mixes half and half."""
    torch.manual_seed(0)
    for alpha, low, high in ((0.1, 0.0, 0.2), (100.0, 0.4, 0.5)):
        lesser = [float(Mix(alpha, 0.0)(levels(0.0, 1.0), torch.eye(2))[1].min()) for _ in range(100)]
        assert low <= sum(lesser) / 100 <= high


def test_the_seed_repeats_the_mixing() -> None:
    mix, clips, targets = Mix(0.4, 1.0), torch.rand(4, 2, 3, 8, 8), torch.eye(4)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append([mix(clips, targets) for _ in range(8)])
    for one, two in zip(*runs, strict=True):
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


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
    preprocess(8, augment=Augment(flip=1.0, jitter=0.5))(frames)
    preprocess(4)(frames)
    assert torch.equal(frames, before)


def test_augments_in_training_mode_only() -> None:
    frames = noise(2, 3, 8, 8, 3)
    flipping = preprocess(8, augment=Augment(flip=1.0))
    plain = frames.movedim(-1, 2).float() / 255
    assert torch.equal(flipping.train()(frames), plain.flip(-1))
    assert torch.equal(flipping.eval()(frames), plain)


def test_nothing_of_it_is_in_a_checkpoint() -> None:
    assert preprocess(8).state_dict() == {}
