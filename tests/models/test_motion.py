"""What the encoder is shown, by hand, with an encoder whose features are the mean of each channel."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from vidcls.models.encoders import ConvEncoder, Encoder
from vidcls.models.motion import MOTIONS, MotionCrop, MultiResolution, build_motion


class Means(Encoder):
    """scale * mean^2 per channel; squared, so that differences of features are not features of differences."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_features = channels
        self.scale = Parameter(torch.ones(()))
        self.normalisation = {"mean": [0.5] * 3, "std": [0.25] * 3}
        self.loaded = 0

    def stages(self) -> list[list[Parameter]]:
        return [[self.scale]]

    def load_weights(self) -> None:
        self.loaded += 1

    def forward(self, frames: Float[Tensor, "B T C R R"]) -> Float[Tensor, "B T C"]:
        return self.scale * frames.mean(dim=(3, 4)).square()


# One clip of three frames, R = 2: red goes 1, 2, 4, green 3, 3, 3, blue 0, -1, 1.
COLOURS = torch.tensor([[1.0, 3.0, 0.0], [2.0, 3.0, -1.0], [4.0, 3.0, 1.0]])
CLIP = COLOURS[None, :, :, None, None].expand(1, 3, 3, 2, 2)


@pytest.mark.parametrize(
    ("motion", "expected"),
    [
        ("rgb", [[1.0, 9, 0], [4, 9, 1], [16, 9, 1]]),
        ("difference", [[1.0, 0, 1], [4, 0, 4]]),
        ("feature_difference", [[3.0, 0, 1], [12, 0, 0]]),
        ("early_fusion", [[4.0, 9, 1, 1, 0, 1], [16, 9, 1, 4, 0, 4]]),
        ("late_fusion", [[4.0, 9, 1, 1, 0, 1], [16, 9, 1, 4, 0, 4]]),
    ],
)
def test_motion_inputs_by_hand(motion: str, expected: list[list[float]]) -> None:
    encoder, length = build_motion(motion, 3, Means)
    torch.testing.assert_close(encoder(CLIP), torch.tensor([expected]))
    assert (length, encoder.num_features) == (len(expected), len(expected[0]))


def test_multiscale_difference_by_hand() -> None:
    # Grey of six frames: the means of the channels, 0, 1, 4, 9, 16, 25.
    grey = torch.arange(6.0).square()
    clip = torch.stack([grey - 1, grey, grey + 1], dim=1)[None, :, :, None, None].expand(1, 6, 3, 2, 2)
    encoder, length = build_motion("multiscale_difference", 6, Means)
    differences = torch.tensor([[16.0 - 9, 16 - 4, 16 - 0], [25 - 16, 25 - 9, 25 - 1]])
    scaled = 0.15 * differences / torch.tensor([1.0, 2, 4])  # half the distance of two values is their deviation
    torch.testing.assert_close(encoder(clip), scaled.square()[None])
    assert (length, encoder.num_features) == (2, 3)


def test_multiscale_difference_does_not_see_contrast_or_other_clips() -> None:
    torch.manual_seed(0)
    encoder, _ = build_motion("multiscale_difference", 6, Means)
    clips = torch.rand(2, 6, 3, 4, 4)
    contrast = clips * torch.tensor([0.5, 3.0])[:, None, None, None, None] + 0.2
    torch.testing.assert_close(encoder(contrast), encoder(clips))
    torch.testing.assert_close(encoder(clips[:1]), encoder(clips)[:1])
    assert not encoder(torch.ones(1, 6, 3, 4, 4)).any()


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("num_frames", [5, 7])
def test_lengths_with_a_network(motion: str, num_frames: int) -> None:
    torch.manual_seed(0)
    encoder, length = build_motion(motion, num_frames, lambda channels: ConvEncoder([4], 8, channels))
    assert length == num_frames - {"rgb": 0, "multiscale_difference": 4}.get(motion, 1)
    features = encoder(torch.rand(2, num_frames, 3, 8, 8))
    assert encoder.num_features == 64 * (2 if motion == "late_fusion" else 1)
    assert features.shape == (2, length, encoder.num_features)


def test_a_still_background_vanishes() -> None:
    encoder, _ = build_motion("difference", 4, Means)
    moving, background = torch.rand(2, 4, 3, 2, 2), torch.rand(2, 1, 3, 2, 2)
    torch.testing.assert_close(encoder(moving + background), encoder(moving))


