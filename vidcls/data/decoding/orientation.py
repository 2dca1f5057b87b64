"""How players turn and mirror the frames of a video: its display matrix (ISO/IEC 14496-12)."""

import struct
from contextlib import suppress
from typing import NamedTuple

import av
from av.sidedata.sidedata import SideData


class Orientation(NamedTuple):
    """Frames are first mirrored left and right, then turned."""

    degrees: int = 0  # counter-clockwise
    mirrored: bool = False
    filters: tuple[tuple[str, str | None], ...] = ()  # those of ffmpeg that do it


AS_STORED = Orientation()
# By the matrix [[a, b], [c, d]] of whole numbers, which puts the pixel (x, y) at (a x + c y, b x + d y).
_ORIENTATIONS = {
    (0, -1, 1, 0): Orientation(90, False, (("transpose", "cclock"),)),
    (-1, 0, 0, -1): Orientation(180, False, (("hflip", None), ("vflip", None))),
    (0, 1, -1, 0): Orientation(270, False, (("transpose", "clock"),)),
    (-1, 0, 0, 1): Orientation(0, True, (("hflip", None),)),
    (0, 1, 1, 0): Orientation(90, True, (("transpose", "cclock_flip"),)),
    (1, 0, 0, -1): Orientation(180, True, (("vflip", None),)),
    (0, -1, -1, 0): Orientation(270, True, (("transpose", "clock_flip"),)),
}


def orientation(frame: av.VideoFrame) -> Orientation:
    """How players show a decoded frame; one that they turn by other than right angles counts as it is stored."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return AS_STORED
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    unit = max(map(abs, (a, b, c, d))) or 1
    return _ORIENTATIONS.get((round(a / unit), round(b / unit), round(c / unit), round(d / unit)), AS_STORED)


def first_orientation(packet: av.Packet) -> Orientation | None:
    """How players show the frame in a key frame's packet, or None if it cannot be decoded; resets the decoder."""
    context = packet.stream.codec_context
    with suppress(av.FFmpegError):
        for frame in packet.decode() or context.decode(None):
            return orientation(frame)
    return None
