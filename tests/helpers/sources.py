"""Folders and zips of files that a source lists, and what is found there."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidcls.data.archive import unpack
from vidcls.data.options import DataOptions
from vidcls.data.sources import Listing, list_videos

PATTERN = r"(?P<creator>.+)_[^_]+"


def make(root: Path, *paths: str) -> Path:
    """Small files at ``paths``; a listing opens none of them."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode("utf-8", "surrogateescape"))
    return root


def zip_of(folder: Path, archive: Path, wrapper: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in sorted(folder.rglob("*")):
            zipped.write(file, Path(wrapper) / file.relative_to(folder))
    return archive


def listed(source: Path, classes: Sequence[str] | None = None, pattern: str = PATTERN, cache: str = "cache") -> Listing:
    options = DataOptions(str(source), str(source.parent / cache), classes=classes, creator_pattern=pattern)
    return list_videos(options, classes, unpacked=unpack(options))


def rows(listing: Listing, *columns: str) -> list[Any]:
    return [tuple(row) for row in listing.videos[list(columns or ("path", "label", "split"))].itertuples(index=False)]
