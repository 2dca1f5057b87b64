"""TensorBoard of two jobs of a sweep, in a real browser: what each tab shows is what the jobs have measured."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pytest
from helpers.commands import call, once, train
from helpers.runs import CLASSES, csv_source, metrics_of
from playwright.sync_api import Locator, expect

from experiments.screenshots.screenshots import BROWSER, browser, dashboard, open_tab

# As a sampler may have it: each has a knob that the other one lacks.
JOBS: dict[str, dict[str, Any]] = {
    "model=cnn_lstm,num_frames=4,hidden_size=4": {
        "model": "cnn_lstm",
        "data.num_frames": 4,
        "model.lstm.hidden_size": 4,
    },
    "model=cnn_mean,num_frames=2,temporal_jitter=true": {
        "model": "cnn_mean",
        "data.num_frames": 2,
        "data.temporal_jitter": True,
    },
}
RUNS = [f"{name}/tensorboard" for name in JOBS]
METRICS = ["accuracy", "auroc", "calibration_error", "loss", "macro_f1"]


@pytest.fixture
def sweep(shared: Path, tiny: list[str], demo_folder: Path) -> Path:
    """The folders of two jobs, which know no test split, evaluated on val."""

    def run(folder: Path) -> None:
        folder.mkdir()
        videos = csv_source(demo_folder, folder / "videos.csv", lambda split, label: split != "test")
        kept = [text for text in tiny if not text.startswith(("data.source", "data.num_frames", "model."))]
        for name, knobs in JOBS.items():
            job = folder / name
            job.mkdir()
            (job / "job.json").write_text(json.dumps({"knobs": knobs, "overrides": []}))
            overrides = [f"{knob}={json.dumps(value)}" for knob, value in knobs.items()]
            common = [f"data.source={videos}", "data.store.num_frames=4", "model.encoder.channels=[4,8]"]
            result = train(*kept, *common, *overrides, f"run_dir='{job}'")
            assert result.code == 0, result.stderr
            result = call("evaluate.py", f"run={job}", "split=val")
            assert result.code == 0, result.stderr

    return once(shared, "dashboard_sweep", run)


def table(cells: Locator) -> list[list[str]]:
    """The text of cells by where they are on the page: rows from above, columns from the left."""
    middles = "cells => cells.map(c => [c, c.getBoundingClientRect()]).filter(([c, box]) => box.width).map("
    middles += "([c, box]) => [Math.round(box.top + box.height / 2), box.left, c.innerText.trim()])"
    rows = defaultdict(list)
    for y, x, text in cells.evaluate_all(middles):
        rows[y].append((x, text))
    return [[text for _, text in sorted(rows[y])] for y in sorted(rows)]


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH")
def test_each_tab_shows_both_jobs(sweep: Path) -> None:
    metrics = {run: metrics_of(sweep / name)["val"] for run, name in zip(RUNS, JOBS, strict=True)}
    with dashboard(sweep) as address, browser() as page:
        page.set_viewport_size({"width": 2000, "height": 1200})  # so that no column is out of sight

        # Time series: the curve's last value is that of history.csv.
        page.goto(f"{address}?tagFilter={quote('^val/loss$')}#timeseries")
        values = page.locator("scalar-card-data-table").first
        for run, name in zip(RUNS, JOBS, strict=True):
            last = pd.read_csv(sweep / name / "history.csv")["val/loss"].iloc[-1]
            row = values.locator("tb-data-table-content-row").filter(has_text=run)
            expect(row).to_contain_text(f"{last:.5g}".rstrip("0"))

        # Scalars: its curves, by run.
        open_tab(page, address, "scalars", tagFilter="^val/loss$")
        expect(page.locator("tf-scalar-card").first).to_contain_text("val/loss")
        for run in RUNS:
            expect(page.locator("tf-runs-selector")).to_contain_text(run)

        # Custom scalars: training and validation of both runs in one chart, and nothing else.
        open_tab(page, address, "custom_scalars")
        charts = page.locator("tf-custom-scalar-multi-line-chart-card")
        expect(charts).to_have_count(2)
        for chart, name in zip(charts.all(), ("loss", "accuracy"), strict=True):
            expect(chart).to_contain_text(name.capitalize())
            chart.get_by_text("Matches (4)").click()
            for run in RUNS:
                for split in ("train", "val"):
                    expect(chart).to_contain_text(f"{split}/{name} ({run})")

        # Images: both confusion matrices, loaded.
        open_tab(page, address, "images", tagFilter="^final/val_confusion$")
        for run in RUNS:
            picture = page.locator("tf-image-loader").filter(has_text=run).filter(has_text="final/val_confusion").first
            picture.scroll_into_view_if_needed()
            expect(picture).to_be_visible()
            assert min(picture.locator("img").evaluate("img => [img.naturalWidth, img.naturalHeight]")) > 100

        # HParams: a row per job, named by what differs; the knobs of both, typed; the val figures.
        open_tab(page, address, "hparams")
        cells = page.locator("tf-hparams-table-view vaadin-grid-cell-content")
        for run in RUNS:
            expect(cells.filter(has_text=run).first).to_be_visible()
        names, *rows = table(cells)
        knobs = ["data.num_frames", "model", "data.temporal_jitter", "model.lstm.hidden_size"]
        assert names == ["Trial ID", "Show Metrics", *knobs, *(f"best/val_{name}" for name in METRICS)]
        assert [row[:6] for row in rows] == [
            [RUNS[0], "", "4.0000", "cnn_lstm", "", "4.0000"],
            [RUNS[1], "", "2.0000", "cnn_mean", "true", ""],
        ]
        for run, *_, accuracy, auroc, calibration_error, loss, macro_f1 in rows:
            shown = map(float, (accuracy, auroc, calibration_error, loss, macro_f1))
            assert list(shown) == pytest.approx([metrics[run][name] for name in METRICS], rel=1e-4)  # five digits

        # Precision-recall curves: one chart per class, with both runs.
        open_tab(page, address, "pr_curves", tagFilter="^evaluate_val/")
        for label in CLASSES:
            curves = page.locator("tf-pr-curve-card").filter(has_text=f"evaluate_val/{label}").first
            for run in RUNS:
                expect(curves).to_contain_text(f"{run} is at")
