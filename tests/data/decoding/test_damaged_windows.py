from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.frames import SIDE, spans, stream
from helpers.videos import ffmpeg

from vidcls.data.decoding.frames import decode
from vidcls.data.decoding.result import UndecodableError
from vidcls.data.sampling import StoreSpec


@pytest.mark.parametrize("seed", range(6))
def test_damage_is_told_window_by_window(clip: Path, tmp_path: Path, seed: int) -> None:
    content = bytearray(clip.read_bytes())
    generator = np.random.default_rng(seed)
    start = int(generator.integers(content.index(b"mdat") + 24, len(content) - 200))
    content[start : start + 200] = generator.bytes(200)
    (tmp_path / "damaged.mp4").write_bytes(content)
    clean = list(stream(clip, 15, 1.5, 0.75))
    video = stream(tmp_path / "damaged.mp4", 15, 1.5, 0.75)
    windows = list(video)
    assert spans(windows) == spans(clean)
    result = video.result
    assert result is not None
    assert (result.status, result.decoder) == ("partial", "pyav")
    assert result.reason and 0 < result.coverage < 1
    wrong = [
        (np.abs(one.frames.astype(int) - good.frames).max(axis=(1, 2, 3)) > 8).sum()
        for one, good in zip(windows, clean, strict=True)
    ]
    assert sum(wrong) > 0
    for count, one in zip(wrong, windows, strict=True):
        assert count <= round(15 * (1 - one.coverage))  # no damaged frame is served as good
    # Damage lasts until the next key frame at most, 1.5 s: the other windows are whole, and are the clean ones.
    assert sum(one.coverage == 1.0 for one in windows) >= 3
    alone, again = decode(tmp_path / "damaged.mp4", StoreSpec(60, SIDE), ("pyav",))
    assert len(alone) == 60 and result == again  # the same 60 frames were asked for, so the same words


@pytest.mark.parametrize("kept", [0.4, 0.8])
def test_a_truncated_file_is_partial_with_its_coverage(clip: Path, tmp_path: Path, kept: float) -> None:
    content = clip.read_bytes()
    start = content.index(b"mdat") + 4
    (tmp_path / "cut.mp4").write_bytes(content[: start + int(kept * (len(content) - start))])
    video = stream(tmp_path / "cut.mp4", 8, 1.0, 0.5)
    windows = list(video)
    result = video.result
    assert result is not None
    assert (result.status, result.decoder) == ("partial", "pyav")
    assert "the file ends early" in result.reason and "of 60 frames" in result.reason
    assert result.coverage == pytest.approx(kept, abs=0.15)
    assert windows[-1].end_seconds == video.seconds == result.seconds < 6.0
    assert windows[0].coverage == 1.0


def test_a_video_without_one_intact_frame_is_undecodable_at_the_end(clip: Path, tmp_path: Path) -> None:
    content = bytearray(clip.read_bytes())
    start = content.index(b"mdat") + 4
    content[start:] = bytes(len(content) - start)
    (tmp_path / "zeroed.mp4").write_bytes(content)
    video = stream(tmp_path / "zeroed.mp4", 8, 1.0, 0.5)
    with pytest.raises(UndecodableError, match=r"^pyav: "):
        list(video)
    assert video.result is None


@pytest.mark.parametrize("kind", ["audio", "text", "empty", "missing"])
def test_what_is_no_video_is_undecodable(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "clip.mp4"
    if kind == "audio":
        ffmpeg("-f", "lavfi", "-i", "sine=duration=3", "-c:a", "aac", path)
    elif kind != "missing":
        path.write_text("This is no video.\n" * 100 * (kind == "text"))
    with pytest.raises(UndecodableError, match=r"^pyav: .+"):
        stream(path, 4, 1.0, 1.0)


def test_the_real_corrupted_file_is_never_ok(real_data: Path) -> None:
    try:
        video = stream(real_data / "hard" / "corrupted.mp4", 8, 1.0, 0.5)
        list(video)
    except UndecodableError:
        return
    assert video.result is not None and video.result.status == "partial"
