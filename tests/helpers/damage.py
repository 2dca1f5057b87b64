"""What may happen to a file on a disk."""

from __future__ import annotations

from pathlib import Path


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
