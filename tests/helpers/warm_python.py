"""Python that starts at once: a server that has imported torch, Lightning and vidcls forks a child for each command.

Importing them takes 5 to 15 seconds of a CPU, and the tests start dozens of commands. `warm_python` is a program that
is called as Python is (FILE, -m MODULE or -c CODE, and arguments). What it runs has the caller's folder, environment
and open files; Ctrl-C and SIGTERM reach it, it is killed with the program, and the program ends as it does.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
VARIABLE = "VIDCLS_WARM_PYTHON"
PRELOADED = ["hydra.main", "hydra.utils", "vidcls.training.artifacts", "vidcls.evaluation.results"]
PRELOADED += ["vidcls.prediction.pipeline", "vidcls.sweeps.sweep_report", "torch.distributed.run", "torchvision"]
CLIENT = """\
import json, os, signal, socket, sys
files = [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + name)]
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
command = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), files]).encode()
socket.send_fds(server, [len(command).to_bytes(4, "big")], files)
server.sendall(command)
child = int.from_bytes(server.recv(4), "big")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(child, number))
status = int.from_bytes(server.recv(4), "big", signed=True)
if status < 0:
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


def warm_python() -> str:
    """What to call instead of ``sys.executable``."""
    return os.environ.get(VARIABLE, sys.executable)


def start_server() -> None:
    """Starts the server, unless one has been started; it ends with this process."""
    if sys.platform != "linux" or VARIABLE in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="vidcls-", dir="/tmp"))  # the path of a socket has 107 characters at most
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {folder}/client.py "$@"\n')
    program.chmod(0o700)
    (folder / "client.py").write_text(CLIENT.format(address=f"{folder}/socket"))
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{folder}/socket")
    server.listen(128)
    command = [sys.executable, "-P", __file__, str(server.fileno()), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT}/tests", VARIABLE: str(program)}
    subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, pass_fds=[server.fileno()])
    server.close()
    os.environ[VARIABLE] = str(program)


# ---- the server


def serve(server: socket.socket, folder: Path) -> NoReturn:
    """Gives each command a process of its own, until the standard input ends with the process that has started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the commands
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what `attend` returns
    preloaded = False
    while server in select.select([server, sys.stdin], [], [])[0]:
        if not preloaded:  # not before somebody needs it
            prepare_commands(folder)
            gc.freeze()
            preloaded = True
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            attend(connection)
        connection.close()
    shutil.rmtree(folder)
    os._exit(0)


def prepare_commands(folder: Path) -> None:
    """What they would begin with, each on its own."""
    from helpers.conf_files import parse_once
    from helpers.decode_workers import share_server, start_at_once

    share_server(folder)
    for name in PRELOADED:
        importlib.import_module(name)
    from vidcls.cli import compose_config

    start_at_once()
    parse_once()
    for name in ("train", "cross_validate", "evaluate", "predict"):
        compose_config(name)


def attend(connection: socket.socket) -> NoReturn:
    """Runs the command that a client sends, as a child of this process, and tells how it ended."""
    size, files, _, _ = socket.recv_fds(connection, 4, 100)
    with connection.makefile("rb") as file:
        arguments, folder, environment, numbers = json.loads(file.read(int.from_bytes(size, "big")))
    child = os.fork()
    if child == 0:
        connection.close()
        files = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 500) for file in files]  # out of the way of the others
        os.closerange(3, 500)
        for file, number in zip(files, numbers, strict=True):
            os.dup2(file, number)
        os.closerange(500, 700)
        os.chdir(folder)
        end(partial(become, arguments, environment))
    for source in files:
        os.close(source)
    try:
        connection.sendall(child.to_bytes(4, "big"))
    except BrokenPipeError:  # the client was killed at once
        os.kill(child, signal.SIGKILL)
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, connection, sys.stdin], [], [])[0]:  # the client was killed, or all is over
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        connection.sendall(status.to_bytes(4, "big", signed=True))
    finally:
        os._exit(0)


def end(main: Callable[[], None]) -> NoReturn:
    """Ends this process after ``main`` as Python ends, but without freeing what the server has imported."""
    code = 0
    try:
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        file.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def become(arguments: list[str], environment: dict[str, str]) -> None:
    """Runs the command in this process, as Python would."""
    import numpy as np
    from lightning.fabric.utilities import rank_zero
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    signal.signal(signal.SIGINT, signal.default_int_handler)
    inherited = os.environ["PYTHONPATH"].split(os.pathsep)
    os.environ.clear()
    os.environ.update(environment)
    # What they set when they were imported.
    tempfile.tempdir = None
    np.random.seed()
    rank_zero_only.rank = rank_zero._get_rank() or 0
    sys.executable = environment[VARIABLE]
    while arguments[0].startswith("-") and arguments[0] not in ("-m", "-c"):
        if arguments.pop(0) == "-u":  # others, such as -B, do not matter here
            sys.stdout.reconfigure(write_through=True)
    first = {"-m": os.getcwd(), "-c": ""}.get(arguments[0], os.path.dirname(os.path.abspath(arguments[0])))
    path = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [first, *filter(None, path), *(folder for folder in sys.path if folder not in inherited)]
    sys.modules.pop("sitecustomize", None)
    with suppress(ImportError):
        importlib.import_module("sitecustomize")
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if arguments[0] == "-c":
        sys.argv, code = ["-c", *arguments[2:]], compile(arguments[1], "<string>", "exec")
    else:
        sys.argv, code = arguments, compile(Path(arguments[0]).read_bytes(), arguments[0], "exec")
        main.__file__ = arguments[0]
    exec(code, main.__dict__)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
