from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.frames import EACH_DECODER, SIDE, moving, numbered, numbers, read, stream
from helpers.videos import ffmpeg, write_video

from vidcls.data.decoding.result import DECODERS, UndecodableError
from vidcls.errors import printable


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames, a key frame each 15, its index before its data: cut short it can still be opened."""
    folder = tmp_path_factory.mktemp("clip")
    options = {"crf": "20", "preset": "veryfast", "g": "15"}
    written = write_video(folder / "written.mp4", moving(60), options=options)
    ffmpeg("-i", written, "-c", "copy", "-movflags", "+faststart", folder / "clip.mp4")
    return folder / "clip.mp4"


def damaged(clip: Path, path: Path, seed: int, length: int) -> Path:
    """A copy with ``length`` bytes of its pictures overwritten at random."""
    content = bytearray(clip.read_bytes())
    generator = np.random.default_rng(seed)
    start = int(generator.integers(content.index(b"mdat") + 24, len(content) - length))
    content[start : start + length] = generator.bytes(length)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("seed", range(10))
def test_damaged_pictures_are_never_served_as_good(clip: Path, tmp_path: Path, seed: int) -> None:
    clean, _ = read(clip, 60, "pyav")
    try:
        frames, result = read(damaged(clip, tmp_path / "damaged.mp4", seed, 200), 60)
    except UndecodableError:
        return
    assert (result.status, result.decoder) == ("partial", "pyav")
    assert result.reason
    assert 0 < result.coverage < 1
    different = (np.abs(frames.astype(int) - clean).max(axis=(1, 2, 3)) > 8).sum()
    assert different > 0
    # Damage lasts until the next key frame at most, so most frames are intact and equal to the clean ones.
    assert different <= 30


def test_a_result_does_not_depend_on_what_was_read_before(clip: Path, tmp_path: Path) -> None:
    """FFmpeg's complaints about one file say nothing about the next, and the same complaint counts again."""
    text = tmp_path / "text.mp4"
    text.write_text("no video " * 100)
    path = damaged(clip, tmp_path / "damaged.mp4", 0, 200)
    alone = read(path, 8, "pyav")[1]
    assert "FFmpeg reports: Invalid NAL unit size" in alone.reason
    assert read(path, 8, "pyav")[1] == alone
    for _ in range(2):
        with pytest.raises(UndecodableError):
            read(text, 8)
    assert read(path, 8, "pyav")[1] == alone


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_partial_with_its_coverage(clip: Path, tmp_path: Path, kept: float) -> None:
    content = clip.read_bytes()
    start = content.index(b"mdat") + 4
    path = tmp_path / "cut.mp4"
    path.write_bytes(content[: start + int(kept * (len(content) - start))])
    frames, result = read(path, 10)
    assert frames.shape == (10, SIDE, SIDE, 3)
    assert (result.status, result.decoder) == ("partial", "pyav")
    assert result.coverage == pytest.approx(kept, abs=0.15)
    assert "ends early" in result.reason and "of 60 frames" in result.reason


ENDS = {"ts": "mpeg2video", "m2v": "mpeg2video", "mpg": "mpeg2video", "h264.ts": "libx264", "flv": "flv1"}


@pytest.mark.parametrize(("suffix", "codec"), ENDS.items())
def test_a_file_that_is_cut_within_its_last_picture_is_partial(tmp_path: Path, suffix: str, codec: str) -> None:
    """Also where that picture is not among the chosen ones, and the format does not say where the video ends."""
    path, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=d=2:s=320x240", "-vf", "noise=alls=40", "-c:v", codec, "-q:v", "2", path)
    assert read(path, 4)[1].status == "ok"
    content = path.read_bytes()
    for share in (0.5, 0.8):
        end = int(share * len(content))
        if suffix.endswith("ts"):  # between two packets of one picture
            end -= end % 188
            while content[end + 1] & 0x40:
                end += 188
        cut.write_bytes(content[:end])
        assert read(cut, 4)[1].status == "partial"
        windows = stream(cut, 4, 0.5, 0.5)
        assert len(list(windows)) > 1 and windows.result is not None and windows.result.status == "partial"


