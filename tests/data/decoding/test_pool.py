from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers.pools import (
    FRAMES,
    LONG_WINDOWS,
    ONE,
    PLAN,
    SPEC,
    TWO,
    processes,
    results,
    same,
    sort,
    start,
    store_all,
)
from helpers.videos import ffmpeg

from vidcls.data.decoding.frames import decode
from vidcls.data.decoding.plan import WindowPlan
from vidcls.data.decoding.pool import read_windows
from vidcls.data.decoding.receiver import Event, VideoFinished, VideoStarted, WindowRead
from vidcls.data.decoding.result import DECODERS, undecodable
from vidcls.data.decoding.windows import stream_windows
from vidcls.data.decoding.worker import CHANGED, Source
from vidcls.data.file_hashes import FileState, HashResult, hash_files
from vidcls.data.options import DecodeLimits
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FrameStore
from vidcls.errors import UserError

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


# ---- videos that are well


@pytest.mark.usefixtures("spawned")
def test_short_and_long_videos_come_as_they_are_read_alone(folder: Path) -> None:
    files = [folder / name for name in ("a.mp4", "six.mp4", "b.mp4", "long.mp4")]
    found = sort(start(*files))
    assert sorted(found) == [0, 1, 2, 3]
    for number, (begin, windows, end) in found.items():
        video = stream_windows(files[number], PLAN, DECODERS)
        assert same(windows, list(video))
        assert begin == VideoStarted(number, video.seconds, len(windows))
        assert end == VideoFinished(number, video.result)
        assert end.result.status == "ok"
    assert [len(found[number][1]) for number in range(4)] == [1, 11, 1, LONG_WINDOWS]
    for number in (0, 2):
        frames, result = decode(files[number], SPEC, DECODERS)
        assert found[number][1][0].frames.tobytes() == frames.tobytes()
        assert found[number][2].result == result
        assert result.decoder == "decord"


def test_files_are_read_in_their_order(folder: Path) -> None:
    files = [folder / name for name in ("a.mp4", "long.mp4", "six.mp4")]
    ends = [event.number for event in start(*files, limits=ONE) if isinstance(event, VideoFinished)]
    assert ends == [0, 1, 2]


def test_no_files_no_events() -> None:
    assert list(start()) == []


# ---- videos that are not


def test_no_bad_file_stops_the_others(folder: Path, tmp_path: Path) -> None:
    """One of each kind, among them one that never comes."""
    bad = {name: tmp_path / f"{name}.mp4" for name in ("text", "empty", "sound", "folder", "missing", "waiting")}
    bad["text"].write_text("no video\n" * 200)
    bad["empty"].write_bytes(b"")
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", "-c:a", "aac", bad["sound"])
    bad["folder"].mkdir()
    os.mkfifo(bad["waiting"])
    content = (folder / "six.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 3 // 4])
    files = [folder / "a.mp4", *bad.values(), tmp_path / "cut.mp4", folder / "six.mp4"]
    found = sort(start(*files, limits=DecodeLimits(workers=2, timeout_seconds=2.0)))
    assert sorted(found) == list(range(len(files)))
    assert found[0][2].result.status == found[8][2].result.status == "ok"
    whys = {}
    for number, name in enumerate(bad, start=1):
        begin, windows, end = found[number]
        assert begin is None and windows == []
        assert (end.result.status, end.result.decoder, end.result.coverage) == ("undecodable", "", 0.0)
        whys[name] = end.result.reason
        assert "\n" not in whys[name] and str(tmp_path) not in whys[name]
    for name in ("text", "empty", "sound"):
        assert whys[name].startswith("pyav: ")
    assert "Is a directory" in whys["folder"] and "No such file" in whys["missing"]
    why = "timed out after 2 s (data.decode.timeout_seconds)"
    assert whys["waiting"] == f"decord: {why}; pyav: {why}"
    begin, windows, end = found[7]
    assert begin is not None and len(windows) == begin.num_windows > 3
    assert end.result.status == "partial" and "the file ends early" in end.result.reason


def test_a_video_of_which_no_frame_is_intact_is_undecodable(folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / "six.mp4").read_bytes())
    start_of_data = content.index(b"mdat") + 4
    content[start_of_data:] = bytes(len(content) - start_of_data)
    (tmp_path / "zeroed.mp4").write_bytes(content)
    _, windows, end = sort(start(tmp_path / "zeroed.mp4"))[0]
    assert all(window.coverage == 0 for window in windows)
    assert end.result.status == "undecodable" and end.result.reason.startswith("pyav: ")


