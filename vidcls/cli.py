"""What the entry points need before anything heavy is imported: run folders' names, clear errors, exit codes.

Decoding processes import the entry point again, and so does `python train.py --help`: torch stays out of here.
"""

from __future__ import annotations

import functools
import os
import secrets
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vidcls.errors import UserError, find_user_error

Result = TypeVar("Result")

# Torch reads this at its first tensor: large ones in pages of 2 MB where Linux allows it. On a CPU clearing pages of
# 4 KB otherwise takes up to half of the time of a network on large frames.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _new_run_dir(kind: str, resume: str | None) -> str:
    """runs/<kind>/<date>_<time>_<short id>, or the folder to resume."""
    return resume or f"runs/{kind}/{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(2)}"


# Cached: one process asks several times and must get one answer.
OmegaConf.register_new_resolver("new_run_dir", _new_run_dir, use_cache=True, replace=True)


def run_folder() -> Path:
    """The folder of the run that this process works for."""
    return Path(HydraConfig.get().runtime.output_dir)


def in_sweep() -> bool:
    """Whether this process works for a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def allow_new_keys(group: str) -> None:
    """Lets the command line say ``group.name=value`` for names that the configuration cannot know, such as classes.

    Hydra would ask for ``++group.name=value``.
    """
    sys.argv[1:] = [f"++{text}" if text.startswith((f"{group}.", f"{group}=")) else text for text in sys.argv[1:]]


def take_literally(*knobs: str) -> None:
    """Lets the command line give paths as they are: Hydra would ask for quotes around commas, brackets and the like."""
    for place, text in enumerate(sys.argv):
        knob, _, value = text.partition("=")
        if place and knob in knobs and value not in ("", "null") and value[0] not in "'\"":
            escaped = value.replace("'", "\\'")
            sys.argv[place] = f"{knob}='{escaped}'"


def overridden(group: str) -> bool:
    """Whether the command line names any knob of a group."""
    return any(text.lstrip("+~").startswith(f"{group}.") for text in HydraConfig.get().overrides.task)


def clear_errors(main: Callable[[DictConfig], Result]) -> Callable[[DictConfig], Result]:
    """Ends a process in one clear line instead of a traceback: exit code 2 for what the user can mend, 130 for Ctrl-C.

    With ``debug=true`` the traceback is shown.
    """

    @functools.wraps(main)
    def guarded(cfg: DictConfig) -> Result:
        try:
            for knob in sorted(OmegaConf.missing_keys(cfg)):
                raise UserError(f"a value for {knob}", "none", f"Give {knob}=... on the command line.")
            return main(cfg)
        except Exception as error:
            message = find_user_error(error)
            if message is None or cfg.debug:
                raise
            _remove_if_empty(run_folder())
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            if cfg.debug:
                raise
            hint = f"; go on with: {_continuation()}" if "resume" in cfg else ""
            print(f"interrupted{hint}", file=sys.stderr)
            sys.exit(130)

    return guarded


def _continuation() -> str:
    if in_sweep():
        return f"the same command and sweep.resume={shlex.quote(str(HydraConfig.get().sweep.dir))}"
    return f"python {sys.argv[0]} resume={shlex.quote(str(run_folder()))}"


def _remove_if_empty(folder: Path) -> None:
    """Hydra makes a folder for whatever ``resume`` names."""
    if folder.is_dir() and folder != Path.cwd() and not any(folder.iterdir()):
        folder.rmdir()
