from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers.pools import LONG_WINDOWS, ONE, processes, results, start

import vidcls
from vidcls.data.decoding.receiver import VideoFinished, VideoStarted, WindowRead
from vidcls.data.decoding.result import DecodeResult
from vidcls.data.options import DecodeLimits

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


def test_a_slow_caller_makes_the_decoder_wait(folder: Path) -> None:
    path = folder / "long.mp4"
    events = start(path, limits=ONE, ahead=2)
    begin = next(events)
    (process,) = processes()

    def position() -> int:
        return max([file.position for file in process.open_files() if file.path == str(path)], default=0)

    deadline = time.monotonic() + 20
    before, now = -1, position()
    while before != now or now == 0:  # read further within the last half second
        assert time.monotonic() < deadline
        time.sleep(0.5)
        before, now = now, position()
    assert now < 0.5 * path.stat().st_size
    assert isinstance(begin, VideoStarted)
    windows = [event for event in events if isinstance(event, WindowRead)]
    assert len(windows) == LONG_WINDOWS


def test_workers_that_are_done_before_anyone_listens_lose_nothing(folder: Path) -> None:
    """A short video fits into the socket: its worker has ended long before a slow caller asks for the next event."""
    found: dict[int, DecodeResult] = {}
    for event in start(*[folder / "a.mp4", folder / "b.mp4"] * 3, ahead=1):
        time.sleep(0.2)
        if isinstance(event, VideoFinished):
            found[event.number] = event.result
    assert {(result.status, result.decoder) for result in found.values()} == {("ok", "decord")}
    assert sorted(found) == list(range(6))


def test_a_slow_caller_is_no_hanging_decoder(folder: Path) -> None:
    limits = DecodeLimits(workers=2, timeout_seconds=1.0)
    events = start(folder / "long.mp4", folder / "six.mp4", limits=limits, ahead=1)
    found = []
    for event in events:
        found.append(event)
        if len(found) == 4:
            time.sleep(2.5)
    assert {number: result.status for number, result in results(iter(found)).items()} == {0: "ok", 1: "ok"}


@pytest.mark.parametrize("taken", [0, 3])
def test_closing_ends_everything(folder: Path, tmp_path: Path, taken: int) -> None:
    waiting = tmp_path / "waiting.mp4"
    os.mkfifo(waiting)
    open_files = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        events = start(folder / "long.mp4", waiting, ahead=2)
        for _ in range(taken):
            next(events)
        assert bool(processes()) == (taken > 0)
        started = time.monotonic()
        events.close()
        assert time.monotonic() - started < 30  # and not the 60 that a window may take
        assert processes() == []
    # Two are pipes of the fork server and of the resource tracker, once.
    assert len(os.listdir("/proc/self/fd")) <= open_files + 2


# argv: the videos
READ = """
import sys
from pathlib import Path
from vidcls.data.decoding.plan import WindowPlan
from vidcls.data.decoding.pool import read_windows
from vidcls.data.decoding.worker import Source
from vidcls.data.file_hashes import FileState
from vidcls.data.options import DecodeLimits
from vidcls.data.sampling import StoreSpec

files = [Path(name) for name in sys.argv[1:]]
plan = WindowPlan(StoreSpec(8, 64), 1.0, 0.5, 2.0)
states = [FileState.of(file) for file in files]
for event in read_windows(map(Source, files, states), len(files), plan, DecodeLimits(workers=len(files))):
    print(type(event).__name__, flush=True)
"""


def test_an_interrupted_caller_takes_its_processes_along(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(READ)
    os.mkfifo(tmp_path / "waiting.mp4")
    environment = os.environ | {"PYTHONPATH": str(Path(vidcls.__file__).parents[1])}
    command = [sys.executable, tmp_path / "script.py", folder / "a.mp4", tmp_path / "waiting.mp4"]
    programs = {
        how: subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for how in (signal.SIGINT, signal.SIGKILL)
    }
    for how, program in programs.items():
        assert program.stdout is not None
        assert [program.stdout.readline().strip() for _ in range(3)] == ["VideoStarted", "WindowRead", "VideoFinished"]
        children = processes(program.pid)
        assert len(children) >= 1  # one waits for ever
        program.send_signal(how)
        _, complaint = program.communicate(timeout=120)
        assert program.returncode == -how, complaint
        assert ("KeyboardInterrupt" in complaint) == (how == signal.SIGINT)
        _, left = psutil.wait_procs(children, timeout=120)
        for process in left:
            process.kill()
        assert left == []
