"""What the jobs of a sweep share: the settings that conf/ holds, and one decode."""

import math
from contextlib import suppress
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from vidcls.training.run_config import result_settings


def shared_settings(config: DictConfig, given: dict[str, Override]) -> dict[str, Any]:
    """What may change before a sweep is continued, by keys: the current settings in conf/, and the decoders' versions.

    And the settings of each choice of a swept group, such as ``model=b: optim.lr``.
    """
    from vidcls.data.store import decoding_versions  # late: a job does not need it

    settings, loader = result_settings(config), getattr(GlobalHydra.instance().hydra, "config_loader", None)
    settings |= {f"decoding.{name}": version for name, version in decoding_versions().items()}
    shared = [str(override.input_line) for override in given.values() if not override.is_sweep_override()]
    for option, override in given.items():
        if loader and override.is_sweep_override() and loader.get_group_options(option):
            for choice in override.sweep_string_iterator():
                with suppress(HydraException):  # a choice that needs one of another swept group
                    chosen = result_settings(loader.load_sweep_config(config, [*shared, f"{option}={choice}"]))
                    settings |= {f"{option}={choice}: {key}": value for key, value in chosen.items()}
    return settings


def shared_store(config: DictConfig, given: dict[str, Override]) -> list[str]:
    """The ``data.store.*`` overrides with which all jobs read the same stored frames.

    F is the least common multiple of the swept T, as T must divide F, unless that is more than all of them together:
    then each job stores its own T frames. The resolution is the largest one.
    """
    frames, sizes = (swept_sizes(given, name) for name in ("num_frames", "resolution"))
    common = math.lcm(*frames) if math.lcm(*frames) <= sum(set(frames)) else None
    shared = {"num_frames": common, "resolution": max(sizes, default=None)}
    stored = config.data.store
    return [f"data.store.{name}={value}" for name, value in shared.items() if value and stored[name] is None]


def swept_sizes(given: dict[str, Override], name: str) -> list[int]:
    """The values of data.num_frames or data.resolution that a sweep goes through, without those that jobs refuse."""
    override = given.get(f"data.{name}")
    if override is None or not override.is_discrete_sweep():
        return []
    return [value for value in override.sweep_iterator() if isinstance(value, int) and value > 0]
