"""The processes of one run, as a launcher starts them: which is the first, and whether it is alive. Needs no torch."""

import atexit
import os
import signal
import time
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from threading import enumerate as enumerate_threads

from omegaconf import DictConfig

from vidcls.cli import in_sweep, launched_processes, lost_process, one_of_several
from vidcls.errors import UserError

SIGN_OF_LIFE = ".first_process"  # in the run folder: the time of the last sign, and how far the first process is
SIGN_SECONDS, SILENT_SECONDS = 0.5, 120.0
STARTED, PREPARED, ENDED = "started", "prepared", "ended"


def is_rank_zero() -> bool:
    # From what launchers set, as torch is not imported yet.
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"))
    return int(next((rank for rank in ranks if rank is not None), 0)) == 0


class SignOfLife(Thread):
    """What a first process writes into the run folder as long as it lives, for `wait_for_first`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.state, self._told = folder / SIGN_OF_LIFE, STARTED, Event()
        self._file = self.path.open("wb", buffering=0)

    def run(self) -> None:
        while True:
            state = self.state
            # In place, as readers on other machines may see the replaced file for a while.
            os.pwrite(self._file.fileno(), f"{time.time_ns():020} {state:8}".encode(), 0)
            if state == ENDED:
                return
            self._told.wait(SIGN_SECONDS)
            self._told.clear()

    def tell(self, state: str) -> None:
        self.state = state
        self._told.set()


_signs: list[SignOfLife] = []
_accepted: dict[Path, str] = {}  # the last sign of life of this start of a run, by its file


def show_life(cfg: DictConfig) -> None:
    """From now on the other processes of a run can see that this one, the first, is alive: it may decode for hours."""
    alone = cfg.trainer.devices == 1 and cfg.trainer.get("strategy", "auto") == "auto"
    if not alone and not _signs:
        _signs.append(SignOfLife(Path(cfg.run_dir)))
        _signs[0].start()
        atexit.register(_end)


def tell_prepared() -> None:
    """Lets the other processes go on, for which the videos are prepared."""
    for sign in _signs:
        sign.tell(PREPARED)


def all_joined() -> None:
    """Ends the signs of life: from now on the processes notice each other's end by themselves."""
    for sign in _end():
        sign.path.unlink(missing_ok=True)


def _end() -> list[SignOfLife]:
    ended = _signs.copy()
    _signs.clear()
    for sign in ended:
        sign.tell(ENDED)
        sign.join()
    return ended


def wait_for_first(folder: Path, prepared: bool = False, silent_seconds: float = SILENT_SECONDS) -> None:
    """Waits until the first process has claimed ``folder`` for its run, or has ``prepared`` the videos.

    Raises:
        UserError: it has ended, or has shown no sign of life for ``silent_seconds``.
    """
    path, deadline = folder / SIGN_OF_LIFE, time.monotonic() + silent_seconds
    before = _accepted.get(path)  # at first None: what is there may be of an earlier start
    while time.monotonic() < deadline:
        try:
            text = path.read_text()
        except OSError:
            text = ""
        if before is not None and text not in ("", before):
            _accepted[path], state, deadline = text, text.split()[1], time.monotonic() + silent_seconds
            if state == ENDED:
                raise lost_process("the first one has ended", folder)
            if not prepared or state == PREPARED:
                return
        before = text or before or ""
        time.sleep(0.1)
    if path in _accepted:
        raise lost_process(f"no sign of life of the first one for {silent_seconds:g} s", folder)
    remedy = "See what the first process prints, or give run_dir=DIR, a new folder that all processes share."
    expected = f"the first process to start its run in {folder} within {silent_seconds:g} s"
    raise UserError(expected, "no sign of it", remedy, "no-first-process")


def end_with_others() -> None:
    """From now on, SIGTERM from a launcher, after another process has died, ends this one with one clear line.

    So does the end of torchrun itself, which would leave this process behind.
    """

    def end(*_: object) -> None:
        raise lost_process("SIGTERM: another one has ended, or the run was stopped")

    if one_of_several() and current_thread() is main_thread():
        signal.signal(signal.SIGTERM, end)
        if "TORCHELASTIC_RUN_ID" in os.environ and not any(t.name == "launcher" for t in enumerate_threads()):
            Thread(target=_end_with, args=[os.getppid()], name="launcher", daemon=True).start()


def _end_with(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)  # as long as torchrun waits: the main thread may not see a signal in a collective
    os.kill(os.getpid(), signal.SIGKILL)


def check_alone() -> None:
    """Raises `UserError` in one of several processes of torchrun or srun, each of which would run the whole sweep."""
    if (count := launched_processes()) > 1:
        remedy = "Start it without; trainer=ddp and trainer=ddp_gpu start the processes of each job themselves."
        raise UserError("one process, for a sweep or a job of it", f"{count} of torchrun or srun", remedy, "launch")


def check_launch(trainer: DictConfig) -> None:
    """Raises `UserError` unless the trainer distributes training over the processes that there are, and no others."""
    if in_sweep():
        check_alone()
    processes, strategy, nodes = launched_processes(), trainer.get("strategy", "auto"), trainer.get("num_nodes", 1)
    if processes == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        if nodes != 1:
            expected, got = f"torchrun or srun, for trainer.num_nodes={nodes}", "a process that neither has started"
            remedy = "Start it on each machine as docs/training.md says; for one machine, set trainer.num_nodes=1."
            raise UserError(expected, got, remedy, "trainer.num_nodes")
        return
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "srun"
    per_node = os.environ.get("LOCAL_WORLD_SIZE" if launcher == "torchrun" else "SLURM_NTASKS_PER_NODE")
    if per_node is None:  # Lightning needs it
        got, remedy = "none, or --ntasks alone", "Give as many tasks as there are GPUs on each machine."
        raise UserError("srun with --ntasks-per-node", got, remedy, launcher)
    devices = _count_devices(trainer)
    if (strategy == "auto" and processes > 1) or devices != int(per_node) or devices * nodes != processes:
        raise UserError(
            f"a strategy and devices for the {processes} processes of {launcher}, {per_node} on each machine",
            f"trainer.strategy={strategy}, {devices} devices and trainer.num_nodes={nodes}",
            f"Give trainer=ddp trainer.devices={per_node} trainer.num_nodes={processes // int(per_node)}.",
            launcher,
        )


def _count_devices(trainer: DictConfig) -> int:
    devices = trainer.devices
    if devices not in ("auto", -1, "-1"):
        several = [one for one in str(devices).strip("[]").split(",") if one.strip()]
        return len(several) if len(several) > 1 or not isinstance(devices, int | str) else int(devices)
    import torch  # takes seconds

    gpus = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.cuda.device_count() if gpus else 1
