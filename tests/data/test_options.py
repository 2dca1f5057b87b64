"""The options data.*: their defaults are those of conf/, and what is out of range is refused by its name."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from vidcls.data.options import DataOptions, DecodeLimits, SplitOptions, ZipOptions
from vidcls.data.sampling import ClipSpec, StoreSpec
from vidcls.errors import UserError

CONF = Path(__file__).parents[2] / "conf"


def options(**changes: Any) -> DataOptions:
    return DataOptions("clips", "cache", **changes)


def test_fields_and_defaults_are_those_of_the_yaml() -> None:
    yaml: Any = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "base.yaml"))
    default = options()
    assert set(yaml) - {"_target_", "_convert_"} == {field.name for field in fields(DataOptions) if field.init}
    for name in set(yaml) - {"_target_", "_convert_", "source", "cache_dir", "seed", "store"}:
        group = {"split": SplitOptions, "decode": DecodeLimits, "zip": ZipOptions}.get(name)
        assert getattr(default, name) == (group(**yaml[name]) if group else yaml[name]), name


def test_a_run_stores_what_it_uses_or_more() -> None:
    assert options(num_frames=8).store == StoreSpec(8, 64, "uniform")
    shared = options(
        num_frames=8, resolution=32, store={"num_frames": 24, "resolution": 96}, clip_seconds=2, num_clips=3
    )
    assert shared.store == StoreSpec(24, 96, "uniform", 2, 3)
    assert shared.clip == ClipSpec(8, 32, "uniform", 2, 3)
    raised = options(store={"num_frames": 8, "resolution": 32})
    assert raised.store == StoreSpec(20, 64, "uniform") and len(raised.notes) == 2 and not shared.notes


def test_class_names_are_text() -> None:
    assert options(classes=[1, 2]).classes == ["1", "2"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"num_frames": 0}, "data.num_frames"),
        ({"resolution": -64}, "data.resolution"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"num_workers": -1}, "data.num_workers"),
        ({"sampling": "random"}, "data.sampling"),
        ({"sampler": "none"}, "data.sampler"),
        ({"leakage": "ignore"}, "data.leakage"),
        ({"on_bad": "hide"}, "data.on_bad"),
        ({"clip_seconds": 0}, "data.clip_seconds"),
        ({"num_clips": 2}, "data.num_clips"),
        ({"classes": ["safe"]}, "data.classes"),
        ({"classes": "safe"}, "data.classes"),
        ({"classes": ["safe", "safe"]}, "data.classes"),
        ({"creator_pattern": ".*"}, "data.creator_pattern"),
        ({"creator_pattern": "("}, "data.creator_pattern"),
        ({"temporal_jitter": True}, "data.temporal_jitter"),
        ({"store": {"num_frames": 30}}, "data.store.num_frames"),
        ({"store": {"resolution": 0}}, "data.store.resolution"),
        ({"split": {"val_fraction": 0.95}}, "data.split.val_fraction"),
        ({"split": {"val_fraction": 0.5, "test_fraction": 0.5}}, "data.split"),
        ({"decode": {"workers": 0}}, "data.decode.workers"),
        ({"decode": {"timeout_seconds": 0}}, "data.decode.timeout_seconds"),
        ({"zip": {"max_ratio": -1.0}}, "data.zip.max_ratio"),
        ({"seed": -1}, "seed"),
    ],
    ids=str,
)
def test_out_of_range(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError) as error:
        options(**changes)
    assert error.value.code == code
