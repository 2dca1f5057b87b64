"""Here decode workers start as they do for users."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from unittest.mock import patch

import pytest


@pytest.fixture(scope="session", autouse=True)
def decode_workers_start_at_once() -> Iterator[None]:
    with patch("vidcls.data.decoding.pool.get_context", multiprocessing.get_context):
        yield