def test_an_flv_that_is_cut_between_two_pictures_is_partial(tmp_path: Path) -> None:
    path, cut = tmp_path / "whole.flv", tmp_path / "cut.flv"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=d=2:s=320x240", "-c:v", "flv1", path)
    content, ends = path.read_bytes(), [13]  # of the header, and of each tag
    while ends[-1] < len(content):
        ends.append(ends[-1] + 15 + int.from_bytes(content[ends[-1] + 1 : ends[-1] + 4]))
    cut.write_bytes(content[: ends[len(ends) // 2]])
    assert "ends early: 0.96 of 2.00 s are there" in read(cut, 4)[1].reason


def test_the_real_corrupted_file_is_never_ok(real_data: Path) -> None:
    try:
        _, result = read(real_data / "hard" / "corrupted.mp4", 20)
    except UndecodableError:
        return
    assert (result.status, result.decoder) == ("partial", "pyav")
    assert result.reason and 0 < result.coverage < 1


# ---- no video at all


def _audio(path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", "-c:a", "aac", path)


def _cover(path: Path) -> None:
    sound = ("-f", "lavfi", "-i", "sine=duration=0.2", "-f", "lavfi", "-i", "color=c=red:s=64x64:d=0.04")
    picture = ("-map", "0:a", "-map", "1:v", "-c:v", "mjpeg", "-frames:v", "1", "-disposition:v:0", "attached_pic")
    ffmpeg(*sound, *picture, "-c:a", "aac", path)


def _without_index(path: Path) -> None:
    write_video(path, numbered(10))
    path.write_bytes(path.read_bytes()[:-500])  # the index of this file comes last


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("This is no video.\n" * 100),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        lambda path: path.mkdir(),
        lambda path: None,
        _audio,
        _cover,
        _without_index,
    ],
    ids=["text", "empty", "noise", "directory", "missing", "audio", "cover_art", "no_index"],
)
def test_what_is_no_video_is_undecodable_with_a_reason(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(UndecodableError, match=r"^pyav: .+") as caught:
        read(path, 4)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) not in message and " @ 0x" not in message


@pytest.mark.parametrize(
    "name", ["red \x1b[31m.mp4", "line\nbreak.mp4", 'it\'s "new".mp4', "clip [1] b.mp4", "back\\slash.mp4"]
)
def test_a_reason_names_the_file_and_not_its_folder(tmp_path: Path, name: str) -> None:
    """Which differs from machine to machine."""
    (tmp_path / name).write_text("no video")
    with pytest.raises(UndecodableError) as caught:
        read(tmp_path / name, 4)
    assert str(caught.value).startswith("pyav: Invalid data found when processing input: ")
    assert printable(name) in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_the_picture_on_a_videos_cover_is_not_the_video(tmp_path: Path) -> None:
    video = write_video(tmp_path / "plain.mp4", numbered(20))
    path = tmp_path / "covered.mp4"
    cover = ("-f", "lavfi", "-i", "color=c=red:s=64x64:d=0.04", "-i", video, "-map", "0:v", "-map", "1:v")
    ffmpeg(*cover, "-c:v:0", "mjpeg", "-c:v:1", "copy", "-disposition:v:0", "attached_pic", path)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
    frames, result = read(path, 10)
    assert numbers(frames) == list(range(1, 20, 2))
    assert (result.status, result.reason) == ("partial", "the attached picture is not read")


def test_a_repeated_frame_of_an_avi_is_not_missing(tmp_path: Path) -> None:
    """It is a chunk without bytes, which ffmpeg writes to keep a constant frame rate."""
    times = [0, 40, 200, 240, 280, 320, 360, 400]  # milliseconds
    late = write_video(tmp_path / "late.mkv", numbered(8), pts=times)
    lossless = ("-c:v", "mpeg4", "-qmin", "1", "-qmax", "1")
    ffmpeg("-i", late, *lossless, "-fps_mode", "vfr", "-enc_time_base", "1/25", tmp_path / "a.avi")
    with av.open(str(tmp_path / "a.avi")) as container:
        assert container.streams.video[0].frames == 11
    frames, result = read(tmp_path / "a.avi", 8)
    assert (numbers(frames), result.status) == (list(range(8)), "ok")


@EACH_DECODER
def test_a_title_that_is_not_utf_8_is_no_damage(tmp_path: Path, decoder: str) -> None:
    video = write_video(tmp_path / "plain.mp4", numbered(4))
    ffmpeg("-i", video, "-c", "copy", "-metadata", "title=caf_", tmp_path / "titled.mp4")
    content = (tmp_path / "titled.mp4").read_bytes()
    (tmp_path / "titled.mp4").write_bytes(content.replace(b"caf_", b"caf\xe9"))
    frames, result = read(tmp_path / "titled.mp4", 4, decoder)
    assert (numbers(frames), result.status) == ([0, 1, 2, 3], "ok")


# ---- what is left behind


def test_stderr_is_as_before(clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    status, open_files = os.fstat(2), len(os.listdir("/proc/self/fd"))
    for path in (clip, text, damaged(clip, tmp_path / "damaged.mp4", 0, 200)) * 2:
        for decoder in DECODERS:
            try:
                read(path, 4, decoder)
            except UndecodableError:
                continue
    assert os.path.samestat(os.fstat(2), status)
    assert len(os.listdir("/proc/self/fd")) <= open_files + 2  # decord may keep some of its own, not one per file
    os.write(2, b"still heard")
    assert capfd.readouterr().err == "still heard"
