from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.frames import EACH_DECODER, SIDE, moving, numbered, numbers
from helpers.videos import ffmpeg, write_video

from experiments.torture import media
from vidcls.data.decoding.frames import decode
from vidcls.data.decoding.result import DECODERS, DecodeResult, UndecodableError
from vidcls.data.decoding.track import scan
from vidcls.data.sampling import StoreSpec, clip_indices, frame_indices

# Levels of 255: both decoders use FFmpeg's bilinear scaler, but not the same version of it.
ROUNDING = 6


def read(
    path: Path, num_frames: int, *decoders: str, sampling: str = "uniform", resolution: int = SIDE
) -> tuple[np.ndarray, DecodeResult]:
    return decode(path, StoreSpec(num_frames, resolution, sampling), decoders or DECODERS)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


def by_ffmpeg(path: Path, *options: str, resolution: int = SIDE) -> np.ndarray:
    """All frames as the ffmpeg program shows them: turned upright, then scaled."""
    scale = f"scale={resolution}:{resolution}:flags=bilinear"
    raw = ffmpeg(
        *options, "-i", path, "-vf", scale, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"
    )
    return np.frombuffer(raw, np.uint8).reshape(-1, resolution, resolution, 3)


# ---- which frames


OPEN_GOP = {  # pictures that are stored behind a key frame and shown before it: decord miscounts from there
    "open.mp4": ("libx264", "-x264-params", "open-gop=1:bframes=3:b-adapt=0"),
    "open.mkv": ("libx264", "-x264-params", "open-gop=1:bframes=3"),
    "open.hevc.mov": ("libx265", "-x265-params", "log-level=none:open-gop=1:bframes=3"),
}


def test_the_frames_asked_for_are_given_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "FORMATS", media.FORMATS | OPEN_GOP)
    for path in media.write_originals(tmp_path):
        expected, (track, starts, *_) = by_ffmpeg(path), scan(path)
        frames, result = read(path, 6)
        assert (result.status, len(starts)) == ("ok", len(expected)), path.name
        chosen = clip_indices(starts, track.end_seconds, StoreSpec(6, SIDE))
        worst = np.abs(frames.astype(int) - expected[chosen]).mean(axis=(1, 2, 3)).max()
        assert worst <= media.MEAN_DIFFERENCE, (path.name, result.decoder)


@EACH_DECODER
@pytest.mark.parametrize(
    ("num_frames", "sampling", "expected"),
    [
        (4, "uniform", [5, 15, 25, 35]),
        (20, "uniform", list(range(1, 40, 2))),  # each middle falls on a frame's start
        (40, "uniform", list(range(40))),
        (7, "first", list(range(7))),
    ],
)
def test_the_frames_asked_for_are_given(
    tmp_path: Path, decoder: str, num_frames: int, sampling: str, expected: list[int]
) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(40))
    frames, result = read(path, num_frames, decoder, sampling=sampling)
    assert frames.shape == (num_frames, SIDE, SIDE, 3)
    assert numbers(frames) == expected
    assert (result.status, result.reason, result.decoder, result.coverage) == ("ok", "", decoder, 1.0)
    assert result.seconds == pytest.approx(1.6, abs=1e-3)


@EACH_DECODER
@pytest.mark.parametrize(
    ("count", "sampling", "expected"),
    [(3, "uniform", [0, 0, 1, 2, 2]), (3, "first", [0, 1, 2, 2, 2]), (1, "uniform", [0] * 5), (1, "first", [0] * 5)],
)
def test_short_videos_repeat_frames(
    tmp_path: Path, decoder: str, count: int, sampling: str, expected: list[int]
) -> None:
    path = write_video(tmp_path / "short.mp4", numbered(count))
    frames, result = read(path, 5, decoder, sampling=sampling)
    assert (numbers(frames), result.status, result.coverage) == (expected, "ok", 1.0)


