from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.bright import make_bright
from helpers.browser import BROWSER
from helpers.commands import once
from helpers.reports import Predictions, some

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext


@pytest.fixture(scope="session")
def bright(shared: Path, finished: Path) -> Path:
    """A run with a policy whose network calls what is bright harmful and what is dark safe: it was not trained."""
    return once(shared, "bright", partial(make_bright, finished))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright  # here, as most tests of this folder do without

    if BROWSER is None:
        pytest.skip("no chromium or chrome on PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """A browser of its own, with nothing kept."""
    context = chromium.new_context()
    yield context
    context.close()


@pytest.fixture
def predictions(tmp_path: Path) -> Iterator[Predictions]:
    """Of seven videos, of every kind."""
    predictions = Predictions(tmp_path)
    some(predictions)
    yield predictions
    predictions.journal.close()
