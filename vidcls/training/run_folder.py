"""A run folder: where its files are, who may write to it, and its configuration. Needs no torch."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vidcls.cli import in_sweep, print_config, run_folder, trusted_packages
from vidcls.errors import UserError, check_choice
from vidcls.files import write_atomically
from vidcls.training.options import check_gpu, check_train_options
from vidcls.training.spec import upgrade

TRUSTED_TARGETS = re.compile(
    r"vidcls\.data\.options\.DataOptions"
    r"|vidcls\.models\.classifiers\.\w+"
    r"|vidcls\.training\.transforms\.Augment"
    r"|vidcls\.training\.callbacks\.(EMA|History|StayStopped|Timing)"
    r"|vidcls\.training\.feature_cache\.CacheFeatures"
    r"|vidcls\.sweeps\.pruning\.Pruning"
    r"|lightning\.Trainer"
    r"|lightning\.pytorch\.(callbacks|loggers)\.[A-Z]\w*"
    r"|torch\.optim\.([A-Z]\w*|lr_scheduler\.[A-Z]\w*)"
    r"|optuna\.pruners\.[A-Z]\w*"
)
"""What the config.yaml of a run folder may name; each pattern is a whole name, with no way into a submodule."""

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


def config_path(folder: Path) -> Path:
    """The resolved configuration."""
    return folder / "config.yaml"


def manifest_path(folder: Path) -> Path:
    """The videos, see `vidcls.data.ingest`."""
    return folder / "manifest.csv"


def best_checkpoint(folder: Path) -> Path:
    """The weights of the epoch with the lowest validation loss."""
    return folder / "checkpoints" / "best.ckpt"


def last_checkpoint(folder: Path) -> Path:
    """Where a resumed run continues; it does not exist before the end of the first epoch."""
    return folder / "checkpoints" / "last.ckpt"


def policy_path(folder: Path) -> Path:
    """What to do about a video, see `vidcls.moderation.policy`; evaluate.py writes it."""
    return folder / "policy.json"


def check_run_options(cfg: DictConfig) -> Path:
    """Checks the options ``run`` and ``accelerator`` of the commands that use a finished run; gives its folder.

    Raises:
        UserError: it is not the folder of a finished run, or there is no such accelerator.
    """
    if cfg.accelerator is not None:
        check_choice("accelerator", cfg.accelerator, ACCELERATORS)
    return check_finished(Path(str(cfg.run)))


def check_finished(folder: Path) -> Path:
    """The folder of a finished run as an absolute path.

    Raises:
        UserError: it is none.
    """
    folder = folder.resolve()
    for path in (config_path(folder), manifest_path(folder), best_checkpoint(folder)):
        if not path.is_file():
            raise UserError("the folder of a finished run", f"{folder} without {path.name}", "Check run=.", "run")
    return folder


def is_rank_zero() -> bool:
    """Whether this process is the first of its run's devices; before torch is imported, launchers' variables say so."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"))
    return int(next((rank for rank in ranks if rank is not None), 0)) == 0


def open_run(cfg: DictConfig) -> DictConfig:
    """Reads the configuration of the run to resume, or makes the run folder a new run's own.

    Returns:
        The configuration that holds, with ``run_dir`` as an absolute path.

    Raises:
        UserError: the folder is another run's, or holds nothing that can be resumed.
    """
    folder = run_folder().resolve()
    if cfg.resume is not None:
        cfg = _resumed(folder, cfg)
    with open_dict(cfg):
        cfg.run_dir = str(folder)  # Hydra's counts: a process of another device composes another name
    check_train_options(cfg)
    check_gpu(cfg)
    if cfg.resume is None and is_rank_zero():
        claim_folder(folder, cfg)
    if cfg.get("print_config") and is_rank_zero():
        print_config(cfg)
    return cfg


def _resumed(folder: Path, given: DictConfig) -> DictConfig:
    overrides = [
        text for text in HydraConfig.get().overrides.task if text.split("=")[0] not in ("resume", "debug", "trust")
    ]
    if overrides and not in_sweep():  # a sweep gives its jobs the overrides of their first start again
        raise UserError(
            "resume=DIR alone, as all options come from the run's config.yaml",
            f"also {' '.join(overrides)}",
            "Leave those out, or start a new run.",
            "resume-overrides",
        )
    if not config_path(folder).is_file():
        raise UserError(
            "a run folder to resume", f"{folder}, which holds no config.yaml", "Check resume=.", "nothing-to-resume"
        )
    cfg = read_config(folder)
    # What the command line itself names is trusted: that is how the job of a sweep came to its model.
    check_targets(cfg, [*trusted_packages(given), *named_targets(given)])
    with open_dict(cfg):
        cfg.resume, cfg.debug = str(folder), given.debug
    return cfg


