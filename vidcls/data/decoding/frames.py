"""One video file to a small stack of frames, honest about what could not be read. The only file that knows decord.

decord is fast but hides damage: FFmpeg conceals broken macroblocks and decord hands the patched frames on as good
ones. FFmpeg does complain on stderr, though, so stderr is captured around every decode; whatever decord refuses or
complains about is read again with PyAV, which knows frame by frame what is damaged. Runs in worker processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av  # noqa: F401 (before decord, which makes its own, older libvpx and FFmpeg the ones that PyAV would find)
import decord
import numpy as np
from jaxtyping import UInt8

from vidcls.data.decoding.pyav import BROKEN, ChosenFrames, Track, captured_stderr, first_line, read_track
from vidcls.data.sampling import WHOLE, Clips, clip_indices

DECODERS = ("decord", "pyav")


@dataclass(frozen=True)
class Reading:
    """What a decoder made of one video, beside the frames.

    Attributes:
        status: ``ok``, or ``partial`` where some of the frames asked for are damaged or missing.
        reason: why it is partial, else "".
        decoder: ``decord`` or ``pyav``.
        seconds: the video's duration, from the first frame's appearance to the last one's end.
        coverage: the fraction of the frames asked for that is intact, 0..1.
    """

    status: str
    reason: str
    decoder: str
    seconds: float
    coverage: float


Frames = UInt8[np.ndarray, "F R R 3"]


class UndecodableError(Exception):
    """Neither decoder can give a single intact frame; the message says what each one said."""


def decode(
    path: Path, num_frames: int, resolution: int, sampling: str, decoders: tuple[str, ...], clips: Clips = WHOLE
) -> tuple[Frames, Reading]:
    """Reads ``num_frames`` = F frames of the video at ``path``, or of each of its clips, as squares of R pixels.

    The frames are RGB, upright, the whole picture squeezed to a square. They are scaled by
    FFmpeg's bilinear scaler (which averages when shrinking) and turned as the file's rotation metadata asks; the two
    decoders agree to within rounding.

    Args:
        path: the video file.
        num_frames: F.
        resolution: R, in pixels.
        sampling: see `vidcls.data.sampling.frame_indices`.
        decoders: which to try, in order, out of ``decord`` and ``pyav``.
        clips: what stands for the video: of M clips all M F frames come, one clip after the other.

    Raises:
        UndecodableError: no decoder gave an intact frame.
    """
    readers = {"decord": _decode_decord, "pyav": _decode_pyav}
    complaints = []
    for name in decoders:
        try:
            return readers[name](path, num_frames, resolution, sampling, clips)
        except UndecodableError as error:
            complaints.append(f"{name}: {error}")
    raise UndecodableError("; ".join(complaints))


def _decode_decord(path: Path, num_frames: int, resolution: int, sampling: str, clips: Clips) -> tuple[Frames, Reading]:
    decord.logging.set_level(decord.logging.ERROR)
    with captured_stderr() as complaints:
        try:
            # It cannot copy frames of a few widths (8, 16, 24, 48, 72): PyAV then serves, at half the speed or less.
            # One thread each: the workers are the parallelism, and a decoder of its own threads starves the others.
            reader = decord.VideoReader(str(path), width=resolution, height=resolution, num_threads=1)
            shown = reader.get_frame_timestamp(range(len(reader)))  # [N, 2] start and end, seconds
            shown = shown.astype(np.float64)
            if not (np.diff(shown[:, 0]) > 0).all() or (np.abs(shown) > 1e9).any():
                raise ValueError("timestamps are missing or out of order")  # B-frames in AVI: it would repeat one frame
            if shown[0, 0] < 0:  # an edit list: decord counts frames that are not shown
                raise ValueError("the first frames are not to be shown")
            indices = clip_indices(shown[:, 0], float(shown[-1, 1]), num_frames, sampling, clips)
            wanted, places = np.unique(indices, return_inverse=True)  # going back, decord would seek and decode again
            frames = reader.get_batch(wanted).asnumpy()[places]
        except Exception as error:  # decord raises DECORDError, RuntimeError, IndexError and more for broken files
            raise UndecodableError(first_line(str(error), path)) from error
        noise = complaints()
    if noise:
        raise UndecodableError(first_line(noise, path))
    return frames, Reading("ok", "", "decord", round(float(shown[-1, 1] - shown[0, 0]), 6), 1.0)


def _decode_pyav(path: Path, num_frames: int, resolution: int, sampling: str, clips: Clips) -> tuple[Frames, Reading]:
    with captured_stderr() as complaints:
        try:
            track, starts = read_track(path)
            indices = clip_indices(starts, track.end_seconds, num_frames, sampling, clips)
            wanted, places = np.unique(indices, return_inverse=True)
            frames, intact = np.zeros((len(wanted), resolution, resolution, 3), np.uint8), np.zeros(len(wanted), bool)
            for place, (pixels, whole) in enumerate(ChosenFrames(path, track, starts[wanted], resolution)):
                frames[place], intact[place] = pixels, whole
        except BROKEN as error:
            raise UndecodableError(first_line(str(error), path)) from error
        noise = complaints()
    return frames[places], sum_up(path, track, int(intact[places].sum()), len(places), noise)


def sum_up(path: Path, track: Track, intact: int, asked: int, noise: str) -> Reading:
    """What PyAV made of a video: of ``asked`` frames so many are ``intact``; ``noise`` is what FFmpeg complained about.

    Raises:
        UndecodableError: none is.
    """
    reasons = []
    if intact < asked:
        reasons.append(f"{asked - intact} of {asked} frames are damaged or missing")
    if track.found < track.declared:
        reasons.append(f"the file ends early: {track.found} of {track.declared} frames are there")
    if noise:
        reasons.append(f"decoder says: {first_line(noise, path)}")
    if not intact:
        raise UndecodableError("; ".join(reasons))
    coverage = intact / asked * track.found / track.declared
    return Reading("partial" if reasons else "ok", "; ".join(reasons), "pyav", track.seconds, coverage)
