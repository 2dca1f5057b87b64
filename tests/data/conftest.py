"""The data set that tests of the data module share."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.datasets import LAYOUT, draw


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos in the original's layout, each of its own creator, with strays beside them. Copy it to change it."""
    root = tmp_path_factory.mktemp("source")
    number = 0
    for split, classes in LAYOUT.items():
        for label, count in classes.items():
            for _ in range(count):
                draw(root / "rtp" / split / label / f"creator{number}_700{number}.mp4", number)
                number += 1
    (root / "rtp" / "train" / ".DS_Store").write_bytes(b"\0")
    (root / "rtp" / "notes.txt").write_text("by hand")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests: what one has decoded the others find."""
    return tmp_path_factory.mktemp("cache")
