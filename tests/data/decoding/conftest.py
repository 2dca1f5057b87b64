from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import pools
from helpers.commands import once
from helpers.frames import moving
from helpers.videos import ffmpeg, write_video

from experiments.torture import media
from vidcls.data.decoding.sandbox import WorkerContext


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode workers start as they do for users: each is a new Python, which takes seconds."""
    monkeypatch.setattr("vidcls.data.decoding.pool.WorkerContext", WorkerContext)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames in 6 s, a key frame each 15, its index before its data: cut short it can still be opened."""
    folder = tmp_path_factory.mktemp("clip")
    write_video(folder / "written.mp4", moving(60), fps=10, options={"crf": "20", "preset": "veryfast", "g": "15"})
    ffmpeg("-i", folder / "written.mp4", "-c", "copy", "-movflags", "+faststart", folder / "clip.mp4")
    return folder / "clip.mp4"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short videos, one of 6 s and one of 40 s, their index before their data: cut short they can be opened."""
    folder = tmp_path_factory.mktemp("videos")
    options = {"crf": "20", "preset": "ultrafast", "g": "10"}
    for name, count, shade in (("a", 10, 0), ("b", 20, 9), ("six", 60, 0)):
        written = write_video(folder / "written.mp4", moving(count, shade=shade), fps=10, options=options)
        ffmpeg("-i", written, "-c", "copy", "-movflags", "+faststart", folder / f"{name}.mp4")
    (folder / "written.mp4").unlink()
    noise = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 1), np.uint8).repeat(3, axis=-1)
    written = write_video(folder / "noise.mkv", noise, fps=10, options=options)  # 1 MB, so that reading takes a while
    ffmpeg("-i", written, "-c", "copy", "-movflags", "+faststart", folder / "long.mp4")
    written.unlink()
    return folder


@pytest.fixture
def nothing_is_left_behind() -> Iterator[None]:
    threads = threading.active_count()
    yield
    assert pools.processes() == []
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:  # timers that were just cancelled
        time.sleep(0.01)
    assert threading.active_count() == threads


@pytest.fixture(scope="session")
def originals(shared: Path) -> list[Path]:
    """A video of each format that `experiments.torture.media` knows. Read only."""

    def make(folder: Path) -> None:
        folder.mkdir()
        media.write_originals(folder)

    folder = once(shared, "originals", make)
    return [folder / f"0.{suffix}" for suffix in media.FORMATS]
