"""Whether classes are predicted more or less often than elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vidcls.metrics.bootstrap import resample_groups

RESAMPLES = 2000


def compare_shares(
    predicted: Int[np.ndarray, " N"],
    groups: Int[np.ndarray, " N"],
    reference: Int[np.ndarray, " M"],
    reference_groups: Int[np.ndarray, " M"],
    classes: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """For each class the share of N videos that are predicted as it, and its difference to that of M other videos.

    ``ci95`` holds 95 % intervals of the difference for all K classes together (Bonferroni), the wider of two: groups
    are resampled with all their videos, since those of one creator are alike, or single videos, since with few groups
    the former are too narrow. ``differs`` where 0 is outside.
    """
    tail = 100 * 0.05 / 2 / max(len(classes) - 1, 1)
    drawn = [
        _shares(predicted, one, len(classes), 0) - _shares(reference, two, len(classes), 1)
        for one, two in ((groups, reference_groups), (np.arange(len(predicted)), np.arange(len(reference))))
    ]
    low = np.min([np.percentile(difference, tail, axis=0) for difference in drawn], axis=0)
    high = np.max([np.percentile(difference, 100 - tail, axis=0) for difference in drawn], axis=0)
    found = {}
    for k, name in enumerate(classes):
        share, other = float((predicted == k).mean()), float((reference == k).mean())
        interval = [float(low[k]), float(high[k])]
        found[name] = {"share": share, "reference": other, "difference": share - other, "ci95": interval}
        found[name]["differs"] = interval[0] > 0 or interval[1] < 0
    return found


def _shares(
    predicted: Int[np.ndarray, " N"], groups: Int[np.ndarray, " N"], num_classes: int, seed: int
) -> Float[np.ndarray, "R K"]:
    """The share of each class in resamples of the groups."""
    group = np.unique(groups, return_inverse=True)[1]
    table = np.zeros((int(group.max()) + 1, num_classes))
    np.add.at(table, (group, predicted), 1)
    counts = np.concatenate([times @ table for times in resample_groups(len(table), RESAMPLES, seed)])
    shares: np.ndarray = counts / counts.sum(axis=1, keepdims=True)
    return shares
