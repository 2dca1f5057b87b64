"""Decode workers that start at once: forked from a process that has imported the decoders."""

from __future__ import annotations

import fcntl
import multiprocessing
from multiprocessing import forkserver, process, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from unittest.mock import patch

from pebble import CONSTS

MODULES = ["hydra.main", "vidcls.cli", "vidcls.sweeps.jobs", "vidcls.data.decoding.windows"]  # those of commands too


def forking() -> BaseContext:
    """In the place of `WorkerContext`, which starts a Python for each worker."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    return context


def start_at_once() -> None:
    """From now on, in this process and in those that it forks; and pools look more often whether one has ended."""
    from vidcls.data.decoding import pool  # not before the jaxtyping hook is in place

    patch.object(pool, "WorkerContext", forking).start()
    patch.object(CONSTS, "sleep_unit", 0.01).start()


def share_server(folder: Path) -> None:
    """Starts the process that workers are forked from, also for all processes that this one will fork."""
    process.current_process()._config["tempdir"] = str(folder)  # type: ignore[attr-defined]
    forkserver.set_forkserver_preload(MODULES)
    forkserver.ensure_running()
    server, tracker = forkserver._forkserver, resource_tracker._resource_tracker  # type: ignore[attr-defined]
    # Above the files that a command is given by its caller.
    server._forkserver_alive_fd = fcntl.fcntl(server._forkserver_alive_fd, fcntl.F_DUPFD_CLOEXEC, 800)
    tracker._fd = fcntl.fcntl(tracker._fd, fcntl.F_DUPFD_CLOEXEC, 800)
    server.ensure_running = lambda: None  # which would look for it among the children of a process
