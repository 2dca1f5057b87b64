"""What the jobs of a sweep share: the settings that conf/ holds, and one decode."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from vidcls.training.run_config import result_settings


def shared_settings(config: DictConfig, given: dict[str, Override]) -> dict[str, Any]:
    """The current settings in conf/, which may change before a sweep is continued: of all jobs, by their keys.

    And of each choice of a swept group, such as ``model=b: optim.lr``.
    """
    settings, loader = result_settings(config), getattr(GlobalHydra.instance().hydra, "config_loader", None)
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

    F is the least common multiple of the swept T, as T must divide F; the resolution is the largest one.
    """
    choices: dict[str, Callable[..., int]] = {"num_frames": math.lcm, "resolution": max}
    shared = []
    for name, choose in choices.items():
        override, values = given.get(f"data.{name}"), []
        if override is not None and override.is_discrete_sweep():
            values = [value for value in override.sweep_iterator() if isinstance(value, int) and value > 0]
        if values and config.data.store[name] is None:
            shared.append(f"data.store.{name}={choose(*values, 1)}")
    return shared