@pytest.mark.usefixtures("spawned")
def test_a_video_that_eats_memory_is_given_up(folder: Path) -> None:
    plan = WindowPlan(StoreSpec(10_000, 400), 1.0, 0.5, 2.0)  # 4.8 GB a window
    limits = DecodeLimits(workers=1, memory_gigabytes=2.0)
    found = results(start(folder / "a.mp4", folder / "b.mp4", limits=limits, plan=plan))
    for number in range(2):
        assert found[number].status == "undecodable"
        assert "pyav: needs more than 2 GB (data.decode.memory_gigabytes)" in found[number].reason


def test_a_decoder_that_hangs_in_a_long_video_leaves_a_part(folder: Path) -> None:
    """Its process is stopped with half of a window sent; the next video is read by another one."""
    limits = DecodeLimits(workers=1, timeout_seconds=2.0)
    events = start(folder / "long.mp4", folder / "a.mp4", limits=limits, ahead=2)
    before = [next(events) for _ in range(4)]
    (process,) = processes()
    time.sleep(0.5)  # until the pipe is full
    process.suspend()

    def all_events() -> Iterator[Event]:
        yield from before
        yield from events

    found = sort(all_events())
    begin, windows, end = found[0]
    assert begin is not None and begin.num_windows == LONG_WINDOWS
    assert 3 <= len(windows) < LONG_WINDOWS
    result = end.result
    assert (result.status, result.decoder, result.seconds) == ("partial", "pyav", 40.0)
    assert result.coverage == len(windows) / LONG_WINDOWS
    until = 1 + 0.5 * (len(windows) - 1)
    assert result.reason == f"pyav: timed out after 2 s (data.decode.timeout_seconds), at {until:g} s of 40 s"
    assert same(windows, list(stream_windows(folder / "long.mp4", PLAN, DECODERS))[: len(windows)])
    assert found[1][2].result.status == "ok"
    assert not psutil.pid_exists(process.pid)


def test_workers_that_die_at_their_start_are_one_clear_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for want of memory, or where a file of the package cannot be read."""
    monkeypatch.setattr("vidcls.data.decoding.pool.start_worker", os._exit)  # which fails with two arguments
    with pytest.raises(UserError) as error:
        list(start(folder / "a.mp4"))
    hashes = hash_files([folder / "a.mp4"], None)
    assert error.value.code == "workers-failed"
    with pytest.raises(UserError) as error:
        store_all([folder / "a.mp4"], hashes, FrameStore(tmp_path, SPEC), TWO)
    assert error.value.code == "workers-failed"


def test_a_video_that_takes_too_long_in_all_leaves_a_part(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though each window comes in time: a few such videos would hold up all others for days."""
    monkeypatch.setattr("vidcls.data.decoding.receiver.WINDOWS_PER_TIMEOUT", 1e9)
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=1280x720:d=5", "-preset", "ultrafast", tmp_path / "part.mp4")
    ffmpeg("-stream_loop", "40", "-i", tmp_path / "part.mp4", "-c", "copy", tmp_path / "slow.mp4")
    limits = DecodeLimits(workers=1, timeout_seconds=1.5)
    found = sort(start(tmp_path / "slow.mp4", folder / "a.mp4", limits=limits))
    _, windows, end = found[0]
    assert 0 < len(windows) < 409 and end.result.status == "partial"
    assert end.result.reason.startswith("pyav: timed out after 1.5 s")
    assert found[1][2].result.status == "ok"


