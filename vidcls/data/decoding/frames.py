"""One video file to a stack of frames, with every damaged frame accounted for. The only file that imports decord.

decord is fast but hides damage: FFmpeg conceals broken macroblocks, and decord returns the patched frames as good
ones. FFmpeg reports them on stderr, though, so stderr is captured around every decode. What decord refuses, or what
FFmpeg reports errors for, is read again with PyAV, which knows frame by frame what is damaged. Runs in workers.
"""

from __future__ import annotations

from pathlib import Path

import av  # noqa: F401 (before decord, or PyAV would find the older libvpx and FFmpeg that decord brings)
import decord
import numpy as np

from vidcls.data.decoding.pyav import DECODE_ERRORS, ChosenFrames, Track, captured_stderr, first_line, read_track
from vidcls.data.decoding.result import DecodeResult, Frames, UndecodableError
from vidcls.data.sampling import StoreSpec, clip_indices


def decode(path: Path, spec: StoreSpec, decoders: tuple[str, ...]) -> tuple[Frames, DecodeResult]:
    """Decodes the frames of a video that ``spec`` asks for: uint8 [M * F, R, R, 3], clip after clip.

    Frames are RGB, upright, resized to R x R pixels (R = ``spec.stored_resolution``; the aspect ratio is not kept) by
    FFmpeg's bilinear scaler, which averages when it shrinks. The two decoders agree to within rounding.

    Args:
        path: the video file.
        spec: which frames, and their size.
        decoders: which to try, in order, out of ``decord`` and ``pyav``.

    Raises:
        UndecodableError: no decoder gave an intact frame.
    """
    readers = {"decord": _decode_decord, "pyav": _decode_pyav}
    reasons = []
    for name in decoders:
        try:
            return readers[name](path, spec)
        except UndecodableError as error:
            reasons.append(f"{name}: {error}")
    raise UndecodableError("; ".join(reasons))


def _decode_decord(path: Path, spec: StoreSpec) -> tuple[Frames, DecodeResult]:
    decord.logging.set_level(decord.logging.ERROR)
    size = spec.stored_resolution
    with captured_stderr() as ffmpeg_errors:
        try:
            # decord cannot copy frames of a few widths (8, 16, 24, 48, 72): PyAV reads those, at half the speed.
            # One thread each: the workers run in parallel, and threads of one decoder would slow the others down.
            reader = decord.VideoReader(str(path), width=size, height=size, num_threads=1)
            shown = reader.get_frame_timestamp(range(len(reader)))  # [N, 2] start and end, seconds
            shown = shown.astype(np.float64)
            if not (np.diff(shown[:, 0]) > 0).all() or (np.abs(shown) > 1e9).any():
                raise ValueError("timestamps are missing or out of order")  # B-frames in AVI: it would repeat a frame
            if shown[0, 0] < 0:  # an edit list: decord counts frames that are not shown
                raise ValueError("the first frames are not to be shown")
            indices = clip_indices(shown[:, 0], float(shown[-1, 1]), spec)
            wanted, places = np.unique(indices, return_inverse=True)  # going back, decord would seek and decode again
            frames = reader.get_batch(wanted).asnumpy()[places]
        except Exception as error:  # decord raises DECORDError, RuntimeError, IndexError and more for broken files
            raise UndecodableError(first_line(str(error), path)) from error
        errors = ffmpeg_errors()
    if errors:
        raise UndecodableError(first_line(errors, path))
    return frames, DecodeResult("ok", "", "decord", round(float(shown[-1, 1] - shown[0, 0]), 6), 1.0)


def _decode_pyav(path: Path, spec: StoreSpec) -> tuple[Frames, DecodeResult]:
    size = spec.stored_resolution
    with captured_stderr() as ffmpeg_errors:
        try:
            track, starts = read_track(path)
            indices = clip_indices(starts, track.end_seconds, spec)
            wanted, places = np.unique(indices, return_inverse=True)
            frames, intact = np.zeros((len(wanted), size, size, 3), np.uint8), np.zeros(len(wanted), bool)
            for place, (pixels, whole) in enumerate(ChosenFrames(path, track, starts[wanted], size)):
                frames[place], intact[place] = pixels, whole
        except DECODE_ERRORS as error:
            raise UndecodableError(first_line(str(error), path)) from error
        errors = ffmpeg_errors()
    return frames[places], summarise_decode(path, track, int(intact[places].sum()), len(places), errors)


def summarise_decode(path: Path, track: Track, intact: int, requested: int, ffmpeg_errors: str) -> DecodeResult:
    """The result of reading a video with PyAV.

    Args:
        path: the video file.
        track: from `read_track`.
        intact: how many of the requested frames are intact.
        requested: how many frames were requested.
        ffmpeg_errors: what FFmpeg wrote on stderr.

    Raises:
        UndecodableError: no frame is intact.
    """
    reasons = []
    if intact < requested:
        reasons.append(f"{requested - intact} of {requested} frames are damaged or missing")
    if track.found < track.declared:
        reasons.append(f"the file ends early: {track.found} of {track.declared} frames are there")
    if ffmpeg_errors:
        reasons.append(f"FFmpeg reports: {first_line(ffmpeg_errors, path)}")
    if not intact:
        raise UndecodableError("; ".join(reasons))
    coverage = intact / requested * track.found / track.declared
    return DecodeResult("partial" if reasons else "ok", "; ".join(reasons), "pyav", track.seconds, coverage)
