"""The config.yaml of a run folder, which may be untrusted: it is read as data, and the code it names is checked."""

import os
import re
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from vidcls.errors import UserError, one_line
from vidcls.training.options import check_run_values
from vidcls.training.spec import upgrade
from vidcls.training.target_check import leaves

MAX_BYTES, MAX_DEPTH = 200_000, 30
TRUSTED_TARGETS = re.compile(
    r"vidcls\.data\.options\.DataOptions"
    r"|vidcls\.models\.classifiers\.\w+"
    r"|vidcls\.training\.transforms\.Augment"
    r"|vidcls\.training\.callbacks\.(EMA|History|ProgressBar|StayStopped|Timing)"
    r"|vidcls\.training\.feature_cache\.CacheFeatures"
    r"|vidcls\.training\.logistic\.LogisticRegression"
    r"|vidcls\.sweeps\.pruning\.Pruning"
    r"|lightning\.Trainer"
    r"|lightning\.pytorch\.(callbacks|loggers|strategies)\.[A-Z]\w*"
    r"|datetime\.timedelta"
    r"|torch\.optim\.([A-Z]\w*|lr_scheduler\.[A-Z]\w*)"
    r"|optuna\.pruners\.[A-Z]\w*"
)
"""The targets that the config.yaml of a run folder may name."""
LASTING = ("seed", "data", "model", "augment", "optim", "loss", "normalise", "refit")
MOVABLE = {"source", "cache_dir", "decisions", "weights"}  # paths, and options that change no result
MOVABLE |= {"decode", "fetch", "zip", "engine", "num_workers", "pin_memory", "device_cache"}
PATH_KEYS = re.compile(r".*(path|dir|folder|file|filename|uri|location)")


def config_path(folder: Path) -> Path:
    return folder / "config.yaml"


def read_config(folder: Path) -> DictConfig:
    """The config.yaml of a run folder, with current names, and with updated paths if the folder has moved.

    Raises:
        UserError: it is missing or damaged, or holds aliases or interpolations, which no run writes.
    """
    path = config_path(folder)
    try:
        text = path.read_text(encoding="utf-8")
        values = deepcopy(_parse(text))
        moved = _rebase(upgrade(values), PurePath(values["run_dir"]), folder)
        if missing := {"trainer", *LASTING} - {"refit", *moved}:  # earlier versions had no refit
            raise LookupError(f"{', '.join(sorted(missing))} is missing")
        check_run_values(moved)
    except Exception as error:  # a damaged file may raise anything
        got = f"{path}: {one_line(error)}"
        raise UserError("the config.yaml of a run", got, "Check the path.", "bad-run-config") from error
    cfg = OmegaConf.create(moved)
    assert isinstance(cfg, DictConfig)
    return cfg


@lru_cache(maxsize=16)  # a command reads it several times, at a fifth of a second each
def _parse(text: str) -> Any:
    """The values of a config.yaml, which callers must not change."""
    _check_size(text)
    values: Any = OmegaConf.to_container(OmegaConf.create(text))
    for key, value in leaves(values):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"{key} is an interpolation: {value}")
    return values


def _check_size(text: str) -> None:
    """Refuses YAML that takes too long to read, such as nested aliases, which may expand to billions of values."""
    depth = 0
    for event in yaml.parse(text[: MAX_BYTES + 1]):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if len(text) > MAX_BYTES or depth > MAX_DEPTH or isinstance(event, yaml.AliasEvent):
            raise ValueError("it is too long, too deep, or holds aliases")


def _rebase(value: Any, old: PurePath, new: PurePath) -> Any:
    """The values, with the folder ``new`` in place of ``old`` at the start of each path.

    Example:
        >>> _rebase(["/x/run/a.csv", "/x/run_videos", 3], PurePath("/x/run"), PurePath("/y"))
        ['/y/a.csv', '/x/run_videos', 3]
    """
    if isinstance(value, dict):
        return {key: _rebase(child, old, new) for key, child in value.items()}
    if isinstance(value, list):
        return [_rebase(child, old, new) for child in value]
    if isinstance(value, str):
        scheme = "file:" if value.startswith("file:") else ""
        path = PurePath(value.removeprefix(scheme))
        return f"{scheme}{new / path.relative_to(old)}" if path.is_relative_to(old) else value
    return value


