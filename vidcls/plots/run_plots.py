"""Plots of a run: confusion matrices, learning curves, reliability, precision-recall and ROC curves, frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vidcls.metrics.calibration import Reliability
from vidcls.metrics.curves import Curve
from vidcls.plots.style import (
    BLUE,
    DPI,
    GREEN,
    INK,
    QUIET,
    VERMILION,
    WIDTH,
    add_title,
    ink_on,
    new_figure,
    printable,
    soften,
)

PALETTE = {"train": BLUE, "val": VERMILION, "test": GREEN, "best": INK}
MAX_FRAMES = 8  # of one strip
GUTTER = 0.04  # between the frames of a strip, in frame widths
MAX_LABELLED_CLASSES = 40  # of a confusion matrix: of more, the cells are too small for text


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Figure:
    """Counts and fractions of each true class (a row), coloured by the fraction.

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
    figure = new_figure(float(np.clip(3 + 0.5 * k, 4.5, 10)), title)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    labelled = range(k) if k <= MAX_LABELLED_CLASSES else ()
    for row in labelled:
        for column in labelled:
            share = f"{shares[row, column]:.0%}" if support[row] else "–"  # noqa: RUF001 (a dash that means "none")
            axes.text(
                column,
                row,
                f"{counts[row, column]}\n{share}",
                ha="center",
                va="center",
                fontsize=float(np.clip(90 / k, 6.5, 14)),
                color=ink_on(image.cmap(shares[row, column])),
            )
    names = [printable(name, 24) for name in classes]
    slanted = k > 6 or max(map(len, names)) > 72 / k
    axes.set_xticks(range(k), names, rotation=40 if slanted else 0, ha="right" if slanted else "center")
    if slanted:
        for label in axes.get_xticklabels():
            label.set_rotation_mode("anchor")
    axes.set_yticks(range(k), [f"{name} (n={n})" for name, n in zip(names, support, strict=True)])
    axes.set(xlabel="predicted (videos, fraction of the true class)", ylabel="truth")
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
    add_title(figure, title, y=1 - 0.12 / total)
    if not strips:
        figure.text(left, 1 - (head + gap / 2) / total, "no videos", va="center", color=QUIET, fontsize=11)
    for strip, caption, height in zip(strips, captions, heights, strict=True):
        top += gap
        axes = figure.add_axes((left, 1 - (top + height) / total, 1 - 2 * left, height / total))
        axes.imshow(strip, aspect="auto")
        axes.set_axis_off()
        axes.set_title(printable(caption, 100), loc="left", color=INK, fontsize=10, pad=4)
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
    figure = new_figure(4.2, "Learning curves")
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


def reliability_figure(before: Reliability, after: Reliability | None, title: str) -> Figure:
    """Accuracy against confidence, and below it the distribution of confidence.

    Points below the dotted diagonal are overconfident. The area of a point grows with its number of videos.

    Args:
        before: of the network's own probabilities.
        after: of the calibrated ones; None draws the first alone.
        title: one line.
    """
    figure = new_figure(6.8, title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=QUIET, linestyle=":", linewidth=1.5, label="perfect calibration")
    network = "network" if after is None else "before calibration"
    for name, found, colour in ((network, before, VERMILION), ("after calibration", after, BLUE)):
        if found is None:
            continue
        shares, held = found.count / found.count.sum(), found.count > 0
        x, y = found.confidence[held], found.accuracy[held]
        above.plot(x, y, color=colour, linewidth=1.5, alpha=0.5)
        above.scatter(x, y, s=15 + 600 * shares[held], color=colour, alpha=0.75, linewidths=0)
        above.plot([], [], color=colour, marker="o", label=f"{name} (ECE {found.error:.3f})")  # for the legend
        bins, filled = np.linspace(0, 1, len(shares) + 1), found is before
        below.stairs(shares, bins, color=colour, linewidth=2, fill=filled, alpha=0.4 if filled else 1.0)
    above.set(ylabel="accuracy", ylim=(-0.04, 1.04))
    below.set(xlabel="probability of the predicted class", ylabel="videos", xlim=(-0.01, 1.01))
    below.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    above.legend(frameon=False)
    for axes in (above, below):
        soften(axes)
    return figure