def claim_folder(folder: Path, cfg: DictConfig) -> None:
    """Makes ``folder`` the run's own, by writing its config.yaml.

    Raises:
        UserError: another run has it.
    """
    text = OmegaConf.to_yaml(cfg, resolve=True)
    try:
        with config_path(folder).open("x") as file:  # fails where the file exists, whoever came first
            file.write(text)
    except FileExistsError:
        raise UserError(
            "a run_dir that no other run has used",
            f"{folder}, which holds a config.yaml",
            f"Choose another one, or continue that run with resume={folder}.",
            "used-run-dir",
        ) from None


def read_config(folder: Path) -> DictConfig:
    """The config.yaml of a run folder, with the names of today, and paths into the folder also where it has moved.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = config_path(folder)
    try:
        values: Any = OmegaConf.to_container(OmegaConf.create(path.read_text()))
        moved = _rebase(upgrade(values), PurePath(values["run_dir"]), folder)
    except (OSError, YAMLError, OmegaConfBaseException, LookupError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        raise UserError("the config.yaml of a run", f"{path}: {why}", "Check the path.", "bad-run-config") from error
    cfg = OmegaConf.create(moved)
    assert isinstance(cfg, DictConfig)
    return cfg


def _rebase(value: Any, old: PurePath, new: PurePath) -> Any:
    """Values in which each path at or below the folder ``old`` is at or below ``new``.

    Example:
        >>> _rebase(["/x/run/a.csv", "/x/run_videos", 3], PurePath("/x/run"), PurePath("/y"))
        ['/y/a.csv', '/x/run_videos', 3]
    """
    if isinstance(value, dict):
        return {key: _rebase(child, old, new) for key, child in value.items()}
    if isinstance(value, list):
        return [_rebase(child, old, new) for child in value]
    if isinstance(value, str) and PurePath(value).is_relative_to(old):
        return str(new / PurePath(value).relative_to(old))
    return value


def named_targets(cfg: DictConfig) -> list[str]:
    """Every ``_target_`` of a configuration."""
    leaves = _leaves(OmegaConf.to_container(cfg), "")
    return [str(value) for key, value in leaves if key.rpartition(".")[2] == "_target_"]


def check_targets(cfg: DictConfig, trust: Sequence[str] = ()) -> None:
    """Refuses a run folder's configuration that names anything to import that its user has not asked for.

    Allowed are classes of this package, Lightning's trainer, callbacks and loggers, torch's optimisers and schedulers,
    Optuna's pruners, and what ``trust`` names: packages or single targets.

    Raises:
        UserError: it names something else, or holds interpolations, which the config.yaml of a run never does.
    """
    for key, value in _leaves(OmegaConf.to_container(cfg), ""):
        if isinstance(value, str) and "${" in value:
            raise UserError(
                "a run's config.yaml without interpolations",
                f"{key}: {value}",
                "Only resume run folders that you trust.",
                "untrusted-config",
            )
        if key.rpartition(".")[2] == "_target_" and not _is_trusted(value, trust):
            package = str(value).partition(".")[0]
            raise UserError(
                "a config.yaml that names classes of vidcls, Lightning, torch.optim and optuna.pruners alone",
                f"{key.removesuffix('._target_')}: {value}",
                f"Give trust={package} if you trust that package.",
                "untrusted-target",
            )


def _is_trusted(target: Any, trust: Sequence[str]) -> bool:
    if not isinstance(target, str):
        return False
    return bool(TRUSTED_TARGETS.fullmatch(target)) or target in trust or target.partition(".")[0] in trust


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value that is no dict or list, with its dotted key; of a target every value."""
    if isinstance(value, dict | list) and not key.endswith("_target_"):
        for name, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def write_environment(folder: Path, device: str, torch_threads: int) -> None:
    """Writes environment.json: versions, commit, and the machine."""
    packages = ("torch", "torchvision", "lightning", "hydra-core", "decord", "av", "torchmetrics", "numpy")
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=False)
    environment = {
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
        "git_commit": git.stdout.strip() if git.returncode == 0 else None,
        "git_changes": bool(dirty.stdout.strip()),
        "device": device,
        "cpu_count": os.cpu_count(),
        "torch_threads": torch_threads,
    }
    write_atomically(folder / "environment.json", json.dumps(environment, indent=2).encode())