def test_a_long_video_whose_decoder_is_killed_is_read_again_once(folder: Path) -> None:
    events = start(folder / "long.mp4", folder / "a.mp4", limits=ONE, ahead=2)
    numbers = [next(events).number for _ in range(4)]
    assert numbers == [0] * 4
    for process in processes():
        process.kill()
    before = []  # the other video, which does not wait
    while not isinstance(event := next(events), VideoStarted) or event.number != 0:  # anew
        before.append(event)
    between = [next(events) for _ in range(3)]
    for process in processes():
        process.kill()
    rest = [*between, *events]
    windows = sum(isinstance(event, WindowRead) and event.number == 0 for event in rest)
    ends = [event for event in before + rest if isinstance(event, VideoFinished)]
    results = {event.number: event.result for event in ends}
    assert 2 <= windows < LONG_WINDOWS
    assert (results[0].status, results[0].coverage) == ("partial", windows / LONG_WINDOWS)
    assert results[0].reason == f"pyav: the decoding process died (SIGKILL), at {(windows + 1) / 2:g} s of 40 s"
    assert len(ends) == 2 and results[1].status == "ok"


def test_the_next_decoder_gets_its_chance(folder: Path, tmp_path: Path) -> None:
    """The first decoder waits for a pipe and is given up; then the video is there."""
    pipe, late = tmp_path / "pipe", tmp_path / "late.mp4"
    os.mkfifo(pipe)
    late.symlink_to(pipe)
    states = [FileState.of(folder / "b.mp4")]
    events = read_windows([Source(late, states[0])], 1, PLAN, DecodeLimits(workers=1, timeout_seconds=3.0))

    def replace_when_read() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                writing = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)  # refused while nobody reads from it
            except OSError:
                time.sleep(0.02)
                continue
            (tmp_path / "link").symlink_to(folder / "b.mp4")
            (tmp_path / "link").replace(late)
            time.sleep(4)
            os.close(writing)
            return

    thread = threading.Thread(target=replace_when_read)
    thread.start()
    found = sort(events)
    thread.join()
    assert (found[0][2].result.status, len(found[0][1])) == ("ok", 1)


@pytest.mark.usefixtures("spawned")
def test_videos_are_decoded_into_the_store(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video\n" * 200)
    os.mkfifo(tmp_path / "waiting.mp4")
    files = [folder / "a.mp4", tmp_path / "text.mp4", tmp_path / "waiting.mp4", folder / "six.mp4"]
    store = FrameStore(tmp_path / "store", SPEC)
    sha256s = [f"{number:064x}" for number in range(4)]
    hashes = [HashResult(sha256, "", FileState.of(file)) for sha256, file in zip(sha256s, files, strict=True)]
    found = store_all(files, hashes, store, DecodeLimits(workers=2, timeout_seconds=2.0))
    assert [result.status for result in found] == ["ok", "undecodable", "undecodable", "ok"]
    assert found[1].reason.startswith("pyav: ")
    why = "timed out after 2 s (data.decode.timeout_seconds)"
    assert found[2].reason == f"decord: {why}; pyav: {why}"
    for number in (0, 3):
        frames, result = decode(files[number], SPEC, DECODERS)
        assert store.find(sha256s[number]) == found[number] == result
        np.testing.assert_array_equal(store.read(sha256s[number], np.arange(FRAMES)), frames)


def test_a_file_that_changes_between_hash_and_decode_is_undecodable(folder: Path, tmp_path: Path) -> None:
    """It is not stored under its old hash, and its windows are not its result; size and time may be as before."""
    files = [tmp_path / f"{how}.mp4" for how in ("replaced", "written", "removed")]
    for file in files:
        shutil.copy2(folder / "six.mp4", file)
    hashes = hash_files(files, None)
    shutil.copy2(folder / "six.mp4", tmp_path / "other.mp4")
    (tmp_path / "other.mp4").replace(files[0])
    with files[1].open("r+b") as file:
        file.write(file.read(1))
    shutil.copystat(folder / "six.mp4", files[1])
    files[2].unlink()
    store = FrameStore(tmp_path / "store", SPEC)
    assert store_all(files, hashes, store, TWO) == [undecodable(CHANGED)] * 3
    assert not list(store.folder.rglob("*.safetensors"))
    found = results(
        read_windows([Source(f, h.state) for f, h in zip(files, hashes, strict=True)], len(files), PLAN, TWO)
    )
    assert list(found.values()) == [undecodable(CHANGED)] * 3
