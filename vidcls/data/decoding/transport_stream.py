"""Packets that an MPEG transport stream has lost: FFmpeg joins what is left without a word."""

from pathlib import Path

import numpy as np

SYNC = 0x47  # the first byte of each packet
# Bytes from one packet to the next, and before the first: of plain streams, M2TS and DVB.
LAYOUTS = ((188, 0), (192, 4), (204, 0))
PACKETS_AT_ONCE = 8192


def count_gaps(path: Path, stream: int) -> int:
    """How often packets of the stream with the identifier ``stream`` are missing or marked as damaged.

    Packets of a stream are counted from 0 to 15 and again (ISO/IEC 13818-1, 2.4.3.3). A gap is not counted where the
    stream itself announces it; of 16 lost packets, or 32, nothing shows. Where packets do not follow each other at the
    right distance that is one gap, and nothing behind it is read.
    """
    gaps, last = 0, None
    with path.open("rb") as file:
        head = file.read(2 * max(LAYOUTS)[0])
        fits = [(size, skip) for size, skip in LAYOUTS if {head[skip : skip + 1], head[size + skip :][:1]} == {b"\x47"}]
        if not fits:
            return 1
        size, skip = fits[0]
        file.seek(0)
        while chunk := file.read(size * PACKETS_AT_ONCE):
            packets = np.frombuffer(chunk[: len(chunk) // size * size], np.uint8).reshape(-1, size)[:, skip:]
            if (packets[:, 0] != SYNC).any():  # bytes are missing, or too many
                return gaps + 1
            own = packets[((packets[:, 1] & 0x1F).astype(np.int32) << 8 | packets[:, 2]) == stream]
            gaps += int((own[:, 1] >= 0x80).sum())
            own = own[own[:, 3] & 0x10 > 0]  # others carry no payload and are not counted
            if not len(own):
                continue
            announced = (own[:, 3] & 0x20 > 0) & (own[:, 4] > 0) & (own[:, 5] >= 0x80)
            counters = own[:, 3].astype(np.int32) & 15
            steps = np.diff(counters, prepend=counters[0] - 1 if last is None else last) % 16
            gaps += int((~announced & (steps > 1)).sum())  # a packet may come twice
            last = counters[-1]
    return gaps