def precision_recall_figure(curves: Mapping[str, Curve | None], title: str) -> Figure:
    """Precision against recall, a panel per class; dotted: the precision of guessing.

    Args:
        curves: from `vidcls.metrics.curves.precision_recall_curves`.
        title: one line.
    """
    figure, panels = _class_panels(curves, title, "AP", "steps-pre")
    figure.supxlabel("recall")
    figure.supylabel("precision (dotted: guessing)")
    for axes, curve in zip(panels, curves.values(), strict=True):
        if curve is not None:
            axes.axhline(curve.prevalence, color=INK, linestyle=":", linewidth=1.2, zorder=2)
    return figure


def roc_figure(curves: Mapping[str, Curve | None], title: str) -> Figure:
    """The true against the false positive rate, a panel per class; dotted: guessing.

    Args:
        curves: from `vidcls.metrics.curves.roc_curves`.
        title: one line.
    """
    figure, panels = _class_panels(curves, title, "AUROC", "default")
    figure.supxlabel("false positive rate")
    figure.supylabel("true positive rate (dotted: guessing)")
    for axes in panels:
        axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1.2, zorder=2)
    return figure


def timeline_figure(
    starts: Float[np.ndarray, " W"],
    ends: Float[np.ndarray, " W"],
    probabilities: Float[np.ndarray, " W"],
    truth: Sequence[tuple[float, float]],
    detected: Sequence[tuple[float, float]],
    title: str,
) -> Figure:
    """The probability of one class over a long video, each window a step around its middle.

    Args:
        starts: of the W windows, in seconds.
        ends: likewise.
        probabilities: of the class.
        truth: (start, end) of the passages that are of the class, shaded.
        detected: (start, end) of the detected segments, bars on top.
        title: one line.
    """
    figure = new_figure(3.4, title)
    axes = figure.subplots()
    for number, (start, end) in enumerate(truth):
        axes.axvspan(start, end, color=VERMILION, alpha=0.3, linewidth=0, label=None if number else "truth")
    axes.step((starts + ends) / 2, probabilities, where="mid", color=BLUE, linewidth=1.2, label="probability")
    for number, (start, end) in enumerate(detected):
        axes.plot(
            [start, end],
            [1.06, 1.06],
            color=INK,
            linewidth=5,
            solid_capstyle="butt",
            label=None if number else "detected",
        )
    axes.set(xlabel="minutes:seconds", xlim=(0, float(ends.max())), ylim=(-0.03, 1.12), ylabel="probability")
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{int(seconds // 60)}:{int(seconds % 60):02}")
    axes.legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.16))
    soften(axes)
    return figure


def _class_panels(
    curves: Mapping[str, Curve | None], title: str, area: str, drawstyle: Literal["default", "steps-pre"]
) -> tuple[Figure, list[Axes]]:
    """A square per class: its curve, and in grey those of the others, as nobody can tell twenty colours apart."""
    k = len(curves)
    columns = k if k <= 4 else math.ceil(math.sqrt(k))
    rows = math.ceil(k / columns)
    figure = new_figure(1.1 + rows * (9.0 / columns + 0.35), title)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in grid[k:]:
        axes.set_axis_off()
    for place, (axes, (name, curve)) in enumerate(zip(grid, curves.items(), strict=False)):
        for other in curves.values():
            if other is not None and other is not curve:
                axes.plot(other.x, other.y, drawstyle=drawstyle, color="#d5d5d5", linewidth=1, zorder=1)
        head = printable(name, round(100 / columns))
        if curve is None:
            axes.text(0.5, 0.5, "not defined", ha="center", va="center", color=QUIET, backgroundcolor="white")
        else:
            axes.plot(curve.x, curve.y, drawstyle=drawstyle, color=BLUE, linewidth=2, zorder=3)
            head += f"\n{area} {curve.area:.3f}, {curve.support} videos"
        axes.set_title(head, loc="left", color=INK, fontsize=10)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.tick_params(labelbottom=place + columns >= k)  # also where the last row does not reach
        soften(axes)
    return figure, list(grid[:k])


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
