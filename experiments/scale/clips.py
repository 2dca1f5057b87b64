"""Many distinct videos from a few real ones, some of them damaged."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from experiments.tools import needed_clips


def make_clips(folder: Path, count: int, damaged: int = 0, seed: int = 0) -> None:
    """``count`` copies of the real clips, no two with the same bytes, ``damaged`` of them cut off, overwritten or text.

    A copy ends in an empty box of ISO BMFF with its number, which decoders skip.
    """
    clips, generator = sorted(needed_clips().rglob("*.mp4")), random.Random(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        content = bytearray(clips[number % len(clips)].read_bytes())
        if number < damaged:
            place = generator.randrange(len(content) // 4, len(content))
            kind = number % 3
            if kind == 0:
                del content[place:]
            elif kind == 1:
                content[place : place + 2000] = generator.randbytes(len(content[place : place + 2000]))
            else:
                content = bytearray(b"no video")
        content += struct.pack(">I4sQ", 16, b"free", number)
        (folder / f"{number:06}.mp4").write_bytes(content)
