"""Encodes real videos for the tests: what is in them is known frame by frame."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np


def ffmpeg(*args: str | Path) -> bytes:
    """Runs ffmpeg (overwriting, errors only) and returns what it wrote to stdout; its stderr is in the error raised."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *map(str, args)]
    done = subprocess.run(command, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"ffmpeg {' '.join(command[6:])}\n{done.stderr.decode(errors='replace')}")
    return done.stdout


def write_video(
    path: Path,
    frames: np.ndarray,
    *,
    fps: float | Fraction = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    rotation: int = 0,
    mirrored: bool = False,
) -> Path:
    """Encodes ``frames`` to ``path``; the suffix (.mp4, .mkv, .mov, .avi, .webm) names the container.

    Args:
        path: where to write; its folder is made.
        frames: uint8 [N, H, W, 3], RGB. Sides must be even for yuv420p.
        fps: frames per second; where ``pts`` is given, only the last frame's duration, 1 / fps.
        codec: an encoder of PyAV's ffmpeg.
        pix_fmt: with libx264rgb and "rgb24" the frames come back bit for bit; yuv420p halves the colour planes.
        options: of the encoder; by default lossless (crf 0, no more loss than ``pix_fmt``) for libx264.
        pts: the time of each frame in milliseconds, ascending: a variable frame rate.
        rotation: degrees counter-clockwise that players must turn the frames (metadata; the pixels stay).
        mirrored: whether players must mirror them left and right after that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.with_name(f"unrotated_{path.name}") if rotation or mirrored else path
    if options is None:
        options = {"crf": "0", "preset": "veryfast"} if codec.startswith("libx264") else {}
    rate = Fraction(fps).limit_denominator(1001)
    time_base = Fraction(1, 1000) if pts is not None else 1 / rate
    times = list(range(len(frames)) if pts is None else pts)
    with av.open(str(target), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.time_base = stream.codec_context.time_base = time_base
        for image, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if target != path:
        ffmpeg("-display_rotation", str(rotation), *["-display_hflip"] * mirrored, "-i", target, "-c", "copy", path)
        target.unlink()
    return path
