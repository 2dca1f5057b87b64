"""MPEG transport and program streams: lost packets and late video tracks, which FFmpeg does not report."""

import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

SYNC = 0x47  # the first byte of each packet
# Bytes from one packet to the next, and before the first: of plain streams, M2TS and DVB.
LAYOUTS = ((188, 0), (192, 4), (204, 0))
PACKETS_AT_ONCE = 8192
BYTES_AT_ONCE = 2**20
START = b"\0\0\1"
VIDEO_PACKET = re.compile(START + rb"([\xe0-\xef])(..)", re.DOTALL)  # one of 16 tracks, and the length of what follows


def read_transport_stream(path: Path, stream: int) -> tuple[int, set[int]]:
    """The number of gaps and of damaged packets in the stream with the identifier ``stream``, and all video streams.

    Packets of a stream have counters from 0 to 15 (ISO/IEC 13818-1, 2.4.3.3), so that a loss of 16 packets does not
    show. Gaps that the stream announces do not count. Where packets lose their alignment, that is one gap, and reading
    ends; so is a part of a packet at the end.
    """
    gaps, last, videos = 0, None, set[int]()
    with path.open("rb") as file:
        head = file.read(2 * max(LAYOUTS)[0])
        fits = [(size, skip) for size, skip in LAYOUTS if {head[skip : skip + 1], head[size + skip :][:1]} == {b"\x47"}]
        if not fits:
            return 1, videos
        size, skip = fits[0]
        file.seek(0)
        while chunk := file.read(size * PACKETS_AT_ONCE):
            gaps += len(chunk) % size > 0
            packets = np.frombuffer(chunk[: len(chunk) // size * size], np.uint8).reshape(-1, size)[:, skip:]
            if (packets[:, 0] != SYNC).any():  # bytes are missing, or too many
                return gaps + 1, videos
            identifiers = (packets[:, 1] & 0x1F).astype(np.int32) << 8 | packets[:, 2]
            videos |= set(identifiers[_begin_pictures(packets)].tolist())
            own = packets[identifiers == stream]
            gaps += int((own[:, 1] >= 0x80).sum())
            own = own[own[:, 3] & 0x10 > 0]  # others carry no payload and are not counted
            if not len(own):
                continue
            announced = (own[:, 3] & 0x20 > 0) & (own[:, 4] > 0) & (own[:, 5] >= 0x80)
            counters = own[:, 3].astype(np.int32) & 15
            steps = np.diff(counters, prepend=counters[0] - 1 if last is None else last) % 16
            gaps += int((~announced & (steps > 1)).sum())  # a packet may come twice
            last = counters[-1]
    return gaps, videos


def _begin_pictures(packets: UInt8[np.ndarray, "P _"]) -> np.ndarray:
    """The indices of the packets with which pictures begin."""
    starts = np.flatnonzero((packets[:, 1] & 0xC0 == 0x40) & (packets[:, 3] & 0xD0 == 0x10))  # intact, not encrypted
    fields = np.where(packets[starts, 3] & 0x20, packets[starts, 4].astype(np.int32) + 1, 0)  # before the content
    starts, fields = starts[fields < 180], fields[fields < 180]
    codes = packets[starts[:, None], 4 + fields[:, None] + np.arange(4)]
    return starts[(codes[:, :3] == (0, 0, 1)).all(axis=1) & (codes[:, 3] & 0xF0 == 0xE0)]


def read_program_stream(path: Path) -> set[int]:
    """The video streams of a program stream, by the identifiers that FFmpeg gives them."""
    videos, rest = set[int](), b""
    with path.open("rb") as file:
        while chunk := file.read(BYTES_AT_ONCE):
            content = rest + chunk
            for found in VIDEO_PACKET.finditer(content):
                end = found.end() + int.from_bytes(found[2])
                if START.startswith(content[end : end + 3]):  # a packet follows, unlike after a match inside audio
                    videos.add(0x100 + found[1][0])
            rest = content[-5:]
    return videos