def check_trusted(cfg: DictConfig, given: DictConfig | None = None, trust: Sequence[str] = ()) -> None:
    """Raises `UserError` if a configuration names code or paths that are not trusted.

    Trusted are `TRUSTED_TARGETS`; the run folder and the cache of features as paths of callbacks, loggers and the
    trainer; what ``trust`` names (packages, single targets, folders); and what ``given``, the configuration of the
    command line, has under the same key, as for the model of a sweep's job.
    """
    plain: Any = OmegaConf.to_container(cfg)
    known = dict(leaves(OmegaConf.to_container(given))) if given is not None else {}
    features = os.path.join(str(cfg.get("cache_dir", "")), "features")
    folders = [str(cfg.get("run_dir", "")), *trust]
    for key, value in leaves(plain):
        name, group = key.rpartition(".")[2], key.partition(".")[0]
        if key in known and known[key] == value:
            continue
        package = str(value).partition(".")[0]
        trusted = isinstance(value, str) and (TRUSTED_TARGETS.fullmatch(value) or {value, package} & {*trust})
        if name == "_target_" and not trusted:
            raise UserError(
                "a config.yaml that names classes of vidcls, Lightning, torch.optim and optuna.pruners alone",
                f"{key.removesuffix('._target_')}: {value}",
                f"Give trust={package} if you trust that package.",
                "untrusted-target",
            )
        if group not in ("callbacks", "logger", "trainer") or not isinstance(value, str) or value == features:
            continue
        if _is_path(name, value) and not any(_is_inside(value, folder) for folder in folders):
            raise UserError(
                "a config.yaml by which a run writes into its own folder alone",
                f"{key}: {value}",
                f"Give trust={value} if that is where it should write.",
                "untrusted-path",
            )


def lasting_settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings that must not change when a run is resumed, as plain values; checkpoints hold them."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return {name: plain[name] for name in LASTING if name in plain}


def result_settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings that results may depend on, by their keys and not yet resolved."""
    groups = [name for name in (*LASTING, "trainer", "callbacks") if name in cfg]
    pairs = leaves(OmegaConf.to_container(OmegaConf.masked_copy(cfg, groups)))
    return {key: value for key, value in pairs if not MOVABLE & set(key.split("."))}


def check_unchanged(cfg: DictConfig, before: dict[str, Any]) -> None:
    """Raises `UserError` if a config.yaml has other lasting settings than those ``before``, of the run's checkpoint.

    Checkpoints of earlier versions have none: {}.
    """
    then, now = (
        {key: value for key, value in leaves(settings) if not MOVABLE & set(key.split("."))}
        for settings in (upgrade(before), lasting_settings(cfg))
    )
    absent = "nothing"  # as of a list that is longer or shorter, or was null
    changed = [key for key in then | now if then.get(key, absent) != now.get(key, absent)]
    if before and changed:
        key = changed[0]
        raise UserError(
            f"the settings that the run was started with: {key}={then.get(key, absent)}",
            f"{key}={now.get(key, absent)} in its config.yaml",
            "Restore it, or start a new run with the other settings.",
            "changed-config",
        )


def named_packages(cfg: DictConfig) -> set[str]:
    """The top-level packages of all ``_target_`` in a configuration."""
    pairs = leaves(OmegaConf.to_container(cfg))
    return {str(value).partition(".")[0] for key, value in pairs if key.rpartition(".")[2] == "_target_"}


def _is_path(key: str, value: str) -> bool:
    parts = PurePath(value.removeprefix("file:")).parts
    if key == "filename":  # of a checkpoint, below its dirpath
        return os.path.isabs(value) or ".." in parts
    return bool(PATH_KEYS.fullmatch(key)) or os.path.isabs(value.removeprefix("file:")) or ".." in parts


def _is_inside(path: str, folder: str) -> bool:
    resolved = Path(path.removeprefix("file:")).resolve()
    return bool(folder) and resolved.is_relative_to(Path(folder).resolve())