@pytest.mark.parametrize("late", [0, 500])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_variable_frame_rate_is_sampled_by_time(tmp_path: Path, suffix: str, late: int) -> None:
    times = [0, 100, 200, 1000, 1100, 1900]  # milliseconds; the last frame ends at 2000
    path = write_video(tmp_path / f"v.{suffix}", numbered(6), pts=[late + time for time in times], fps=10)
    for decoders in (DECODERS, ("pyav",)):
        frames, result = read(path, 4, *decoders)  # 250 750 1250 1750
        assert (numbers(frames), result.status) == ([2, 2, 4, 4], "ok")
        frames, _ = read(path, 10, *decoders)  # 100 300 ... 1900: the first and the last fall on a frame's start
        assert numbers(frames) == [1, 2, 2, 2, 2, 4, 4, 4, 4, 5]
        assert result.seconds == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize(
    ("suffix", "codec", "options", "decoder"),
    [
        ("mp4", "libx264", {"crf": "0", "bf": "3"}, "decord"),
        ("mov", "libx264", {"crf": "0", "bf": "3"}, "decord"),
        ("mkv", "libx264", {"crf": "0", "bf": "3"}, "decord"),
        ("flv", "libx264", {"crf": "0", "bf": "3"}, "pyav"),
        ("ts", "libx264", {"crf": "0", "bf": "3"}, "pyav"),
        ("webm", "libvpx-vp9", {"lossless": "1", "cpu-used": "8"}, "pyav"),
        ("avi", "mpeg4", {"qmin": "1", "qmax": "1"}, None),
        ("avi", "libx264", {"crf": "0", "bf": "3", "b-adapt": "0"}, "pyav"),  # of which decord repeats one frame
    ],
)
def test_containers(tmp_path: Path, suffix: str, codec: str, options: dict[str, str], decoder: str | None) -> None:
    path = write_video(tmp_path / f"clip.{suffix}", numbered(40), codec=codec, options=options)
    frames, result = read(path, 20)
    assert (numbers(frames), result.status, result.reason) == (list(range(1, 40, 2)), "ok", "")
    assert result.decoder == decoder or decoder is None
    assert result.seconds == pytest.approx(1.6, abs=0.05)
    again, _ = read(path, 20, "pyav")
    assert difference(frames, again) <= ROUNDING


@pytest.mark.parametrize("decoders", [DECODERS, ("pyav",)])
def test_what_was_cut_off_without_encoding_again_is_not_shown(tmp_path: Path, decoders: tuple[str, ...]) -> None:
    """Cut between key frames, the file still holds what comes before the cut, marked as not to be shown."""
    whole = write_video(tmp_path / "whole.mp4", numbered(40), options={"crf": "0", "g": "20", "bf": "2"})
    cut = tmp_path / "cut.mp4"
    ffmpeg("-ss", "1.0", "-i", whole, "-c", "copy", cut)
    assert numbers(by_ffmpeg(cut)) == list(range(25, 40))
    frames, result = read(cut, 5, *decoders)
    assert (numbers(frames), result.status) == ([26, 29, 32, 35, 38], "partial")
    assert result.reason == "an edit list hides 5 of 20 frames"  # which other players may show
    assert result.seconds == pytest.approx(0.6, abs=0.01)


def test_frames_that_nobody_wants_are_left_out_without_a_trace(tmp_path: Path) -> None:
    """PyAV skips those that no other frame refers to."""
    path = write_video(tmp_path / "a.mp4", moving(60), options={"crf": "20", "bf": "3", "g": "30"})
    everything, _ = read(path, 60, "pyav", sampling="first")
    for num_frames in (1, 7, 20):
        frames, result = read(path, num_frames, "pyav")
        assert np.array_equal(frames, everything[frame_indices(np.arange(60.0), 60.0, num_frames, "uniform")])
        assert result.status == "ok"


# ---- what is on them


def test_both_decoders_agree_on_real_clips(real_data: Path) -> None:
    clips = sorted(real_data.glob("fights/*/*/*.mp4"), key=lambda path: path.stat().st_size)[:200:17]
    assert len(clips) == 12
    for clip in clips:
        one, by_decord = read(clip, 8, "decord", resolution=64)
        other, by_pyav = read(clip, 8, "pyav", resolution=64)
        assert (by_decord.status, by_pyav.status) == ("ok", "ok"), clip.name
        assert difference(one, other) <= ROUNDING, clip.name
        assert by_decord.seconds == pytest.approx(by_pyav.seconds, abs=0.05), clip.name


