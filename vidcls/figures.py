"""Figures of a run. The only file that knows matplotlib, never its pyplot: no window, no state, nothing to close."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

WIDTH, DPI = 10.0, 100  # inches, pixels per inch: PNGs 1000 pixels wide
INK, QUIET = "#222222", "#8a8a8a"
# Okabe & Ito, "Color universal design" (2008): told apart by colour-blind readers too.
PALETTE = {"train": "#0072B2", "val": "#D55E00", "test": "#009E73", "best": INK}
MAX_FRAMES = 8  # of one strip
GUTTER = 0.04  # between the frames of a strip, in frame widths


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Figure:
    """Counts and shares of each true class (a row), coloured by the share; drawn for 2 to 20 classes.

    Args:
        confusion: K x K counts, rows = truth.
        classes: the K names.
        title: one line.

    Raises:
        ValueError: the table is not K x K.
    """
    counts, k = np.asarray(confusion), len(classes)
    if counts.shape != (k, k):
        raise ValueError(f"expected a {k} x {k} table for {k} classes; got shape {counts.shape}")
    support = counts.sum(axis=1)
    shares = counts / np.maximum(support, 1)[:, None]  # a class without videos: a row of 0
    figure = _figure(float(np.clip(3 + 0.5 * k, 4.5, 10)), title)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in range(k):
        for column in range(k):
            share = f"{shares[row, column]:.0%}" if support[row] else "–"  # noqa: RUF001 (a dash that means "none")
            axes.text(
                column,
                row,
                f"{counts[row, column]}\n{share}",
                ha="center",
                va="center",
                fontsize=float(np.clip(90 / k, 6.5, 14)),
                color=_ink_on(image.cmap(shares[row, column])),
            )
    names = [_printable(name, 24) for name in classes]
    slanted = k > 6 or max(map(len, names)) > 72 / k
    axes.set_xticks(range(k), names, rotation=40 if slanted else 0, ha="right" if slanted else "center")
    if slanted:
        for label in axes.get_xticklabels():
            label.set_rotation_mode("anchor")
    axes.set_yticks(range(k), [f"{name} (n={n})" for name, n in zip(names, support, strict=True)])
    axes.set(xlabel="predicted (videos, share of the true class)", ylabel="truth")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=10 if k <= 8 else 9)
    axes.set_xticks(np.arange(k - 1) + 0.5, minor=True)  # white lines between the cells
    axes.set_yticks(np.arange(k - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    return figure


def strips_figure(frames: Sequence[UInt8[np.ndarray, "_T _H _W 3"]], captions: Sequence[str], title: str) -> Figure:
    """One strip of up to eight frames per video, evenly chosen (middle of equal segments), its caption above it.

    Args:
        frames: the videos, which may differ in length and size.
        captions: one line each; a long one is cut in its middle, so that path and verdict both stay.
        title: one line.

    Raises:
        ValueError: as many captions as videos were expected, or a video holds no frames.
    """
    if len(frames) != len(captions):
        raise ValueError(f"expected a caption for each video; got {len(frames)} videos and {len(captions)} captions")
    columns = max((min(len(video), MAX_FRAMES) for video in frames), default=0)
    strips = [_strip(video, max(columns, 4)) for video in frames]  # 4: short videos are not blown up
    margin, head, gap = 0.15, 0.45, 0.36  # inches: left and right of a strip, above all, above each for its caption
    heights = [(WIDTH - 2 * margin) * strip.shape[0] / strip.shape[1] for strip in strips]
    total = head + sum(heights) + gap * max(len(strips), 1) + margin
    figure = Figure(figsize=(WIDTH, total), dpi=DPI)
    left, top = margin / WIDTH, head
    _title(figure, title, y=1 - 0.12 / total)
    if not strips:
        figure.text(left, 1 - (head + gap / 2) / total, "no videos", va="center", color=QUIET, fontsize=11)
    for strip, caption, height in zip(strips, captions, heights, strict=True):
        top += gap
        axes = figure.add_axes((left, 1 - (top + height) / total, 1 - 2 * left, height / total))
        axes.imshow(strip, aspect="auto")
        axes.set_axis_off()
        axes.set_title(_printable(caption, 100), loc="left", color=INK, fontsize=10, pad=4)
        top += height
    return figure


def learning_curves_figure(history: dict[str, list[tuple[int, float]]], best_epoch: int | None) -> Figure:
    """One panel per metric, one curve per split, against the epoch.

    Args:
        history: ``"split/metric"`` (as in "val/loss") to its (epoch, value) pairs.
        best_epoch: marked in every panel; None marks nothing.

    Raises:
        ValueError: a history without curves, or a key that is not "split/metric".
    """
    if not history or not all("/" in key for key in history):
        raise ValueError(f'expected curves named "split/metric", as "val/loss"; got {list(history)}')
    metrics = list(dict.fromkeys(key.split("/", 1)[1] for key in history))
    seen = [epoch for points in history.values() for epoch, _ in points]
    figure = _figure(4.2, "Learning curves")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for key, points in history.items():
            split, name = key.split("/", 1)
            if name == metric:
                epochs, values = zip(*points, strict=True) if points else ((), ())
                colour = PALETTE.get(split, QUIET)
                axes.plot(epochs, values, color=colour, marker="o", markersize=4, linewidth=2, label=split)
        if best_epoch is not None:
            axes.axvline(
                best_epoch, color=PALETTE["best"], linestyle="--", linewidth=1, label=f"best epoch ({best_epoch})"
            )
        if metric == "loss":
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        else:
            axes.set_ylim(-0.03, 1.03)  # accuracy, F1 and the like: a share
        if seen:
            axes.set_xlim(min(seen) - 0.5, max(seen) + 0.5)  # a run of one epoch has an axis too
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="epoch", ylabel=metric.replace("_", " "))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(frameon=False)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; whoever reads ``path`` meanwhile sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        figure.savefig(partial, format="png", dpi=DPI)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _strip(video: UInt8[np.ndarray, "T H W 3"], columns: int) -> UInt8[np.ndarray, "H S 3"]:
    """Up to ``columns`` frames of a video side by side, white between them and where there are fewer."""
    length, height, width, _ = video.shape
    if length == 0:
        raise ValueError("expected at least one frame of each video; got none")
    shown = min(length, columns)
    gutter = max(1, round(GUTTER * width))
    strip = np.full((height, columns * (width + gutter) - gutter, 3), 255, dtype=np.uint8)
    for column in range(shown):
        start = column * (width + gutter)
        strip[:, start : start + width] = video[(2 * column + 1) * length // (2 * shown)]
    return strip


def _figure(height: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    _title(figure, title)
    return figure


def _title(figure: Figure, title: str, y: float | None = None) -> None:
    place = {} if y is None else {"y": y}
    figure.suptitle(_printable(title, 70), x=0.015, ha="left", color=INK, fontsize=14, **place)


def _printable(text: str, limit: int) -> str:
    r"""One line of at most ``limit`` characters that the font holds, from a name that may contain anything.

    Two dollar signs would start a formula, hence ``\$``, which matplotlib prints as $.
    """
    line = "".join(letter if ord(letter) in _letters() else "□" for letter in " ".join(text.split()))
    if len(line) > limit:
        head = (limit - 1) // 2
        line = f"{line[:head]}…{line[head + 1 - limit :]}"
    return line.replace("$", r"\$")


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def _ink_on(colour: tuple[float, float, float, float]) -> str:
    """White on dark, black on light, by relative luminance (WCAG 2.2).

    Both have equal contrast at 0.18; from there to 0.22 either is legible, and on these blues white reads better.
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    return "white" if luminance < 0.22 else "black"
