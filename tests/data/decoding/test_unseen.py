"""The ways in which a file can show a player what we would not look at: seen after all, or partial with the reason."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.frames import SIDE, numbered, numbers
from helpers.videos import ffmpeg, write_video

from vidcls.data.decoding.frames import decode
from vidcls.data.decoding.plan import WindowPlan
from vidcls.data.decoding.result import DECODERS, DecodeResult, UndecodableError
from vidcls.data.decoding.track import ASF_FILE_PROPERTIES
from vidcls.data.decoding.windows import stream_windows
from vidcls.data.sampling import StoreSpec

ALL = list(range(40))
FIRST = list(range(20))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a`` shows the numbers 0 to 19 and ``b`` 20 to 39, at 10 a second with a key frame each 10, in any format."""
    folder = tmp_path_factory.mktemp("parts")
    for name, frames in (("a", numbered(40)[:20]), ("b", numbered(40)[20:]), ("whole", numbered(40))):
        video = write_video(folder / f"{name}.mp4", frames, fps=10, options={"crf": "0", "g": "10", "bf": "2"})
        for suffix in ("ts", "mkv", "flv", "avi"):
            ffmpeg("-i", video, "-c", "copy", folder / f"{name}.{suffix}")
        ffmpeg("-i", video, "-c", "copy", "-movflags", "frag_keyframe+empty_moov", folder / f"{name}_fragmented.mp4")
        ffmpeg("-i", video, "-c:v", "mpeg2video", "-q:v", "1", "-r", "25", folder / f"{name}.mpg")
    return folder


def look(path: Path) -> tuple[list[int], DecodeResult]:
    """The numbers that are seen, which must be the same whatever decoder is tried first."""
    frames, result = decode(path, StoreSpec(40, SIDE), DECODERS)
    again, by_pyav = decode(path, StoreSpec(40, SIDE), ("pyav",))
    assert numbers(frames) == numbers(again)
    assert replace(result, decoder="pyav") == by_pyav
    return sorted(set(numbers(frames))), result


def check(path: Path, seen: list[int], reason: str) -> None:
    found, result = look(path)
    assert found == seen
    assert (result.status, bool(result.reason)) == (("partial", True) if reason else ("ok", False)), result
    assert reason in result.reason


# ---- files that were joined byte by byte


@pytest.mark.parametrize(
    ("name", "seen", "reason"),
    [
        ("{}.ts", ALL, "packets are damaged"),  # the counter of packets jumps where the second file begins
        ("{}.mpg", ALL, ""),
        ("{}.mkv", ALL, ""),
        ("{}.avi", ALL, "belongs to no track"),
        ("{}.flv", FIRST, "belongs to no track"),
        ("{}.mp4", FIRST, "several movies in one file"),
        ("{}_fragmented.mp4", None, "several movies in one file"),
    ],
)
def test_joined_files_are_seen_whole_or_partial(
    parts: Path, tmp_path: Path, name: str, seen: list[int] | None, reason: str
) -> None:
    content = [(parts / name.format(part)).read_bytes() for part in "ab"]
    if name.endswith("flv"):
        content *= 3  # what is unread counts from 4 kB
    path = tmp_path / f"joined{Path(name).suffix}"
    path.write_bytes(b"".join(content))
    check(path, look(path)[0] if seen is None else seen, reason)


@pytest.mark.parametrize("suffix", ["ts", "mpg", "mkv"])
def test_windows_see_both_of_two_joined_files(parts: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join((parts / f"{part}.{suffix}").read_bytes() for part in "ab"))
    video = stream_windows(path, WindowPlan(StoreSpec(10, SIDE), 1.0, 1.0, 0.0), DECODERS)
    assert [numbers(window.frames) for window in video] == [ALL[i : i + 10] for i in range(0, 40, 10)]


# ---- several tracks


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("default", [0, 1])
def test_a_second_video_track_is_partial(parts: Path, tmp_path: Path, suffix: str, default: int) -> None:
    """And the one that is read is the one that players choose, the default track."""
    flags = (f"-disposition:v:{1 - default}", "0", f"-disposition:v:{default}", "default")
    tracks = ("-i", parts / "a.mp4", "-i", parts / "b.mp4", "-map", "0:v", "-map", "1:v", *flags)
    ffmpeg(*tracks, "-c", "copy", tmp_path / f"two.{suffix}")
    seen = ALL[20:] if default and suffix != "ts" else FIRST
    check(tmp_path / f"two.{suffix}", seen, "2 video tracks, of which one is read")


