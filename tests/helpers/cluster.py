"""Readers of a Ray cluster as tests want them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any


def equip(reader: type, scratch: Path) -> type:
    """Readers with what AWS libraries look for in the environment of now, and a temporary folder of their own."""
    scratch.mkdir()
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    class EquippedReader(reader):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any) -> None:
            os.environ.update(environment)
            tempfile.tempdir = str(scratch)
            super().__init__(*arguments)

    return EquippedReader
