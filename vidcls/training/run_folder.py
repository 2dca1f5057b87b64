"""A run folder: its paths, its configuration, and which process may write to it. Needs no torch."""

import atexit
import fcntl
import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TextIO

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from vidcls.cli import folders_of, in_sweep, print_config, run_folder, trusted_packages
from vidcls.errors import UserError, check_choice, one_line
from vidcls.files import Owner, claim_file, warn_of_missing_locks, write_json
from vidcls.training.launch import check_launch, is_rank_zero, show_life, wait_for_first
from vidcls.training.options import check_address_space, check_gpu, check_train_options
from vidcls.training.run_config import check_trusted, config_path, read_config

PREVIOUS_CHECKPOINT = "previous.ckpt"
_held: list[tuple[TextIO, Owner]] = []
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


def manifest_path(folder: Path) -> Path:
    return folder / "manifest.csv"


def best_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "best.ckpt"


def last_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"  # does not exist before the end of the first epoch


def policy_path(folder: Path) -> Path:
    return folder / "policy.json"


def check_run_options(cfg: DictConfig) -> Path:
    """Checks the options ``run`` and ``accelerator`` of a command that uses a finished run; returns its folder."""
    _check_use(cfg)
    return check_finished(Path(str(cfg.run)))


def check_runs(cfg: DictConfig) -> list[Path]:
    """`check_run_options` where ``run`` may name several runs, for an ensemble."""
    _check_use(cfg)
    return [check_finished(folder) for folder in folders_of("run", cfg.run)]


def _check_use(cfg: DictConfig) -> None:
    check_address_space()
    if cfg.accelerator is not None:
        check_choice("accelerator", cfg.accelerator, ACCELERATORS)


def check_finished(folder: Path) -> Path:
    """The absolute path of a finished run's folder; raises `UserError` for any other folder."""
    folder = folder.resolve()
    for path in (config_path(folder), manifest_path(folder), best_checkpoint(folder)):
        if not path.is_file():
            raise UserError("the folder of a finished run", f"{folder} without {path.name}", "Check run=.", "run")
    return folder


def open_run(cfg: DictConfig) -> DictConfig:
    """The checked configuration: of the run to resume, or of a new run, which claims its folder.

    Of several processes the first one does that, and the others wait for it.

    Raises:
        UserError: an option cannot be used, the folder is another run's, or it holds nothing that can be resumed.
    """
    check_address_space()
    folder = run_folder().resolve()
    if cfg.resume is not None:
        cfg = _resumed(folder, cfg)
    with open_dict(cfg):
        cfg.run_dir = str(folder)  # Hydra's counts: a process of another device composes another name
    try:
        check_train_options(cfg, reads_source=is_rank_zero())
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if cfg.resume is None:
            raise
        why = one_line(error)
        raise UserError("the config.yaml of a run", f"{folder}: {why}", "Check resume=.", "bad-run-config") from error
    check_launch(cfg.trainer)
    check_gpu(cfg)
    if not is_rank_zero():
        wait_for_first(folder)
        return cfg
    if cfg.resume is None:
        claim_folder(folder, cfg)
    hold(folder)
    if cfg.get("print_config"):
        print_config(cfg)
    show_life(cfg)
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
    if not manifest_path(folder).exists() and any(last_checkpoint(folder).parent.glob("*.ckpt")):
        remedy = "Restore it, or start a new run: the splits might be others than those it was trained on."
        raise UserError("the manifest.csv of a run that has trained", f"none in {folder}", remedy, "bad-manifest")
    cfg = read_config(folder)
    check_trusted(cfg, given, trusted_packages(given))
    with open_dict(cfg):
        cfg.resume, cfg.debug = str(folder), given.debug
    return cfg


def claim_folder(folder: Path, cfg: DictConfig) -> None:
    """Claims ``folder`` for a run by writing its config.yaml; raises `UserError` if another run has it."""
    used = manifest_path(folder).exists()  # a run would use the videos in it
    if used or not claim_file(config_path(folder), OmegaConf.to_yaml(cfg, resolve=True)):
        raise UserError(
            "a run_dir that no other run has used",
            f"{folder}, which holds a {'manifest.csv' if used else 'config.yaml'}",
            f"Choose another one, or continue that run with resume={folder}.",
            "used-run-dir",
        )


def hold(folder: Path) -> None:
    """Locks the folder until this process ends or opens another run; raises `UserError` if another process holds it."""
    _release()
    file = config_path(folder).open("r+")  # NFS and SMB lock only what is open for writing
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        remedy = "Wait for it to end. If its machine has died, NFS frees the folder after a minute or two."
        raise UserError(
            "a run that no other process works on", f"{folder}, which is in use", remedy, "run-in-use"
        ) from None
    except OSError as error:
        warn_of_missing_locks(folder, error)
    _held.append((file, Owner(folder / ".owner")))


@atexit.register
def _release() -> None:
    while _held:
        file, owner = _held.pop()
        owner.release()
        with suppress(OSError):  # of a disk that fails; nothing has been written
            file.close()


def check_held() -> None:
    """Raises `UserError` if another process has opened the run of this one, where locks could not prevent it."""
    for _, owner in _held:
        owner.check()


def write_environment(folder: Path, device: str, torch_threads: int) -> None:
    """Writes environment.json: versions, commit, and the machine."""
    packages = ("torch", "torchvision", "lightning", "hydra-core", "decord", "av", "torchmetrics", "numpy")

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    environment = {
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
        "git_commit": git("rev-parse", "HEAD") or None,
        "git_changes": bool(git("status", "--porcelain")),
        "device": device,
        "cpu_count": os.cpu_count(),
        "torch_threads": torch_threads,
    }
    write_json(folder / "environment.json", environment)
