"""Damaged files of every format, through both ways of decoding: each gets a status with a reason, none an exception."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.frames import SIDE, moving
from helpers.videos import ffmpeg, write_video

from vidcls.data.decoding.plan import WindowPlan
from vidcls.data.decoding.pool import decode_into_store, read_windows
from vidcls.data.decoding.receiver import VideoFinished
from vidcls.data.decoding.result import DecodeResult
from vidcls.data.hashing import hash_files
from vidcls.data.options import DecodeLimits
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FrameStore

FORMATS = {  # of the copies, with the codec
    "mp4": ("libx264", "-bf", "2"),
    "fragmented.mp4": ("libx264", "-movflags", "frag_keyframe+empty_moov"),
    "mov": ("mjpeg",),
    "hevc.mp4": ("libx265", "-x265-params", "log-level=none"),
    "mkv": ("libx264",),
    "webm": ("libvpx-vp9", "-cpu-used", "8"),
    "vp8.webm": ("libvpx",),
    "avi": ("mpeg4",),
    "ts": ("libx264",),
    "mpg": ("mpeg2video", "-r", "25"),
    "flv": ("flv",),
    "wmv": ("wmv2",),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("originals")
    video = write_video(folder / "source.mp4", moving(24, 48, 64), fps=12)
    for suffix, (codec, *options) in FORMATS.items():
        ffmpeg("-i", video, "-c:v", codec, "-g", "8", *options, folder / f"a.{suffix}")
    return [folder / f"a.{suffix}" for suffix in FORMATS]


def mutate(content: bytes, generator: np.random.Generator) -> bytes:
    """Overwrites, flips, removes, repeats or cuts bytes, mostly in the headers at either end."""
    data = np.frombuffer(content, np.uint8).copy()
    for _ in range(generator.integers(1, 4)):
        length = int(generator.integers(1, 64))
        limit = max(len(data) - length, 1)
        start = int(generator.integers(limit))
        if generator.random() < 0.6:
            start = start % 1500 if generator.random() < 0.5 else max(limit - 1 - start % 900, 0)
        how = generator.integers(5)
        if how == 0:
            data[start : start + length] = generator.integers(0, 256, len(data[start : start + length]))
        elif how == 1:
            data[start] ^= 1 << generator.integers(8)
        elif how == 2:
            data = np.delete(data, slice(start, start + length))
        elif how == 3:
            data = np.insert(data, start, data[start : start + length])
        else:
            data[start : start + 4] = generator.choice([0, 255])
    return data[: generator.integers(len(data))].tobytes() if generator.random() < 0.1 else data.tobytes()


def damaged(originals: list[Path], folder: Path, count: int, seed: int) -> list[Path]:
    generator, files = np.random.default_rng(seed), []
    for number in range(count):
        original = originals[number % len(originals)]
        files.append(folder / f"{number:05}{original.suffix}")
        files[-1].write_bytes(mutate(original.read_bytes(), generator))
    return files


def test_300_damaged_files_have_a_status_and_a_reason(originals: list[Path], tmp_path: Path) -> None:
    files = damaged(originals, tmp_path, 300, seed=0)
    hashes = hash_files(files, None)
    spec, limits = StoreSpec(4, SIDE), DecodeLimits(workers=2, timeout_seconds=20)
    store = FrameStore(tmp_path / "store", spec)
    whole = [result for _, result in decode_into_store(zip(files, hashes, strict=True), len(files), store, limits)]
    plan = WindowPlan(spec, 0.5, 0.25, 0.0, max_windows=50)
    events = list(read_windows(files, [hashed.state for hashed in hashes], plan, limits))
    windows = [event.result for event in events if isinstance(event, VideoFinished)]
    assert len(whole) == len(windows) == 300
    for results in (whole, windows):
        found: dict[str, list[DecodeResult]] = {}
        for result in results:
            found.setdefault(result.status, []).append(result)
        assert set(found) == {"ok", "partial", "undecodable"} and min(map(len, found.values())) > 20
        assert all(bool(result.reason) == (result.status != "ok") for result in results)
        reasons = " ".join(result.reason for result in results)
        assert not [word for word in ("NoneType", "attribute", "operand", "Traceback") if word in reasons]
