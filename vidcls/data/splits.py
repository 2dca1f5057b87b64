"""Who trains and who is held out: stratified splits by creator, and the leaks between splits."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import product

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from vidcls.errors import UserError, check_number

SPLITS = ("train", "val", "test")
_MOST_FOLDS = 10
_FEW_VIDEOS = 500
_BYTES, _LABELS, _CREATOR = "same bytes", "same bytes, different labels", "same creator"


def group_videos(creators: Sequence[str], sha256s: Sequence[str]) -> list[int]:
    """Numbers the groups of videos that must stay together: of one creator or with the same bytes, also in a chain.

    An empty creator or hash is unknown and ties a video to nothing. The numbers follow the smallest hash (then creator)
    in a group, so they depend neither on where the videos lie nor on their order.

    >>> group_videos(["ann", "bob", "", "ann", ""], ["1", "2", "2", "3", "4"])
    [0, 1, 1, 0, 2]
    """
    parents = list(range(len(creators)))

    def root(video: int) -> int:
        while parents[video] != video:
            parents[video] = parents[parents[video]]
            video = parents[video]
        return video

    for keys in (creators, sha256s):
        first: dict[str, int] = {}
        for video, key in enumerate(keys):
            if key:
                parents[root(video)] = root(first.setdefault(key, video))
    roots = [root(video) for video in range(len(parents))]
    smallest: dict[int, tuple[str, str]] = {}
    for video, group in enumerate(roots):
        key_pair = (sha256s[video], creators[video])
        smallest[group] = min(smallest.get(group, key_pair), key_pair)
    numbers = {
        group: number for number, group in enumerate(sorted(smallest, key=lambda group: (smallest[group], group)))
    }
    return [numbers[group] for group in roots]


def assign_splits(
    labels: Sequence[str],
    groups: Sequence[int],
    given: Sequence[str],
    *,
    val_fraction: float | int,
    test_fraction: float | int,
    seed: int,
    grouped: bool,
) -> list[str]:
    """The split of each of N videos: as the source gives it, and drawn where it gives none.

    - Nothing given: train, val and test are drawn.
    - train given but no val: val is drawn from train, ``val_fraction`` of it; test stays as given, or is not.
    - train and val given: nothing is drawn, and without a given test there is none.

    Splits are drawn by scikit-learn's `StratifiedGroupKFold` (`StratifiedKFold` where nothing binds videos together):
    of about 1 / fraction folds, those that come nearest to the fraction, per class and overall, are held out. Each
    class of the videos that are divided is in each split that is drawn. Rows are put into order by group and label
    first: the same videos and groups get the same splits in any order of the rows.

    Args:
        labels: class of each video.
        groups: number of each video's group, see `group_videos`.
        given: train, val, test or "" for each video.
        val_fraction: part of all videos, or of the given train, that val gets; 0: no val (``data.split.val_fraction``).
        test_fraction: part of all videos that test gets; 0: no test (``data.split.test_fraction``).
        seed: of the draw.
        grouped: whether groups stay whole (``data.split.grouped``).

    Raises:
        UserError: the given splits are incomplete, or no division has each class in each split; says why.
    """
    check_number("data.split.val_fraction", val_fraction, 0.0, 1.0)
    check_number("data.split.test_fraction", test_fraction, 0.0, 1.0)
    if val_fraction + test_fraction >= 1:
        raise UserError(
            "data.split.val_fraction + data.split.test_fraction to be less than 1",
            f"{val_fraction:g} + {test_fraction:g}",
            "Leave some videos to train on.",
            "data.split",
        )
    there = set(given)
    if "" in there and len(there) > 1:
        count = sum(split == "" for split in given)
        raise UserError(
            "a split for each video or for none",
            f"{count} videos without one beside {', '.join(sorted(there - {''}))}",
            "Give each video a split, or none at all.",
            "partial-splits",
        )
    if there and not there & {"", "train"}:
        raise UserError(
            "a train split beside the other splits",
            f"only {', '.join(sorted(there))}",
            "Add train videos, or remove the split folders to have the splits made.",
            "no-train-split",
        )
    fractions = {"test": test_fraction, "val": val_fraction} if there == {""} else {"val": val_fraction}
    drawn = {name: fraction for name, fraction in fractions.items() if fraction > 0 and name not in there}
    order = sorted(range(len(labels)), key=lambda video: (groups[video], labels[video]))
    rest = np.array([video for video in order if given[video] in ("", "train")], dtype=np.int64)
    splits = ["train" if split == "" else split for split in given]
    class_of, group_of = np.array(labels), np.array(groups)
    _check_enough(class_of[rest], group_of[rest], len(drawn) + 1, grouped)
    left = 1.0
    for number, (name, fraction) in enumerate(drawn.items()):
        needed = len(drawn) - number  # splits that what is left must still make
        out = _hold_out(class_of[rest], group_of[rest], fraction / left, needed, seed, grouped)
        for video in rest[out]:
            splits[video] = name
        rest = rest[~out]
        left -= fraction
    return splits


def _check_enough(labels: np.ndarray, groups: np.ndarray, needed: int, grouped: bool) -> None:
    """Raises `UserError` where a class has fewer than ``needed`` groups (videos, if not ``grouped``)."""
    for name, count in sorted(_class_sizes(labels, groups, grouped).items()):
        if count < needed:
            videos = int((labels == name).sum())
            raise UserError(
                f"at least {needed} {_units(grouped)} in each class, to make {needed} splits",
                f"class {name!r} with {count}" + (f" (of {videos} videos)" if grouped else ""),
                _remedy(grouped),
                "too-few-per-class",
            )


def _hold_out(
    labels: np.ndarray, groups: np.ndarray, fraction: float, needed: int, seed: int, grouped: bool
) -> Bool[np.ndarray, "N"]:
    """Which videos to hold out: about ``fraction`` of each class, with enough left to make ``needed`` splits."""
    classes, codes = np.unique(labels, return_inverse=True)
    total = np.bincount(codes)
    best, best_cost, missed = None, math.inf, Counter[str]()
    for folds in _fold_counts(total, len(np.unique(groups)) if grouped else len(groups), fraction):
        for out in _candidates(codes, groups, folds, seed, grouped):
            held = np.bincount(codes[out], minlength=len(classes))
            cost = float(np.abs(held / total - fraction).mean() + abs(out.mean() - fraction))
            if cost >= best_cost:
                continue
            inside = _class_sizes(labels[out], groups[out], grouped)
            outside = _class_sizes(labels[~out], groups[~out], grouped)
            missing = [name for name in classes.tolist() if inside[name] < 1 or outside[name] < needed]
            missed.update(missing)
            if not missing:
                best, best_cost = out, cost
        if best is not None and len(labels) > _FEW_VIDEOS:
            break
    if best is None:
        name = min(missed, key=lambda name: (-missed[name], name))
        held_by = f"{_class_sizes(labels, groups, grouped)[name]} {_units(grouped)}"
        raise UserError(
            f"a division of the {_units(grouped)} that leaves each class in each split",
            f"none to be found, mostly for want of class {name!r}, which has {held_by}"
            + ", some in other classes too" * grouped,
            _remedy(grouped),
            "no-grouped-split",
        )
    return best


def _fold_counts(class_sizes: Int[np.ndarray, "K"], units: int, fraction: float) -> list[int]:
    """Numbers of folds to try, first the one that suits ``fraction`` best.

    Few videos make uneven folds: there, another number may come nearer, or be the only one that has each class.
    """
    most = min(units, int(class_sizes.max()))  # scikit-learn's own limits
    suited = Fraction(fraction).limit_denominator(min(most, max(_MOST_FOLDS, math.ceil(1 / fraction)))).denominator
    return [folds for folds in dict.fromkeys([max(suited, 2), *range(2, _MOST_FOLDS + 1)]) if folds <= most]


def _candidates(
    codes: Int[np.ndarray, "N"], groups: Int[np.ndarray, "N"], folds: int, seed: int, grouped: bool
) -> Iterator[Bool[np.ndarray, "N"]]:
    """Parts that could be held out: each fold, each two neighbours, and so on to all folds but one."""
    bound = grouped and len(np.unique(groups)) < len(groups)
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # only here: it takes seconds

    splitter = (StratifiedGroupKFold if bound else StratifiedKFold)(folds, shuffle=True, random_state=seed)
    fold_of = np.empty(len(codes), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer videos than folds: the caller checks
        for number, (_, held) in enumerate(splitter.split(codes, codes, groups)):
            fold_of[held] = number
    for count, first in product(range(1, folds), range(folds)):
        yield (fold_of - first) % folds < count


def _class_sizes(labels: np.ndarray, groups: np.ndarray, grouped: bool) -> Counter[str]:
    """Groups (videos, if not ``grouped``) that each class has."""
    if not grouped:
        return Counter(labels.tolist())
    return Counter(label for label, _ in set(zip(labels.tolist(), groups.tolist(), strict=True)))


def _units(grouped: bool) -> str:
    return "creators" if grouped else "videos"


def _remedy(grouped: bool) -> str:
    if grouped:
        return "Add videos of other creators, or set data.split.grouped=false (one creator may then be in two splits)."
    return "Add videos, or set data.split.val_fraction or data.split.test_fraction to 0."


def find_leaks(manifest: pd.DataFrame) -> pd.DataFrame:
    """What is in two splits and should not be: the table kind, key, splits, videos; one row per hash or creator.

    Rows without a split, undecodable ones and those already dropped do not count. The kinds, in this order: "same
    bytes" in two splits; "same bytes, different labels" in any; "same creator" in two splits.
    """
    live = _live(manifest)
    leaks = []
    for kind, key, column in (
        (_BYTES, "sha256", "split"),
        (_LABELS, "sha256", "label"),
        (_CREATOR, "creator", "split"),
    ):
        for name, rows in _several(live, key, column):
            leaks.append((kind, name, "+".join(sorted(set(rows["split"]))), len(rows)))
    return pd.DataFrame(leaks, columns=["kind", "key", "splits", "videos"])


def drop_leaks(manifest: pd.DataFrame) -> pd.DataFrame:
    """A copy of ``manifest`` where leaking videos have the status "dropped" and a reason; evaluation splits come first.

    A video of val goes where test has the same bytes or creator, and one of train where test or what remains of val
    has. Of videos with the same bytes but different labels all copies in train go, since nobody knows which label is
    right; in val and test they stay, and `find_leaks` still names them.
    """
    kept = manifest.copy()
    for split, others in (("val", ("test",)), ("train", ("val", "test"))):
        for key, kind in (("sha256", _BYTES), ("creator", _CREATOR)):
            live = _live(kept)
            held = live[live["split"].isin(others) & (live[key] != "")].drop_duplicates(key).set_index(key)
            leaking = live.loc[(live["split"] == split) & live[key].isin(held.index), key]
            _drop(kept, leaking.map(f"{kind} as " + held["path"] + " in " + held["split"]))
    for _, rows in _several(_live(kept), "sha256", "label"):
        labels = ", ".join(sorted(set(rows["label"])))
        _drop(kept, rows.loc[rows["split"] == "train", "path"].map(lambda _, labels=labels: f"{_LABELS}: {labels}"))
    return kept


def _live(manifest: pd.DataFrame) -> pd.DataFrame:
    return manifest[(manifest["split"] != "") & ~manifest["status"].isin(["dropped", "undecodable"])]


def _several(live: pd.DataFrame, key: str, column: str) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each known ``key`` that have more than one value in ``column``, sorted by key."""
    pairs = live.loc[live[key] != "", [key, column]].drop_duplicates()
    leaking = pairs.loc[pairs[key].duplicated(), key]
    return list(live[live[key].isin(leaking)].groupby(key, sort=True))


def _drop(manifest: pd.DataFrame, reasons: pd.Series) -> None:
    """Drops, in place, the rows in the index of ``reasons``; what was wrong with a video before stays readable."""
    before = manifest.loc[reasons.index, "reason"]
    manifest.loc[reasons.index, "reason"] = reasons.where(before == "", reasons + "; " + before)
    manifest.loc[reasons.index, "status"] = "dropped"