def test_late_fusion_has_two_encoders() -> None:
    encoder, _ = build_motion("late_fusion", 3, Means)
    frames, motion = (part for part in encoder.modules() if isinstance(part, Means))
    assert frames.scale is not motion.scale
    with torch.no_grad():
        motion.scale.fill_(10.0)
        torch.testing.assert_close(encoder(CLIP)[0, 0], torch.tensor([4.0, 9, 1, 10, 0, 10]))
    assert encoder.stages() == [[frames.scale, motion.scale]]  # block by block, so that both thaw alike


@pytest.mark.parametrize("motion", MOTIONS)
def test_what_the_encoder_answers_is_passed_on(motion: str) -> None:
    encoder, _ = build_motion(motion, 5, Means)
    inner = [part for part in encoder.modules() if isinstance(part, Means)]
    encoder.load_weights()
    assert [part.loaded for part in inner] == [1] * len(inner)
    assert encoder.normalisation == {"mean": [0.5] * 3, "std": [0.25] * 3}
    assert [id(p) for p in encoder.stages()[0]] == [id(part.scale) for part in inner]
    assert not encoder.is_frozen


@pytest.mark.parametrize("motion", MOTIONS)
def test_whether_the_encoder_is_frozen_is_passed_on(motion: str) -> None:
    def frozen(channels: int) -> Encoder:
        encoder = Means(channels)
        encoder.is_frozen = True
        return encoder

    assert build_motion(motion, 3, frozen)[0].is_frozen


def test_rgb_is_the_encoder_itself() -> None:
    assert isinstance(build_motion("rgb", 1, Means)[0], Means)


class Maxima(Means):
    """The maximum of each channel."""

    def forward(self, frames: Float[Tensor, "B T C R R"]) -> Float[Tensor, "B T C"]:
        return frames.amax(dim=(3, 4))


def test_several_sizes_are_means_of_pixels() -> None:
    torch.manual_seed(0)
    several = MultiResolution(Maxima(3), 3)
    frames = torch.rand(2, 5, 3, 8, 8)
    features = several(frames)
    assert features.shape == (2, 5, several.num_features) == (2, 5, 9)
    half = frames.unflatten(4, (4, 2)).unflatten(3, (4, 2)).mean(dim=(4, 6))
    quarter = frames.unflatten(4, (2, 4)).unflatten(3, (2, 4)).mean(dim=(4, 6))
    expected = torch.cat([each.amax(dim=(3, 4)) for each in (frames, half, quarter)], dim=-1)
    torch.testing.assert_close(features, expected)


class Pixels(Means):
    """The frames themselves."""

    def forward(self, frames: Float[Tensor, "B T C R R"]) -> Float[Tensor, "B T C R R"]:
        return frames


def test_a_crop_holds_what_moves() -> None:
    torch.manual_seed(0)
    clips = torch.rand(1, 1, 3, 80, 80).repeat(3, 4, 1, 1, 1)  # three still clips
    clips[1, :, :, 40:64, 8:32] = torch.rand(4, 3, 24, 24)  # 24 pixels are 12 cells, the smallest square
    clips[2] = torch.rand(4, 3, 80, 80)
    noise = 0.02 * torch.rand(4, 3, 80, 80)
    squares = MotionCrop(Pixels(3), 24).squares(clips + noise)
    still, moving, everywhere = squares
    whole = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    assert moving.flatten().tolist() == pytest.approx([0.3, 0, 20 / 40 - 1, 0, 0.3, 52 / 40 - 1], abs=0.11)
    assert still[0, 0] > 0.7 and everywhere[0, 0] > 0.7  # noise alone is everywhere
    torch.testing.assert_close(MotionCrop(Pixels(3), 24).squares(clips[:1])[0], whole)
    torch.testing.assert_close(MotionCrop(Pixels(3), 24).squares(clips[:1, :1])[0], whole)  # a clip of one frame


def test_a_crop_is_cut_from_all_frames_at_their_size() -> None:
    torch.manual_seed(0)
    clips = torch.zeros(2, 3, 3, 80, 80)
    clips[0, :, :, 40:64, 8:32] = torch.rand(3, 3, 24, 24)
    cropped = MotionCrop(Pixels(3), 24)(clips)
    torch.testing.assert_close(cropped[0], clips[0, :, :, 40:64, 8:32])
    assert cropped.shape == (2, 3, 3, 24, 24) and not cropped[1].any()


def test_a_crop_in_half_precision_is_of_the_same_square() -> None:
    torch.manual_seed(0)
    clips = torch.rand(1, 3, 3, 80, 80).bfloat16()
    crop = MotionCrop(Pixels(3), 24)
    torch.testing.assert_close(crop(clips), crop(clips.float()).bfloat16())
