from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from helpers.bright import make_bright
from helpers.commands import once


@pytest.fixture(scope="session")
def bright(shared: Path, finished: Path) -> Path:
    """A run with a policy whose network calls what is bright harmful and what is dark safe: it was not trained."""
    return once(shared, "bright", partial(make_bright, finished))
