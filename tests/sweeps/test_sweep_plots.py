"""The plots of sweeps written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.written_sweeps import FRAMES, HIDDEN, SIZE, Writer, report, sampled
from PIL import Image

from vidcls.sweeps.sweep_report import sweep_figures
from vidcls.sweeps.tables import (
    Sweep,
    rank,
    read_sweep,
)


def draw(sweep: Sweep) -> dict[str, Any]:
    return sweep_figures(sweep, rank(sweep))


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_heatmaps_put_frames_and_resolution_on_the_axes(tmp_path: Path) -> None:
    writer = Writer(tmp_path, [HIDDEN, SIZE, FRAMES, "seed"], planned=16)
    for hidden in (32, 64):
        for size in (64, 112):
            for frames in (8, 16):
                for seed in (0, 1):
                    if (hidden, size, frames) != (64, 112, 16):
                        writer.done({HIDDEN: hidden, SIZE: size, FRAMES: frames, "seed": seed}, (hidden + frames) / 100)
    writer.job({HIDDEN: 64, SIZE: 112, FRAMES: 16, "seed": 0})
    figure = draw(read_sweep(tmp_path)).get("heatmap")
    assert figure is not None
    one, other, bar = figure.axes
    assert labels(one) == ["0.400", "0.480"] * 2
    assert labels(other) == ["0.720", "0.800", "0.720", "–"]  # noqa: RUF001
    assert (one.get_title("left"), other.get_title("left")) == ("hidden_size=32", "hidden_size=64")
    assert [text.get_text() for text in one.get_xticklabels()] == ["8", "16"]
    assert bar.get_ylim() == pytest.approx((0.4, 0.8)) and one.images[0].norm is other.images[0].norm


def test_heatmaps_need_two_options_with_several_values(ragged: Writer, tmp_path: Path) -> None:
    assert draw(read_sweep(sampled(tmp_path / "study").folder)).get("heatmap") is None
    one = Writer(tmp_path / "one", [FRAMES, SIZE, "seed"], planned=1)
    one.done({FRAMES: 8, SIZE: 64, "seed": 0}, 0.5)
    assert draw(read_sweep(one.folder)).get("heatmap") is None


def test_the_other_options_are_averaged_where_panels_would_be_too_many(tmp_path: Path) -> None:
    options = [FRAMES, SIZE, HIDDEN, "optim.step"]
    writer = Writer(tmp_path, options, planned=None)
    for place in range(12):
        writer.done({FRAMES: place % 2, SIZE: place // 6, HIDDEN: place, "optim.step": place % 3}, 0.5)
    figure = draw(read_sweep(tmp_path)).get("heatmap")
    assert figure is not None and len(figure.axes) == 12 + 1
    assert "means over step" in figure.get_supxlabel()


def test_effects_show_each_job_and_the_means(grid: Writer, tmp_path: Path) -> None:
    figure, study = (
        draw(read_sweep(folder)).get("effects") for folder in (grid.folder, sampled(tmp_path / "study").folder)
    )
    assert figure is not None and study is not None
    panels = figure.axes
    assert [axes.get_title("left") for axes in panels] == [FRAMES, HIDDEN, "seed"]
    dots, means = panels[0].lines[:-1], panels[0].lines[-1]
    assert sum(len(np.asarray(line.get_ydata())) for line in dots) == 8
    assert list(np.asarray(means.get_ydata())) == pytest.approx([0.55, 0.65])
    rate, model = study.axes
    assert rate.get_xscale() == "log" and len(rate.lines) == 1
    assert [text.get_text() for text in model.get_xticklabels()] == ["cnn_lstm", "cnn_mean"]


def test_the_front_is_labelled_with_its_ranks(grid: Writer) -> None:
    sweep = read_sweep(grid.folder)
    figure = draw(sweep).get("pareto")
    assert figure is not None
    (axes,) = figure.axes
    assert sorted(labels(axes)) == ["#1", "#2"]  # 16 ms at 0.7 and 8 ms at 0.6
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any("num_frames=8, hidden_size=64: 0.600 at 8 ms" in text for text in key)


def test_without_a_known_cost_there_is_no_front(tmp_path: Path) -> None:
    writer = Writer(tmp_path, [FRAMES], planned=1)
    writer.done({FRAMES: 8}, 0.5, speed=0.0)
    sweep = read_sweep(tmp_path)
    assert draw(sweep).get("pareto") is None


def test_curves_are_means_over_seeds_and_include_the_unfinished(ragged: Writer) -> None:
    sweep = read_sweep(ragged.folder)
    figure = draw(sweep).get("curves")
    assert figure is not None
    loss, _ = figure.axes
    assert sorted((len(np.asarray(line.get_xdata())), line.get_linestyle()) for line in loss.lines) == [
        (2, "--"),
        (4, "-"),
        (4, "-"),
    ]
    assert all(list(np.asarray(line.get_ydata()))[:2] == [1.0, 0.5] for line in loss.lines)
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    assert key[0].startswith("#1") and key[2].endswith("(unfinished)")


@pytest.mark.pictures
def test_nothing_is_cut_off_at_the_edge_with_long_names(tmp_path: Path) -> None:
    options = [
        "model.encoder.an_extraordinarily_long_name_of_an_option",
        "callbacks.stopping.another_very_long_name",
        FRAMES,
    ]
    writer = Writer(tmp_path, options, planned=8)
    for place in range(8):
        values = ("a_long_value_for_once", "[32, 64, 128, 256]")[place // 4], place // 2 % 2 == 0, 8 * (place % 2 + 1)
        writer.done(dict(zip(options, values, strict=True)), 0.5 + place / 100, speed=10 + place % 3)
    assert report(tmp_path).code == 0
    for name in ("effects", "heatmap", "pareto", "curves"):
        picture = np.asarray(Image.open(tmp_path / "report" / f"{name}.png").convert("RGB"))
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (border == 255).all(), name
