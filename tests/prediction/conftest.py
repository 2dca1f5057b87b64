from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from helpers.bright import make_bright
from helpers.commands import once
from helpers.reports import Predictions, some


@pytest.fixture(scope="session")
def bright(shared: Path, finished: Path) -> Path:
    """A run with a policy whose network calls what is bright harmful and what is dark safe: it was not trained."""
    return once(shared, "bright", partial(make_bright, finished))


@pytest.fixture
def predictions(tmp_path: Path) -> Iterator[Predictions]:
    """Of seven videos, of every kind."""
    predictions = Predictions(tmp_path)
    some(predictions)
    yield predictions
    predictions.journal.close()