def test_a_track_that_begins_in_mid_file_is_partial(tmp_path: Path) -> None:
    """Beyond the 5 MB that FFmpeg reads to learn which tracks there are."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 320, 320, 1), np.uint8).repeat(3, axis=-1)
    video = write_video(tmp_path / "noise.mp4", noise)
    for part, pids in {"a": ("0x100", "0x1000"), "b": ("0x200", "0x1001")}.items():
        copies = ("-stream_loop", "1", "-i", video, "-c", "copy")
        ffmpeg(*copies, "-mpegts_start_pid", pids[0], "-mpegts_pmt_start_pid", pids[1], tmp_path / f"{part}.ts")
    path = tmp_path / "joined.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    assert (tmp_path / "a.ts").stat().st_size > 5e6
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    _, result = decode(path, StoreSpec(4, SIDE), DECODERS)
    assert result.status == "partial" and "belongs to no track" in result.reason


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_a_few_frames_of_a_late_track_are_partial(tmp_path: Path, suffix: str) -> None:
    """Too few to be missed by their size, and beyond the 5 MB that FFmpeg reads to learn which tracks there are."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 320, 320, 1), np.uint8).repeat(3, axis=-1)
    video = write_video(tmp_path / "noise.mp4", noise, codec="mpeg2video", options={"qmin": "1", "qmax": "1"})
    late = write_video(tmp_path / "late.mp4", noise[:, ::8, ::8].copy(), codec="mpeg2video")
    one, path = tmp_path / f"one.{suffix}", tmp_path / f"two.{suffix}"
    copies = ("-stream_loop", "8", "-i", video, "-itsoffset", "5", "-i", late, "-c", "copy")
    ffmpeg(*copies, "-map", "0:v", one)
    ffmpeg(*copies, "-map", "0:v", "-map", "1:v", path)
    assert decode(one, StoreSpec(4, SIDE), DECODERS)[1].status == "ok"
    if suffix == "ts":
        path.write_bytes(announced_late(path.read_bytes(), one.read_bytes()))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    _, result = decode(path, StoreSpec(4, SIDE), DECODERS)
    assert (result.status, result.reason) == ("partial", "video tracks that begin late and are not read: 1")


def announced_late(two: bytes, one: bytes) -> bytes:
    """A transport stream of two tracks whose table names the second only while it lasts; ``one`` has the first alone.

    At the end the table is that of the beginning, as FFmpeg looks at both.
    """
    packets, alone = ([of[place : place + 188] for place in range(0, len(of), 188)] for of in (two, one))
    table = next(packet for packet in alone if packet[1:3] == b"P\0")
    second = [number for number, packet in enumerate(packets) if packet[1] & 31 == 1 and packet[2] == 1]
    others = (range(second[0]), range(second[-1], len(packets)))
    return b"".join(
        table if packet[1:3] == b"P\0" and any(number in other for other in others) else packet
        for number, packet in enumerate(packets)
    )


def test_an_attached_picture_beside_the_video_is_partial(parts: Path, tmp_path: Path) -> None:
    cover = ("-f", "lavfi", "-i", "color=c=red:s=64x64:d=0.04", "-map", "0:v", "-map", "1:v")
    cover = (*cover, "-c:v:0", "copy", "-c:v:1", "mjpeg", "-disposition:v:1", "attached_pic")
    ffmpeg("-i", parts / "a.mp4", *cover, tmp_path / "cover.mp4")
    check(tmp_path / "cover.mp4", FIRST, "the attached picture is not read")


# ---- frames that are there, but not shown, or not at once


def edited(path: Path, target: Path, begin_seconds: float, seconds: float) -> Path:
    """A copy of an mp4 of 4 s whose edit list shows a part of it."""
    content = bytearray(path.read_bytes())
    (ticks,) = struct.unpack_from(">I", content, content.index(b"mdhd") + 16)
    struct.pack_into(">Ii", content, content.index(b"elst") + 12, int(1000 * seconds), int(begin_seconds * ticks))
    target.write_bytes(content)
    return target


