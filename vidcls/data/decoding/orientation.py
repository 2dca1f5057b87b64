"""How players rotate and mirror frames: by a display matrix (ISO/IEC 14496-12) or a message in H.264."""

import struct
from contextlib import suppress
from typing import NamedTuple

import av
from av.sidedata.sidedata import SideData


class Orientation(NamedTuple):
    """Frames are first mirrored left and right, then rotated."""

    degrees: int = 0  # counter-clockwise
    mirrored: bool = False
    filters: tuple[tuple[str, str | None], ...] = ()  # of FFmpeg, that do both


AS_STORED = Orientation()
# By the integer matrix [[a, b], [c, d]], which moves the pixel (x, y) to (a x + c y, b x + d y).
_ORIENTATIONS = {
    (0, -1, 1, 0): Orientation(90, False, (("transpose", "cclock"),)),
    (-1, 0, 0, -1): Orientation(180, False, (("hflip", None), ("vflip", None))),
    (0, 1, -1, 0): Orientation(270, False, (("transpose", "clock"),)),
    (-1, 0, 0, 1): Orientation(0, True, (("hflip", None),)),
    (0, 1, 1, 0): Orientation(90, True, (("transpose", "cclock_flip"),)),
    (1, 0, 0, -1): Orientation(180, True, (("vflip", None),)),
    (0, -1, -1, 0): Orientation(270, True, (("transpose", "clock_flip"),)),
}


SEI = 6  # the type of H.264 units that hold messages
DISPLAY_ORIENTATION = 47  # the type of messages with a rotation (ITU-T H.264, D.1)


def says_orientation(messages: bytes) -> bool:
    """Whether the messages in an SEI unit of H.264 include a rotation."""
    rest = messages.replace(b"\0\0\3", b"\0\0")  # removes emulation prevention bytes
    while len(rest) > 2:
        values = []
        for _ in ("kind", "size"):
            more = len(rest) - len(rest.lstrip(b"\xff"))
            values.append(255 * more + int.from_bytes(rest[more : more + 1]))
            rest = rest[more + 1 :]
        if values[0] == DISPLAY_ORIENTATION:
            return True
        rest = rest[values[1] :]
    return False


def orientation(frame: av.VideoFrame, before: Orientation = AS_STORED) -> Orientation:
    """The orientation of a decoded frame; `AS_STORED` for rotations by other than right angles.

    A frame without one has that of the frame ``before``: H.264 and HEVC may state it in some frames only.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return before
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    unit = max(map(abs, (a, b, c, d))) or 1
    return _ORIENTATIONS.get((round(a / unit), round(b / unit), round(c / unit), round(d / unit)), AS_STORED)


def first_orientation(packet: av.Packet) -> Orientation | None:
    """The orientation of the frame in a key frame's packet; None if it cannot be decoded. Resets the decoder."""
    context = packet.stream.codec_context
    with suppress(av.FFmpegError):
        for frame in packet.decode() or context.decode(None):
            return orientation(frame)
    return None
