"""A headless Chromium or Chrome, where there is one."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSER = shutil.which("chromium") or shutil.which("chrome") or shutil.which("google-chrome")


def value(page: Page, script: str) -> Any:
    """The value of a JavaScript expression, after what was done before has been drawn."""
    return page.evaluate(f"new Promise(done => setTimeout(() => done({script}), 50))")
