"""Damaged files of every format, through both ways of decoding: each gets an honest status with a reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from experiments.torture import media
from vidcls.data.options import DecodeLimits

COUNT = 130


def test_damaged_files_have_an_honest_status_and_a_reason(originals: list[Path], tmp_path: Path) -> None:
    files = media.write_damaged(originals, tmp_path, range(COUNT), seed=1)
    limits = DecodeLimits(workers=2, timeout_seconds=20)
    found = list(media.check(files, originals * (COUNT // len(originals)), tmp_path, limits))
    counts = Counter(counted for counted, _ in found)
    for way in ("whole", "windows"):
        statuses = {status: counts[f"{way}: {status}"] for status in ("ok", "partial", "undecodable")}
        assert sum(statuses.values()) == COUNT and min(statuses.values()) > 10, statuses
    assert not [problem for _, problem in found if problem]
