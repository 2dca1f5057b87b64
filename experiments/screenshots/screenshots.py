"""Pictures of a sweep in TensorBoard, as Chromium shows it: python experiments/screenshots/screenshots.py SWEEP."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, sync_playwright

ROOT = Path(__file__).parents[2]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
CURVES = "^(train|val)/(loss|accuracy)$"
SIZE: ViewportSize = {"width": 1120, "height": 720}
# Room for all columns: the first one names the job, the second one holds a button.
NARROW = """table => table.shadowRoot.querySelectorAll('vaadin-grid-column').forEach((column, n) => {
    column.width = ['220px', '80px'][n] ?? '105px'; column.flexGrow = n ? 1 : 2;
})"""


@contextmanager
def dashboard(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard that has read all runs in ``folder``."""
    options = ["--port=0", "--load_fast=false", "--reload_interval=0", "--reload_task=blocking"]
    folder = folder.resolve()
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={folder.name}", "--host=localhost", *options]
    with subprocess.Popen(
        command, cwd=folder.parent, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as server:
        assert server.stderr is not None
        try:
            said = ""
            for line in server.stderr:
                said += line
                if found := re.search(r"http://localhost:\d+/", line):
                    yield found[0]
                    return
            raise RuntimeError(f"TensorBoard does not start: {said}")
        finally:
            server.kill()


@contextmanager
def browser() -> Iterator[Page]:
    """An empty page of a headless Chromium; a quarter larger than usual."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium.new_page(viewport=SIZE, device_scale_factor=1.25)
        chromium.close()


def open_tab(page: Page, address: str, tab: str, **settings: str) -> None:
    """Loads a tab of the dashboard anew, with what its address can set."""
    page.goto("about:blank")  # or another #hash alone would not load anything
    page.goto(f"{address}#{'&'.join([tab, *(f'{name}={value}' for name, value in settings.items())])}")
    page.wait_for_load_state("networkidle")


def take(page: Page, path: Path) -> None:
    """One picture, once everything is drawn."""
    page.wait_for_load_state("networkidle")
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)  # charts fade in and tabs slide
    page.screenshot(path=path)
    print(path)


def main(sweep: Path, output: Path) -> None:
    """All tabs."""
    output.mkdir(parents=True, exist_ok=True)
    with dashboard(sweep) as address, browser() as page:
        open_tab(page, address, "scalars", _smoothingWeight="0", tagFilter=CURVES)
        take(page, output / "tensorboard_scalars.png")
        open_tab(page, address, "custom_scalars", _smoothingWeight="0")
        take(page, output / "tensorboard_custom_scalars.png")
        open_tab(page, address, "images", tagFilter="final/val_confusion")
        page.get_by_text("Show actual image size").click()
        page.set_viewport_size({"width": 1400, "height": 900})  # the pictures of a run are wide
        take(page, output / "tensorboard_images.png")
        page.set_viewport_size(SIZE)
        open_tab(page, address, "pr_curves", tagFilter="evaluate_val")
        take(page, output / "tensorboard_pr_curves.png")
        open_tab(page, address, "hparams")
        page.locator("tf-hparams-query-pane").evaluate("pane => pane.parentElement.remove()")
        page.locator("tf-hparams-table-view").evaluate(NARROW)
        take(page, output / "tensorboard_hparams.png")
        page.get_by_text("Parallel coordinates view").click()
        take(page, output / "tensorboard_parallel_coordinates.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    main(**vars(parser.parse_args()))
