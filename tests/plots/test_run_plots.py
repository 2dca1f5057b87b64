"""Figures are drawn from known tables and read back: their texts, their pixels, their files."""

from __future__ import annotations

import math
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import ROOT
from matplotlib.figure import Figure
from PIL import Image

from vidcls.metrics.calibration import reliability
from vidcls.metrics.curves import Curve, precision_recall_curves, roc_curves
from vidcls.plots.run_plots import (
    confusion_figure,
    learning_curves_figure,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
    strips_figure,
)
from vidcls.plots.style import save_figure

pytestmark = pytest.mark.pictures


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def pixels(figure: Figure, path: Path) -> np.ndarray:
    save_figure(figure, path)
    return np.asarray(Image.open(path).convert("RGB"))


def blank_border(picture: np.ndarray) -> bool:
    """Whether nothing is cut off at the edge."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    return bool((border == 255).all())


def test_confusion_shows_every_count_and_its_share() -> None:
    figure = confusion_figure([[8, 2], [1, 3]], ["safe", "harmful"], "val")
    assert texts(figure) == ["8\n80%", "2\n20%", "1\n25%", "3\n75%"]
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == ["safe (n=10)", "harmful (n=4)"]


def test_confusion_of_a_class_without_videos_has_no_share() -> None:
    figure = confusion_figure([[1, 0, 0], [0, 0, 0], [0, 1, 0]], ["a", "b", "c"], "val")
    assert texts(figure)[3:6] == ["0\n–"] * 3  # noqa: RUF001


def test_confusion_refuses_a_table_of_another_size() -> None:
    with pytest.raises(ValueError, match="expected a 2 x 2 table for 2 classes; got shape"):
        confusion_figure([[1, 2, 3]], ["a", "b"], "val")


@pytest.mark.parametrize("k", [2, 20])
def test_confusion_fits_its_picture(k: int, tmp_path: Path) -> None:
    names = [f"a class with quite a long name {i}" for i in range(k)]
    picture = pixels(confusion_figure(np.eye(k, dtype=int).tolist(), names, "test"), tmp_path / "x.png")
    assert 900 <= picture.shape[1] <= 1400
    assert blank_border(picture)
    assert picture.std() > 5


def test_confusion_writes_white_on_dark_and_black_on_light() -> None:
    figure = confusion_figure([[10, 0], [5, 5]], ["a", "b"], "val")
    assert [text.get_color() for text in figure.axes[0].texts] == ["white", "black", "black", "black"]


def test_strips_show_the_frames_themselves_in_order() -> None:
    video = np.repeat(np.arange(20, dtype=np.uint8)[:, None, None, None] * 10, 16, axis=1).repeat(16, 2).repeat(3, 3)
    figure = strips_figure([video], ["clip.mp4: safe taken for harmful (0.98)"], "worst")
    strip = figure.axes[0].images[0].get_array()
    shown = [int(strip[0, column * 17, 0]) for column in range(8)]  # 16 pixels and a gutter of one
    assert shown == [10, 30, 60, 80, 110, 130, 160, 180]
    assert figure.axes[0].get_title(loc="left") == "clip.mp4: safe taken for harmful (0.98)"


def test_strips_without_videos_say_so(tmp_path: Path) -> None:
    figure = strips_figure([], [], "worst")
    assert [text.get_text() for text in figure.texts] == ["worst", "no videos"]
    assert pixels(figure, tmp_path / "x.png").std() > 1


def test_strips_cut_a_long_caption_in_its_middle() -> None:
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    caption = "train/fight/" + "x" * 200 + ".mp4: safe taken for harmful (0.98)"
    shown = strips_figure([frames], [caption], "worst").axes[0].get_title(loc="left")
    assert len(shown) == 100
    assert shown.startswith("train/fight/")
    assert shown.endswith("(0.98)")


def test_strips_of_all_lengths_and_shapes_keep_their_shape_and_fit(tmp_path: Path) -> None:
    videos = [np.full((t, h, w, 3), 100, np.uint8) for t, h, w in [(1, 64, 64), (3, 192, 108), (20, 90, 160)]]
    figure = strips_figure(videos, ["0" * 300] * 3, "0" * 300)
    assert blank_border(pixels(figure, tmp_path / "x.png"))
    tops = []
    for axes, (height, width) in zip(figure.axes, [(64, 64), (192, 108), (90, 160)], strict=True):
        box, strip = axes.get_window_extent(), axes.images[0].get_array()
        # Eight columns, however short the video, and seven gutters.
        assert strip.shape == (height, 8 * width + 7 * round(0.04 * width), 3)
        assert box.width / box.height == pytest.approx(strip.shape[1] / strip.shape[0])
        tops.append(box.y1)
    assert tops == sorted(tops, reverse=True)


def test_strips_refuse_a_video_without_frames() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        strips_figure([np.zeros((0, 8, 8, 3), np.uint8)], ["clip.mp4"], "worst")


@pytest.mark.parametrize("name", ["cost $5 or $\\frac$ 6", "日本語", "two\nlines\tand more", "broken \udcff byte"])
def test_names_that_a_formula_or_a_font_would_choke_on_are_drawn(name: str, tmp_path: Path) -> None:
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that the font lacks
        assert pixels(strips_figure([frames], [name], name), tmp_path / "a.png").std() > 1
        assert pixels(confusion_figure([[1, 0], [0, 1]], [name, "b"], name), tmp_path / "b.png").std() > 1


def test_strips_refuse_captions_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="got 1 videos and 0 captions"):
        strips_figure([np.zeros((1, 8, 8, 3), np.uint8)], [], "worst")


def test_learning_curves_plot_each_point_and_mark_the_best_epoch() -> None:
    curves = {
        "train/loss": [(1, 0.9), (2, 0.5)],
        "val/loss": [(1, 0.8), (2, 0.6)],
        "val/accuracy": [(1, 0.5), (2, 0.7)],
    }
    figure = learning_curves_figure(curves, best_epoch=2)
    loss, accuracy = figure.axes
    assert [line.get_label() for line in loss.lines] == ["train", "val", "best epoch (2)"]
    assert loss.lines[0].get_xydata().tolist() == [[1, 0.9], [2, 0.5]]
    assert accuracy.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.7]]
    assert list(loss.lines[-1].get_xdata()) == [2, 2]


def test_learning_curves_of_one_epoch_and_of_a_run_that_diverged(tmp_path: Path) -> None:
    one = learning_curves_figure({"train/loss": [(1, 0.9)], "val/loss": []}, None)
    assert [tick for tick in one.axes[0].get_xticks() if 0.5 <= tick <= 1.5] == [1]
    assert one.axes[0].get_ylim()[1] > 0.9
    diverged = learning_curves_figure({"train/loss": [(1, 0.9), (2, math.inf), (3, math.nan)]}, 1)
    assert blank_border(pixels(diverged, tmp_path / "x.png"))


def test_learning_curves_refuse_nothing() -> None:
    with pytest.raises(ValueError, match="expected curves named"):
        learning_curves_figure({}, None)


def predictions(n: int, k: int, absent: bool = False, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a network that knows something, and labels; the last class may have no video."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k - absent, size=n)
    odds = np.exp(rng.normal(size=(n, k)) + 2 * np.eye(k)[labels])
    return odds / odds.sum(axis=1, keepdims=True), labels


def test_reliability_plots_each_bin_that_holds_videos_and_its_share() -> None:
    # Of four, one in the bin of 0.6 and right, three in that of 0.9 and one of them wrong.
    found = reliability(np.array([[0.62, 0.38], *[[0.9, 0.1]] * 3]), np.array([0, 0, 0, 1]))
    figure = reliability_figure(found, None, "test")
    above, below = figure.axes
    points, areas = above.collections[0].get_offsets().data, above.collections[0].get_sizes()
    np.testing.assert_allclose(points, [[0.62, 1.0], [0.9, 2 / 3]])
    assert (areas - 15)[1] == pytest.approx(3 * (areas - 15)[0])
    assert above.lines[0].get_xydata().tolist() == [[0, 0], [1, 1]]  # the diagonal
    (bars,) = below.patches
    assert bars.get_data().values.tolist() == [0] * 9 + [0.25, 0, 0, 0, 0.75, 0]
    assert bars.get_data().edges.tolist() == pytest.approx([edge / 15 for edge in range(16)])
    names = [text.get_text() for text in above.get_legend().get_texts()]
    assert names == ["perfect calibration", f"network (ECE {found.error:.3f})"]


def test_reliability_before_and_after_are_told_apart() -> None:
    probabilities, labels = predictions(200, 3)
    sure = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    before, after = reliability(probabilities, labels), reliability(sure, labels)  # underconfident
    assert before.error > after.error + 0.05
    above, below = reliability_figure(before, after, "test").axes
    names = [text.get_text() for text in above.get_legend().get_texts()][1:]
    assert names == [f"before calibration (ECE {before.error:.3f})", f"after calibration (ECE {after.error:.3f})"]
    first, second = (tuple(points.get_facecolor()[0][:3]) for points in above.collections)
    assert first != second
    assert [bars.get_data().values.sum() for bars in below.patches] == pytest.approx([1, 1])


def test_precision_recall_steps_over_the_area_it_names_and_marks_the_prevalence() -> None:
    probabilities, labels = predictions(40, 3)
    curves = precision_recall_curves(probabilities, labels, ["safe", "harmful", "adult"])
    figure = precision_recall_figure(curves, "test")
    panels = figure.axes
    assert figure.get_suptitle() == "test (grey: the other classes)"
    for number, (axes, (name, curve)) in enumerate(zip(panels, curves.items(), strict=True)):
        assert curve is not None
        assert axes.get_title(loc="left") == f"{name}\nAP {curve.area:.3f}, {(labels == number).sum()} videos"
        own = max(axes.lines, key=lambda line: line.get_linewidth())
        assert own.get_drawstyle() == "steps-pre"  # y holds from the point before on: that area is AP
        x, y = own.get_xydata().T
        assert float((np.diff(x) * y[1:]).sum()) == pytest.approx(curve.area, abs=2e-6)
        (baseline,) = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert set(baseline.get_ydata()) == {(labels == number).mean()}


def test_roc_joins_its_points_and_marks_the_diagonal() -> None:
    probabilities, labels = predictions(40, 2)
    curves = roc_curves(probabilities, labels, ["safe", "harmful"])
    for axes, (name, curve) in zip(roc_figure(curves, "test").axes, curves.items(), strict=True):
        assert curve is not None
        assert axes.get_title(loc="left").startswith(f"{name}\nAUROC {curve.area:.3f}, ")
        own = max(axes.lines, key=lambda line: line.get_linewidth())
        assert own.get_drawstyle() == "default"
        assert np.trapezoid(own.get_ydata(), own.get_xdata()) == pytest.approx(curve.area, abs=2e-6)
        (diagonal,) = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]


def test_a_class_without_videos_has_a_panel_that_says_so() -> None:
    probabilities, labels = predictions(40, 3, absent=True)
    names = ["safe", "harmful", "adult"]
    for figure in (
        precision_recall_figure(precision_recall_curves(probabilities, labels, names), "test"),
        roc_figure(roc_curves(probabilities, labels, names), "test"),
    ):
        assert [len(axes.texts) for axes in figure.axes] == [0, 0, 1]
        assert texts(figure) == ["not defined"]
        assert figure.axes[2].get_title(loc="left") == "adult"


@pytest.mark.parametrize(("k", "panels", "n"), [(2, (1, 2), 40), (3, (1, 3), 1), (5, (2, 3), 40), (12, (3, 4), 40)])
def test_curves_of_all_classes_fit_their_picture(k: int, panels: tuple[int, int], n: int, tmp_path: Path) -> None:
    probabilities, labels = predictions(n, k, absent=True)
    names = [f"a class with quite a long name and $ {i}" for i in range(k)]
    drawn = {
        "reliability": reliability_figure(reliability(probabilities, labels), None, "test"),
        "pr": precision_recall_figure(precision_recall_curves(probabilities, labels, names), "test"),
        "roc": roc_figure(roc_curves(probabilities, labels, names), "test"),
    }
    for name, figure in drawn.items():
        picture = pixels(figure, tmp_path / f"{name}.png")
        assert picture.shape[1] == 1000 and picture.shape[0] <= 1100
        assert blank_border(picture)
    for figure in (drawn["pr"], drawn["roc"]):
        assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == panels
        boxes = [axes.get_window_extent() for axes in figure.axes[:k]]
        assert all(box.width == pytest.approx(box.height, rel=0.01) and box.width > 120 for box in boxes)
        titled = [axes.get_tightbbox() for axes in figure.axes[:k]]
        assert not any(a.overlaps(b) for i, a in enumerate(titled) for b in titled[i + 1 :])


def test_many_classes_are_drawn_in_seconds() -> None:
    """200 of them: no text in cells, some names, and the panels of the 20 classes with the lowest area."""
    started = time.process_time()
    names = [f"class {k}" for k in range(200)]
    figure = confusion_figure(np.eye(200, dtype=int).tolist(), names, "test")
    figure.draw_without_rendering()
    assert texts(figure) == [] and 20 <= len(figure.axes[0].get_xticklabels()) <= 30
    drawn = {name: Curve(np.array([0.0, 1.0]), np.array([1.0, 0.5]), k / 200, 5, 0.1) for k, name in enumerate(names)}
    figure = precision_recall_figure(drawn | {"class 3": None}, "test")
    figure.draw_without_rendering()
    heads = [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes]
    assert heads == [f"class {k}" for k in range(21) if k != 3]
    assert "20 of 200 classes" in figure.get_suptitle()
    assert time.process_time() - started < 20


def test_a_saved_figure_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "x.png"
    for accuracy in (1, 2):
        save_figure(confusion_figure([[accuracy, 0], [0, 1]], ["a", "b"], "val"), path)
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]
    Image.open(path).verify()


def test_a_figure_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")
    broken = confusion_figure([[1, 0], [0, 1]], ["a", "b"], "val")
    broken.text(0.5, 0.5, r"$\nosuchcommand$")  # which only drawing finds out
    with pytest.raises(ValueError, match="nosuchcommand"):
        save_figure(broken, path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x.png", b"old")]


def test_drawing_needs_neither_pyplot_nor_torch() -> None:
    code = (
        "import sys, vidcls.metrics.curves, vidcls.plots.run_plots; "
        "sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