@EACH_DECODER
def test_frames_are_scaled_as_by_ffmpeg(tmp_path: Path, decoder: str) -> None:
    path = write_video(tmp_path / "a.mp4", moving(6))
    frames, _ = read(path, 6, decoder)
    assert difference(frames, by_ffmpeg(path)) <= ROUNDING
    assert difference(frames, np.roll(by_ffmpeg(path), 1, axis=0)) > 2 * ROUNDING  # not just any frame


@EACH_DECODER
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_videos_come_upright(tmp_path: Path, decoder: str, degrees: int) -> None:
    path = write_video(tmp_path / "turned.mp4", moving(5), rotation=degrees)
    frames, result = read(path, 5, decoder)
    assert result.status == "ok"
    assert difference(frames, by_ffmpeg(path)) <= ROUNDING
    assert difference(frames, by_ffmpeg(path, "-noautorotate")) > 50


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("degrees, mirrored", [(0, True), (90, True), (180, True), (270, True), (90, False)])
def test_frames_are_turned_and_mirrored_as_by_ffmpeg(tmp_path: Path, suffix: str, degrees: int, mirrored: bool) -> None:
    path = write_video(tmp_path / f"a.{suffix}", moving(50), rotation=degrees, mirrored=mirrored)
    frames, result = read(path, 50)
    assert (result.status, result.decoder) == ("ok", "decord" if suffix == "mp4" and not mirrored else "pyav")
    assert difference(frames, by_ffmpeg(path)) <= ROUNDING
    assert difference(frames, by_ffmpeg(path, "-noautorotate")) > 50
    assert difference(read(path, 50, "pyav")[0], by_ffmpeg(path)) <= ROUNDING


@EACH_DECODER
@pytest.mark.parametrize(
    ("degrees", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (270, (0, -1))]
)  # anticlockwise
def test_the_marked_corner_is_where_players_show_it(
    tmp_path: Path, decoder: str, degrees: int, corner: tuple[int, int]
) -> None:
    frames = np.full((2, 96, 64, 3), 40, np.uint8)
    frames[:, :32, :24] = 230
    shown, _ = read(write_video(tmp_path / "corner.mp4", frames, rotation=degrees), 2, decoder)
    lit = {place for place in [(0, 0), (0, -1), (-1, 0), (-1, -1)] if shown[0][place].mean() > 128}
    assert lit == {corner}


@EACH_DECODER
def test_the_real_rotated_file_equals_ffmpegs_autorotated_frames(real_data: Path, decoder: str) -> None:
    path = real_data / "hard" / "rotated_90.mov"
    expected = by_ffmpeg(path, resolution=64)
    frames, result = read(path, len(expected), decoder, resolution=64)
    assert result.status == "ok"
    assert difference(frames, expected) <= ROUNDING


@pytest.mark.parametrize("name", ["av1.mkv", "h265_10bit.mp4"])
def test_real_av1_and_10_bit_hevc(real_data: Path, name: str) -> None:
    path = real_data / "hard" / name
    expected = by_ffmpeg(path)
    frames, result = read(path, len(expected))
    assert (result.status, result.decoder, result.reason) == ("ok", "pyav", "")
    # Of 10 bits the program makes 8 in a step of its own, after scaling.
    assert np.abs(frames.astype(int) - expected).mean() < media.MEAN_DIFFERENCE
    assert difference(frames, expected) <= 3 * ROUNDING


def test_colours_are_rgb(tmp_path: Path) -> None:
    red = np.zeros((2, 64, 64, 3), np.uint8)
    red[..., 0] = 220
    path = write_video(tmp_path / "red.mp4", red)
    for decoder in DECODERS:
        frames, _ = read(path, 2, decoder)
        assert np.abs(frames.mean((0, 1, 2)) - (220, 0, 0)).max() <= ROUNDING


# ---- damage


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
