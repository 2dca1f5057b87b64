"""The style of all plots: colours, sizes, titles, files. Without matplotlib's pyplot: no window, no global state."""

import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine

from vidcls.files import write_atomically

WIDTH, DPI = 10.0, 100  # inches, pixels per inch: PNGs are 1000 pixels wide
INK, QUIET = "#222222", "#8a8a8a"
# Okabe & Ito, "Color universal design" (2008): distinguishable for colour-blind readers too.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"


def new_figure(height: float, title: str) -> Figure:
    """A figure of ``height`` inches with its title at the top left."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    figure.suptitle(printable(title, 70), x=0.015, ha="left", color=INK, fontsize=14)
    return figure


def soften(axes: Axes) -> None:
    """A light grid, and no frame on top and right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)


def printable(text: str, limit: int) -> str:
    r"""Any text as one line of at most ``limit`` characters of the font, with ``\$`` for $, which starts formulas."""
    line = "".join(letter if ord(letter) in _letters() else "□" for letter in " ".join(text.split()))
    if len(line) > limit:
        head = (limit - 1) // 2
        line = f"{line[:head]}…{line[head + 1 - limit :]}"
    return line.replace("$", r"\$")


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def ink_on(colour: tuple[float, float, float, float]) -> str:
    """White on dark, black on light, by relative luminance (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    return "white" if luminance < 0.22 else "black"


def save_figure(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    write_atomically(path, content.getvalue())


def save_figures(figures: Mapping[str, Figure], folder: Path) -> dict[str, Path]:
    """Writes each as ``<name>.png``; returns their paths by name."""
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        save_figure(figure, paths[name])
    return paths
