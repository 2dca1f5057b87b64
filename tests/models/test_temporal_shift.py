"""Residual blocks that see parts of the neighbouring frames."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.nets import build
from torch.nn import functional as F

from vidcls.errors import UserError
from vidcls.models.backbones import Backbone, build_net
from vidcls.models.temporal_shift import shift, shifted_convolutions

SHORTCUTS = "timm/mobilenetv3_small_050"  # larger, with residual blocks


def test_shift_by_hand() -> None:
    clip = torch.arange(1.0, 13).view(1, 3, 4)  # three frames of four channels; one forward, one backward
    expected = [[5, 0, 3, 4], [9, 2, 7, 8], [0, 6, 11, 12]]
    assert shift(clip, fold=4).tolist() == [expected]
    assert shift(clip).tolist() == clip.tolist()  # an eighth of four channels is none
    assert shift(clip[:, :1], fold=4).tolist() == [[[0, 0, 3, 4]]]  # a single frame has no neighbours


def test_shift_moves_whole_pictures() -> None:
    clips = torch.rand(2, 3, 17, 5, 4)  # 17 // 8 = 2 channels each way
    moved = shift(clips)
    assert torch.equal(moved[:, 0, :2], clips[:, 1, :2]) and torch.equal(moved[:, 2, 2:4], clips[:, 1, 2:4])
    assert not moved[:, 2, :2].any() and not moved[:, 0, 2:4].any()
    assert torch.equal(moved[:, :, 4:], clips[:, :, 4:])


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("torchvision/resnet18", 8),
        ("timm/resnet18", 8),
        ("timm/resnet26", 8),
        ("torchvision/mobilenet_v2", 10),  # of 17 blocks, 10 have a shortcut (Sandler et al. 2018, table 2)
        ("timm/mobilenetv2_100", 10),
    ],
)
def test_one_shift_per_residual_block(name: str, blocks: int) -> None:
    assert len(shifted_convolutions(build_net(name, 3))) == blocks


def test_a_shifted_block_of_resnet_by_hand() -> None:
    encoder = build("torchvision/resnet18", temporal_shift=True).eval()
    assert encoder.shift is not None
    encoder.shift.num_frames = 3
    block = encoder.net.layer1[0]
    clips = torch.randn(2, 3, 64, 6, 6)
    stack = clips.flatten(0, 1)
    with torch.no_grad():
        inner = F.relu(block.bn1(F.conv2d(shift(clips).flatten(0, 1), block.conv1.weight, padding=1)))
        expected = F.relu(block.bn2(F.conv2d(inner, block.conv2.weight, padding=1)) + stack)  # the shortcut: unshifted
        torch.testing.assert_close(block(stack), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["timm/tf_efficientnet_lite0", "torchvision/mobilenet_v2"])
def test_a_shifted_block_of_a_mobile_network_by_hand(name: str) -> None:
    encoder, plain = build(name, temporal_shift=True).eval(), build(name).eval()
    assert encoder.shift is not None
    encoder.shift.num_frames = 4
    path = "blocks.1.1" if name.startswith("timm/") else "features.3"  # 24 channels in and out, stride 1
    clips = torch.randn(1, 4, 24, 6, 6)
    moved, stack = shift(clips).flatten(0, 1), clips.flatten(0, 1)
    with torch.no_grad():
        expected = plain.net.get_submodule(path)(moved) - moved + stack  # all but the shortcut sees what is shifted
        torch.testing.assert_close(encoder.net.get_submodule(path)(stack), expected, atol=1e-5, rtol=1e-4)


def reach(encoder: Backbone) -> list[int]:
    """The frames whose features change with frame 2 of 5."""
    frames = torch.rand(1, 5, 3, 32, 32)
    other = frames.clone()
    other[:, 2] = 1 - other[:, 2]
    with torch.no_grad():
        change = (encoder.eval()(frames) - encoder(other)).abs().amax(dim=(0, 2))
    return [frame for frame, value in enumerate(change.tolist()) if value > 1e-6]


def test_shifted_frames_see_their_neighbours() -> None:
    assert reach(build("torchvision/resnet18")) == [2]
    assert reach(build("torchvision/resnet18", temporal_shift=True)) == [0, 1, 2, 3, 4]


def test_shifted_networks_keep_the_names_of_their_weights(tmp_path: Path) -> None:
    path = str(tmp_path / "weights.pth")
    plain, shifted = build(SHORTCUTS), build(SHORTCUTS, path, temporal_shift=True)
    with torch.no_grad():
        plain.net.conv_stem.weight.fill_(1)
    torch.save(plain.net.state_dict(), path)
    shifted.load_weights()
    assert bool(shifted.net.conv_stem.weight.eq(1).all())


def test_a_copy_shifts_by_itself() -> None:
    encoder = build("torchvision/resnet18", temporal_shift=True).eval()
    twin = copy.deepcopy(encoder)
    long, short = torch.rand(1, 6, 3, 32, 32), torch.rand(1, 2, 3, 32, 32)
    with torch.no_grad():
        expected = encoder(long)
        twin(short)
        assert encoder.shift is not None and encoder.shift.num_frames == 6
        assert torch.equal(twin(long), expected)
        assert not torch.equal(encoder(long[:, :2])[:, 1], expected[:, 1])  # frame 1 is now the last


def test_no_residual_blocks_to_shift() -> None:
    with pytest.raises(UserError, match=r"\[model.encoder.temporal_shift\]$"):
        build("timm/convnext_atto", temporal_shift=True)


def test_a_shifted_network_exports_with_any_batch(tmp_path: Path) -> None:
    encoder = build("timm/test_resnet", temporal_shift=True).eval()
    torch.onnx.export(
        encoder,
        (torch.rand(2, 3, 3, 32, 32),),
        tmp_path / "model.onnx",
        input_names=["frames"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 4):
        frames = torch.rand(batch, 3, 3, 32, 32)
        (features,) = session.run(None, {"frames": frames.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(features, encoder(frames).numpy(), atol=1e-4)
