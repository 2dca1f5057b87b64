"""Helpers of the tests of sweeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from helpers.conf_files import CONF
from vidcls.sweeps.jobs import prepare_sweep

DONE = ["num_frames=2,hidden_size=4", "num_frames=4,hidden_size=4"]
FAILED = ["num_frames=2,hidden_size=-1", "num_frames=4,hidden_size=-1"]
"""The jobs of the sweep that the tests share."""


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with when it was written and what is in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def planned(folder: Path, *overrides: str, swept: tuple[str, ...] = ()) -> tuple[dict[str, Any], DictConfig]:
    """What a sweep would write down, and the configuration that its jobs would be made of."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides, f"hydra.sweep.dir={folder}"], return_hydra_config=True)
        cfg.hydra.overrides.task += list(swept)
        prepare_sweep(cfg)
    return read_json(folder / "sweep.json"), cfg
