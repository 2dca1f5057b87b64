"""The options data.*: what is refused, and what follows from them."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from helpers.commands import ROOT

from vidcls.data.options import DataOptions
from vidcls.data.sampling import ClipSpec, StoreSpec
from vidcls.errors import UserError


def options(**changes: Any) -> DataOptions:
    return DataOptions("clips", "cache", **changes)


def test_the_specs_follow_from_the_options() -> None:
    found = options(num_frames=4, resolution=32, store={"num_frames": 8}, clip_seconds=2, num_clips=3)
    assert found.clip == ClipSpec(4, 32, "uniform", 2, 3)
    assert found.store == StoreSpec(8, 32, "uniform", 2, 3)
    assert found.store.frames_per_video == 24


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"seed": -1}, "seed"),
        ({"num_frames": 0}, "data.num_frames"),
        ({"resolution": -1}, "data.resolution"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"num_workers": -1}, "data.num_workers"),
        ({"sampling": "last"}, "data.sampling"),
        ({"sampler": "even"}, "data.sampler"),
        ({"leakage": "ignore"}, "data.leakage"),
        ({"on_bad": "replace"}, "data.on_bad"),
        ({"classes": ["safe"]}, "data.classes"),
        ({"classes": ["safe", "safe"]}, "data.classes"),
        ({"classes": []}, "data.classes"),
        ({"classes": "ab"}, "data.classes"),
        ({"classes": 2}, "data.classes"),
        ({"split": {"grouped": "no"}}, "data.split.grouped"),  # a text, and so true
        ({"temporal_jitter": "off", "store": {"num_frames": 40}}, "data.temporal_jitter"),
        ({"pin_memory": "no"}, "data.pin_memory"),
        ({"creator_pattern": "("}, "data.creator_pattern"),
        ({"creator_pattern": ""}, "data.creator_pattern"),
        ({"creator_pattern": None}, "data.creator_pattern"),
        ({"creator_pattern": ".*"}, "data.creator_pattern"),
        ({"split": {"val_fraction": 1.5}}, "data.split.val_fraction"),
        ({"split": {"test_fraction": -0.1}}, "data.split.test_fraction"),
        ({"split": {"val_fraction": 0.6, "test_fraction": 0.6}}, "data.split"),
        ({"decode": {"workers": 0}}, "data.decode.workers"),
        ({"decode": {"timeout_seconds": 0.0}}, "data.decode.timeout_seconds"),
        ({"decode": {"memory_gigabytes": 0.5}}, "data.decode.memory_gigabytes"),
        ({"zip": {"max_ratio": -1}}, "data.zip.max_ratio"),
        ({"store": {"num_frames": 30}, "num_frames": 20}, "data.store.num_frames"),
        ({"store": {"num_frames": 0}}, "data.store.num_frames"),
        ({"store": {"resolution": -5}}, "data.store.resolution"),
        ({"temporal_jitter": True}, "data.temporal_jitter"),
        ({"temporal_jitter": True, "sampling": "first", "store": {"num_frames": 40}}, "data.temporal_jitter"),
        ({"num_clips": 3}, "data.num_clips"),
        ({"num_clips": 0, "clip_seconds": 2.0}, "data.num_clips"),
        ({"clip_seconds": 0}, "data.clip_seconds"),
        ({"clip_seconds": -1.0}, "data.clip_seconds"),
        ({"clip_seconds": math.inf}, "data.clip_seconds"),
    ],
)
def test_options_out_of_range(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError) as error:
        options(**changes)
    assert error.value.code == code


@pytest.mark.parametrize("section", ["split", "store", "decode", "zip", "fetch", "engine"])
def test_a_section_that_is_null_leaves_its_defaults(section: str) -> None:
    assert options(**{section: None}) == options(**{section: {}})


def test_preparing_videos_imports_neither_torch_nor_decoders() -> None:
    """train.py imports torch while worker processes decode, and only they import decoders."""
    code = "import sys, vidcls.data.preparation; print([n for n in ('torch', 'av', 'decord') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
