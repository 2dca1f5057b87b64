"""What a person does on the page of predict.py, by keyboard."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from playwright.sync_api import BrowserContext, Page, expect


def opened(context: BrowserContext, url: str, name: str | None = None) -> Page:
    page = context.new_page()
    page.goto(url)
    if name:
        start(page, name)
    return page


def start(page: Page, name: str | None = None) -> None:
    page.get_by_role("button", name="Review videos").press("Enter")
    if name:
        page.keyboard.type(name)
        page.keyboard.press("Enter")


def keys(page: Page, *names: str) -> None:
    for name in names:
        page.keyboard.press(name)


def title(page: Page) -> str:
    """Of the video that is shown; the focus is there after each step, so that a screen reader reads it."""
    assert page.evaluate("document.activeElement.id") == "title"
    return page.locator("#title").inner_text()


def said(page: Page) -> str:
    return page.get_by_role("status").filter(visible=True).last.inner_text()


def alerts(page: Page) -> set[str]:
    return {*page.get_by_role("alert").filter(visible=True).all_inner_texts()}


def is_pressed(page: Page, name: str) -> None:
    button = page.get_by_role("dialog").get_by_role("button", name=name, exact=True)
    expect(button).to_have_attribute("aria-pressed", "true")


def export(page: Page, path: Path) -> Path:
    with page.expect_download() as download:
        page.locator(".export").filter(visible=True).last.press("Enter")
    download.value.save_as(path)
    return path


def choose(page: Page, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import decisions.csv").press("Enter")
    chooser.value.set_files(path)


def short(table: pd.DataFrame) -> dict[str, tuple[str, str, str]]:
    return {row.path: (row.verdict, row.label, row.note) for row in table.itertuples()}
