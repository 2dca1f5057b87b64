"""RunSpec: through a checkpoint and back, and from what old runs hold."""

from __future__ import annotations

import pytest
from helpers.modules import SPEC

from vidcls.data.sampling import ClipSpec, StoreSpec
from vidcls.training.spec import RunSpec, upgrade

DATA = {"num_frames": 4, "resolution": 16, "batch_size": 8, "sampling": "first"}
DATA |= {"store_num_frames": 8, "store_resolution": 32}
FORMAT_2 = {
    "format": 2,
    "classes": ["a", "b"],
    "model": {"_target_": "vidcls.models.classifiers.cnn_mean", "dropout": 0.0},
    "normalise": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]},
    "data": DATA | {"clip_seconds": 2.5, "num_clips": 3},
}


def test_there_and_back() -> None:
    assert RunSpec.from_dict(SPEC.to_dict()) == SPEC


def test_format_2() -> None:
    spec = RunSpec.from_dict(FORMAT_2)
    assert spec.classes == ("a", "b") and spec.model == FORMAT_2["model"] and spec.batch_size == 8
    assert spec.clip == ClipSpec(4, 16, "first", 2.5, 3) and spec.store == StoreSpec(8, 32, "first", 2.5, 3)
    assert spec.normalisation.mean == (0.1, 0.2, 0.3) and spec.normalisation.std == (1.0, 1.0, 1.0)


def test_runs_from_before_there_were_clips() -> None:
    """Their checkpoints do not say it: one clip, the whole video."""
    spec = RunSpec.from_dict(FORMAT_2 | {"data": DATA})
    assert spec.clip == ClipSpec(4, 16, "first") and spec.store == StoreSpec(8, 32, "first")


@pytest.mark.parametrize("wrong", [{}, {"format": 1}, {"format": 4}, {"format": 2}, {"format": 3, "classes": ["a"]}])
def test_what_is_no_spec(wrong: dict[str, object]) -> None:
    with pytest.raises((LookupError, ValueError, TypeError)):
        RunSpec.from_dict(wrong)


def test_names_of_old_runs_at_any_depth() -> None:
    old = {"callbacks": {"ema": {"_target_": "vidcls.callbacks.EMA", "decay": 0.9}}, "few": ["vidcls.callbacks.EMA"]}
    assert upgrade(old) == {
        "callbacks": {"ema": {"_target_": "vidcls.training.callbacks.EMA", "decay": 0.9}},
        "few": ["vidcls.callbacks.EMA"],
    }