@pytest.mark.parametrize(
    ("begin", "seconds", "seen"), [(0.5, 3.5, ALL[5:]), (2.5, 4.0, ALL[25:]), (1.5, 1.0, ALL[15:25])]
)
def test_an_edit_list_that_hides_frames_is_partial(
    tmp_path: Path, begin: float, seconds: float, seen: list[int]
) -> None:
    whole = write_video(tmp_path / "whole.mp4", numbered(40), fps=10, options={"crf": "0", "g": "10", "bf": "0"})
    path = edited(whole, tmp_path / "edited.mp4", begin, seconds)
    check(path, seen, f"an edit list hides {40 - len(seen)} of 40 frames")
    assert look(path)[1].coverage == len(seen) / 40


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_very_late_first_key_frame_is_partial(parts: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"late.{suffix}"
    with av.open(str(parts / "whole.mp4")) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if number >= 13 and packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    check(path, ALL[20:], "the first 7 frames come before any key frame")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_frames_after_the_declared_duration_are_seen(parts: Path, tmp_path: Path, suffix: str) -> None:
    content = bytearray((parts / f"whole.{suffix}").read_bytes())
    if suffix == "mkv":
        struct.pack_into(">d", content, content.index(b"\x44\x89\x88") + 3, 500.0)  # the element Duration, in ms
    else:
        for box, place in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
            (ticks,) = struct.unpack_from(">I", content, content.index(box) + place)
            struct.pack_into(">I", content, content.index(box) + place, ticks // 8)
    (tmp_path / f"short.{suffix}").write_bytes(content)
    check(tmp_path / f"short.{suffix}", ALL, "")


@pytest.mark.parametrize("apart", [0, 2.0])
def test_frames_whose_timestamps_are_used_twice_are_seen(tmp_path: Path, apart: float) -> None:
    """The second half of the frames is said to be shown when the first is, by their composition offsets."""
    options = {"crf": "5", "g": "10", "bf": "2", "b-adapt": "0"}
    content = bytearray(write_video(tmp_path / "a.mp4", numbered(40), fps=10, options=options).read_bytes())
    (ticks,) = struct.unpack_from(">I", content, content.index(b"mdhd") + 16)
    place, frame = content.index(b"ctts") + 12, 0
    while frame < 40:
        count, offset = struct.unpack_from(">Ii", content, place)
        if frame >= 20:
            struct.pack_into(">Ii", content, place, count, offset - int(apart * ticks))
        place, frame = place + 8, frame + count
    (tmp_path / "twice.mp4").write_bytes(content)
    assert look(tmp_path / "twice.mp4")[0] == ALL


def test_frames_that_follow_too_fast_are_seen(tmp_path: Path) -> None:
    """A player shows them as fast as it can; thousands in a millisecond must not pass for one window."""
    path = write_video(tmp_path / "fast.mkv", numbered(40), pts=range(40), fps=1000)
    video = stream_windows(path, WindowPlan(StoreSpec(10, SIDE), 1 / 24, 1 / 24, 0.0), DECODERS)
    assert {number for window in video for number in numbers(window.frames)} == set(ALL)


def test_a_burst_of_frames_in_a_still_hour_is_seen(tmp_path: Path) -> None:
    """200 frames in one second of an hour; windows in which nothing happens are left out."""
    burst = [2_000_000 + 5 * i for i in range(200)]
    frames = np.concatenate([numbered(1), np.repeat(numbered(40)[1:], 6, axis=0)[:200], numbered(1)])
    path = write_video(tmp_path / "burst.mkv", frames, pts=[0, *burst, 3_599_000], fps=1)
    video = stream_windows(path, WindowPlan(StoreSpec(40, SIDE), 2.0, 1.0, 10.0), DECODERS)
    windows = list(video)
    assert [window.start_seconds for window in windows] == [0, 1999, 2000, 2001, 3598]
    seen = {number for window in windows for number in numbers(window.frames)}  # 20 of the 200, evenly spaced
    assert len(seen - {0}) >= 20 and max(np.diff(sorted(seen))) <= 2
    assert video.result is not None and (video.result.status, video.seconds) == ("ok", 3600.0)


# ---- content that changes its form


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_change_of_size_in_mid_stream_is_seen(parts: Path, tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / "b.ts", numbered(40, 48, 64)[20:], fps=10, options={"crf": "0", "g": "10"})
    (tmp_path / "list.txt").write_text(f"file '{parts / 'a.ts'}'\nfile '{tmp_path / 'b.ts'}'\n")
    ffmpeg("-f", "concat", "-safe", "0", "-i", tmp_path / "list.txt", "-c", "copy", tmp_path / f"sizes.{suffix}")
    check(tmp_path / f"sizes.{suffix}", ALL, "")


def test_chapters_hide_nothing(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "chapters.txt").write_text(";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle=only\n")
    chapters = ("-i", tmp_path / "chapters.txt", "-map_metadata", "1", "-c", "copy")
    ffmpeg("-i", parts / "whole.mkv", *chapters, tmp_path / "chapters.mkv")
    check(tmp_path / "chapters.mkv", ALL, "")


def _picture(path: Path, codec: str) -> None:
    ffmpeg("-f", "lavfi", "-i", "color=c=red:s=64x64", "-frames:v", "1", "-c:v", codec, "-f", "image2", path)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: _picture(path, "mjpeg"),
        lambda path: _picture(path, "png"),
        lambda path: ffmpeg("-f", "lavfi", "-i", "color=c=red:s=64x64:d=1", "-f", "gif", path),
    ],
    ids=["jpeg", "png", "gif"],
)
def test_a_picture_called_mp4_is_no_video(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "picture.mp4")
    with pytest.raises(UndecodableError, match="not a video file of a known format"):
        decode(tmp_path / "picture.mp4", StoreSpec(4, SIDE), DECODERS)


