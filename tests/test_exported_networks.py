"""The parts of an export: stored clips, parity, and networks that are exported without a run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.modules import SPEC
from torch import nn

from vidcls.data.decoding.frames import decode
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FrameStore
from vidcls.errors import UserError
from vidcls.exporters import (
    ExportedClassifier,
    check_parity,
    describe,
    export_checked,
    resize,
    stored_clips,
)
from vidcls.models.classifiers import cnn_lstm, cnn_mean
from vidcls.prediction.loading import load_run
from vidcls.training.transforms import Augment, Preprocess

# ---- the parts


def test_damaged_store_entries_are_passed_over(finished: Path, tmp_path: Path) -> None:
    trained = load_run(finished)
    cache = tmp_path / "cache"
    (frames,) = Path(trained.config.cache_dir, "store").glob("uniform_4x16px_v*")
    shutil.copytree(frames, cache / "store" / frames.name)
    clips = stored_clips(trained, str(cache))
    assert clips.shape == (len(clips), 4, 16, 16, 3) and len(clips) > 2
    assert np.array_equal(clips, stored_clips(trained, None))  # the run's own cache_dir
    assert np.array_equal(clips[:2], stored_clips(trained, str(cache), max_clips=2))
    manifest = trained.manifest
    first = manifest.loc[manifest["split"] == "test", "sha256"].iloc[0]
    FrameStore(cache / "store", StoreSpec(4, 16, "uniform")).path(first).write_bytes(b"damaged")
    assert np.array_equal(clips[1:], stored_clips(trained, str(cache)))


def clips_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 2, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 16])
def test_parity_sees_every_clip_once(count: int) -> None:
    seen: list[np.ndarray] = []

    def half(frames: np.ndarray) -> np.ndarray:
        return np.full((len(frames), 2), 0.5, np.float32)

    def watched(frames: np.ndarray) -> np.ndarray:
        seen.append(frames)
        return half(frames)

    clips = clips_of(count)
    assert check_parity(half, watched, clips, 8) == 0.0
    assert len(seen[0]) == 1  # alone: a frozen batch size shows
    assert np.array_equal(np.concatenate(seen), clips)


@pytest.mark.parametrize("wrong", [2e-5, np.nan])
@pytest.mark.parametrize("which", [0, 1, 8])
def test_parity_refuses_one_wrong_clip(wrong: float, which: int) -> None:
    clips = clips_of(9)

    def half(frames: np.ndarray) -> np.ndarray:
        return np.full((len(frames), 2), 0.5, np.float32)

    def off(frames: np.ndarray) -> np.ndarray:
        answer = half(frames)
        answer[[np.array_equal(clip, clips[which]) for clip in frames], 1] += wrong
        return answer

    with pytest.raises(UserError) as error:
        check_parity(half, off, clips, 8)
    assert error.value.code == "export-differs"
    if wrong == 2e-5:
        assert check_parity(half, off, clips, 8, tolerance=1e-4) == pytest.approx(2e-5, rel=0.01)


class Drifting(nn.Module):
    """Answers one way while it is traced and another way after: an export that must not be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(2), persistent=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        logits = torch.stack([frames.mean(dim=(1, 2, 3, 4)), frames.amax(dim=(1, 2, 3, 4))], dim=1)
        return logits if torch.compiler.is_exporting() else logits + torch.tensor([1.0, 0.0])


def untrained(model: nn.Module, resolution: int = 8) -> ExportedClassifier:
    preprocess = Preprocess(resolution, mean=[0.5] * 3, std=[0.2] * 3, augment=Augment(1.0, 0.5, 0.5))
    return ExportedClassifier(model, preprocess)


def test_a_file_that_disagrees_is_not_kept(tmp_path: Path) -> None:
    output = tmp_path / "model.pt2"
    output.write_bytes(b"an earlier one")
    with pytest.raises(UserError) as error:
        export_checked(untrained(Drifting()), "torch_export", output, {}, clips_of(3))
    assert error.value.code == "export-differs"
    assert output.read_bytes() == b"an earlier one"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_the_notebooks_network_on_real_clips_in_batches_of_any_size(
    real_data: Path, tmp_path: Path, format: str
) -> None:
    files = sorted((real_data / "fights" / "val").rglob("*.*"))[:6]
    # 8 frames instead of 20: exporters unroll the LSTM.
    clips = np.stack([decode(file, StoreSpec(8, 64, "uniform"), ("pyav",))[0] for file in files])
    torch.manual_seed(0)
    network = untrained(cnn_lstm(2, 64, {"channels": [32, 64, 128]}, {"hidden_size": 64}, dropout=0.5), resolution=64)
    assert len(clips) == 6  # checked in batches of 1, 4 and 1
    assert export_checked(network, format, tmp_path / "model", {}, clips) <= 1e-5
    assert np.ptp(network.classify(clips), axis=0).max() > 1e-3  # the clips matter


class Plain(nn.Module):
    """A model of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(3, 2)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.output(frames.amax(dim=(1, 3, 4)))


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_a_plain_module_is_exported(tmp_path: Path, format: str) -> None:
    assert export_checked(untrained(Plain()), format, tmp_path / "model", {}, clips_of(3)) <= 1e-5


def test_a_compiled_network_is_exported_as_what_it_was_before(tmp_path: Path) -> None:
    model = cnn_mean(3, 8, {"channels": [4]}, dropout=0.0)
    model.compile()
    assert export_checked(untrained(model), "torch_export", tmp_path / "model.pt2", {}, clips_of(3)) <= 1e-5


def test_the_exported_network_neither_augments_nor_drops_out() -> None:
    classifier = untrained(cnn_mean(3, 8, {"channels": [4]}, dropout=0.9))
    clips = clips_of(3)
    probabilities = classifier.classify(clips)
    assert np.array_equal(probabilities, classifier.classify(clips))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)
    logits = classifier.model((torch.from_numpy(clips).movedim(-1, 2) / 255 - 0.5) / 0.2).detach().numpy()
    odds = np.exp(logits)
    np.testing.assert_allclose(probabilities, odds / odds.sum(axis=1, keepdims=True), atol=1e-6)


def test_resizing_is_what_the_network_does_to_stored_frames() -> None:
    classifier, clips = untrained(cnn_mean(3, 5, {"channels": [4]}, dropout=0.0), resolution=5), clips_of(3)
    small = resize(clips, 5)
    assert small.shape == (3, 2, 5, 5, 3) and small.dtype == np.uint8
    assert np.array_equal(classifier.classify(small), classifier.classify(clips))
    assert np.shares_memory(resize(clips, 8), clips)


def test_class_names_of_any_kind_survive() -> None:
    metadata = describe(replace(SPEC, classes=("a, b", '"q"', "жа")), "0")
    assert json.loads(metadata["classes"]) == ["a, b", '"q"', "жа"]
