"""Decodes a video file to a stack of frames, and detects damaged frames. The only file that imports decord.

decord is fast but hides damage: FFmpeg conceals broken macroblocks, and decord returns the patched frames as good
ones. FFmpeg reports them on stderr, though, so stderr is captured around every decode. decord reads H.264 in mp4 and
Matroska with seekable key frames; PyAV reads everything else, what decord refuses, and what FFmpeg reports errors for.
"""

from pathlib import Path

import av  # noqa: F401 (before decord, or PyAV would find the older libvpx and FFmpeg that decord brings)
import decord
import numpy as np
from jaxtyping import Float, Int

from vidcls.data.decoding.pyav import ChosenFrames
from vidcls.data.decoding.result import DecodeResult, Frames, UndecodableError, summarise
from vidcls.data.decoding.track import Scan, Track, decoding, first_line, scan
from vidcls.data.sampling import StoreSpec, clip_indices

# How mp4 and Matroska begin: decord's FFmpeg, which has no list of allowed formats, never takes these for text.
SIGNATURES = (b"\0", b"\x1aE\xdf\xa3")
CLOCK_SECONDS = 2e-3  # how far decord's timestamps, in single precision, may be off


def decode(
    path: Path, spec: StoreSpec, decoders: tuple[str, ...], found: Scan | None = None
) -> tuple[Frames, DecodeResult]:
    """Decodes the frames that ``spec`` selects: uint8 [M * F, R, R, 3], clip by clip.

    Frames are RGB, upright, resized to R x R pixels (R = ``spec.stored_resolution``; the aspect ratio is not kept) by
    FFmpeg's bilinear scaler, which averages when it shrinks. The two decoders agree within rounding. A file that has
    been scanned is not read again.

    Raises:
        UndecodableError: no decoder gave an intact frame.
    """
    track, starts, _, errors = found or scan(path)
    indices = clip_indices(starts, track.end_seconds, spec)
    wanted, inverse = np.unique(indices, return_inverse=True)  # in order: a decoder would have to seek back otherwise
    failures = []
    for decoder in decoders:
        try:
            if decoder == "pyav":
                return _decode_pyav(path, spec.stored_resolution, track, starts[wanted], inverse, errors)
            if track.decord and not track.reasons and not errors:
                frames = decode_decord(path, spec.stored_resolution, starts, wanted)
                return frames[inverse], summarise([], "decord", track.seconds, 1.0)
        except UndecodableError as error:
            failures.append(str(error))
    raise UndecodableError("; ".join(failures) or "decord reads only upright H.264 in mp4 and Matroska")


def decode_decord(path: Path, side: int, starts: Float[np.ndarray, " N"], wanted: Int[np.ndarray, " W"]) -> Frames:
    """The frames ``wanted`` [W, R, R, 3] of a video with frames at ``starts``; decord itself scales and rotates them.

    Raises:
        UndecodableError: decord or FFmpeg reports an error, or decord finds other frames.
    """
    decord.logging.set_level(decord.logging.ERROR)
    with decoding(path, "decord") as ffmpeg_errors:
        with path.open("rb") as file:
            if not file.read(4).startswith(SIGNATURES):
                raise ValueError("neither mp4 nor Matroska")
        # decord cannot copy frames of a few widths (8, 16, 24, 48, 72): PyAV reads those, at half the speed.
        # One thread each: the workers run in parallel, and threads of one decoder would slow the others down.
        reader = decord.VideoReader(str(path.absolute()), width=side, height=side, num_threads=1)
        shown = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)  # seconds
        if len(shown) != len(starts) or np.abs(shown - shown[0] - starts + starts[0]).max() > CLOCK_SECONDS:
            raise ValueError("other frames or timestamps than the file's")
        frames: Frames = reader.get_batch(wanted).asnumpy()
        if errors := ffmpeg_errors():
            raise ValueError(errors)
    return frames


def _decode_pyav(
    path: Path, side: int, track: Track, times: Float[np.ndarray, " W"], inverse: Int[np.ndarray, " F"], errors: str
) -> tuple[Frames, DecodeResult]:
    frames, intact = np.zeros((len(times), side, side, 3), np.uint8), np.zeros(len(times), bool)
    with decoding(path, "pyav") as ffmpeg_errors:
        for index, (pixels, whole) in enumerate(ChosenFrames(path, track, times, side)):
            frames[index], intact[index] = pixels, whole
        errors = errors or ffmpeg_errors()
        return frames[inverse], summarise_decode(path, track, int(intact[inverse].sum()), len(inverse), errors)


def summarise_decode(path: Path, track: Track, intact: int, requested: int, ffmpeg_errors: str) -> DecodeResult:
    """The result of a video read with PyAV, by its number of intact frames; raises `UndecodableError` for 0."""
    reasons = list(track.reasons)
    if intact < requested:
        reasons.insert(0, f"{requested - intact} of {requested} frames are damaged or missing")
    if ffmpeg_errors:
        reasons.append(f"FFmpeg reports: {first_line(ffmpeg_errors, path)}")
    if not intact:
        raise UndecodableError("; ".join(reasons))
    return summarise(reasons, "pyav", track.seconds, intact / requested * track.coverage)
