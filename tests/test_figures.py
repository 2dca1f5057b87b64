"""Figures are drawn from known tables and read back: their texts, their pixels, their files."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vidcls.figures import confusion_figure, learning_curves_figure, save_figure, strips_figure


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


@pytest.mark.parametrize("k", [2, 12, 20])
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


def test_pyplot_stays_out() -> None:
    code = "import sys, vidcls.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
