"""A reviewer by script: decides on the page of predict.py in headless Chromium, by keys, as a person would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import sync_playwright


def review_page(
    chromium: str, report: Path, reviewer: str, answer: Callable[[str], str], count: int, decisions: Path
) -> None:
    """Gives the first ``count`` videos of the queue the class that ``answer`` says of their path; exports decisions."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(report.resolve().as_uri())
        page.get_by_role("button", name="Review videos").press("Enter")
        page.keyboard.type(reviewer)
        page.keyboard.press("Enter")
        classes = page.evaluate("page.labels")
        for _ in range(count):
            path = page.locator("#title").inner_text()
            page.keyboard.press(str(1 + classes.index(answer(path))))
        with page.expect_download() as download:
            page.locator(".export").filter(visible=True).last.press("Enter")
        download.value.save_as(decisions)
        assert page.page_errors() == []
        browser.close()