def test_a_wmv_that_ends_early_is_partial(tmp_path: Path) -> None:
    """Its header alone tells, unless it is that of a live recording, which does not know its size."""
    video = write_video(tmp_path / "a.wmv", numbered(40), codec="wmv2")
    assert look(video)[1].status == "ok"
    content = bytearray(video.read_bytes())
    half = len(content) // 2
    video.write_bytes(content[:half])
    assert f"the file ends early: {len(content) - half} bytes are missing" in look(video)[1].reason
    content[content.index(ASF_FILE_PROPERTIES) + 88] |= 1
    video.write_bytes(content[:half])
    assert "ends early" not in look(video)[1].reason


def with_clap(path: Path, width: int, height: int) -> Path:
    """Tells players of an mp4 to show the middle of its picture alone."""
    content = bytearray(path.read_bytes())
    start = content.rindex(b"moov")
    entry = content.index(b"avc1", start) - 4
    end = entry + int.from_bytes(content[entry : entry + 4])
    content[end:end] = clap = struct.pack(">I4s8I", 40, b"clap", width, 1, height, 1, 0, 1, 0, 1)
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        place = content.index(kind, start) - 4
        content[place : place + 4] = struct.pack(">I", int.from_bytes(content[place : place + 4]) + len(clap))
    path.write_bytes(content)
    return path


def test_a_picture_of_which_players_show_a_part_is_partial(tmp_path: Path) -> None:
    """What they enlarge to the whole screen is a few pixels here."""
    small = with_clap(write_video(tmp_path / "small.mp4", numbered(10)), 16, 16)
    ffmpeg("-i", small, "-c", "copy", tmp_path / "small.mkv")
    assert len(ffmpeg("-i", small, "-frames:v", "1", "-pix_fmt", "rgb24", "-f", "rawvideo", "-")) == 16 * 16 * 3
    for path in (small, tmp_path / "small.mkv"):
        result = look(path)[1]
        assert (result.status, result.reason) == ("partial", "players show 4% of the picture, by a crop rectangle")
    large = with_clap(write_video(tmp_path / "large.mp4", numbered(10)), 94, 62)  # as cameras do
    ffmpeg("-i", large, "-c", "copy", tmp_path / "large.mkv")
    assert {look(path)[1].status for path in (large, tmp_path / "large.mkv")} == {"ok"}
