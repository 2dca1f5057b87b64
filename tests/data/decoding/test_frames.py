from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.frames import EACH_DECODER, SIDE, difference, moving, numbered, numbers, read, stream
from helpers.videos import ffmpeg, write_video

from experiments.torture import media
from vidcls.data.decoding.plan import WindowPlan
from vidcls.data.decoding.result import DECODERS, UndecodableError
from vidcls.data.decoding.track import scan
from vidcls.data.decoding.windows import stream_windows
from vidcls.data.sampling import StoreSpec, clip_indices, frame_indices

# Levels of 255: both decoders use FFmpeg's bilinear scaler, but not the same version of it.
ROUNDING = 6


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


def test_the_frames_asked_for_are_given_in_every_format(
    originals: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "FORMATS", OPEN_GOP)
    for path in [*originals, *media.write_originals(tmp_path)]:
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


@pytest.mark.parametrize("suffix, codec", [("mp4", "libx264"), ("ts", "mpeg2video")])
def test_both_fields_of_interlaced_frames_are_scaled_together(tmp_path: Path, suffix: str, codec: str) -> None:
    frames = moving(12)
    frames[:, 1::2] = np.roll(frames, 2, axis=0)[:, 1::2]  # the other field is of another time
    plain = write_video(tmp_path / "plain.mp4", frames)
    path = tmp_path / f"interlaced.{suffix}"
    ffmpeg("-i", plain, "-c:v", codec, "-flags", "+ilme+ildct", "-field_order", "tt", "-q:v", "2", path)
    frames, _ = read(path, 12, "pyav")
    assert difference(frames, by_ffmpeg(path)) <= ROUNDING


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


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("turn", ["rotate=90", "flip=horizontal"])
@pytest.mark.parametrize("gop", ["5", "250"])
def test_frames_are_turned_as_h264_itself_says(tmp_path: Path, suffix: str, turn: str, gop: str) -> None:
    """At its first key frame or at each; the ffmpeg program and ffplay then turn all frames."""
    video = write_video(tmp_path / "a.mp4", moving(30), options={"crf": "0", "g": gop})
    path = tmp_path / f"turned.{suffix}"
    ffmpeg("-i", video, "-c", "copy", "-bsf:v", f"h264_metadata=display_orientation=insert:{turn}", path)
    expected = by_ffmpeg(path)
    assert difference(expected, by_ffmpeg(path, "-noautorotate")) > 50
    for decoders in (DECODERS, ("pyav",)):
        frames, result = read(path, 30, *decoders)
        assert (result.status, result.decoder) == ("ok", "pyav")
        assert difference(frames, expected) <= ROUNDING
    with pytest.raises(UndecodableError):
        read(path, 30, "decord")
    windows = list(stream(path, 2, 0.2, 0.2))[4:]
    few = stream_windows(path, WindowPlan(StoreSpec(2, SIDE), 0.2, 0.2, 0.0, spans=((0.9, 1.0),)), DECODERS)
    assert difference(next(iter(few)).frames, windows[0].frames) == 0


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
