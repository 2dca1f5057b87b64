"""Which videos are trained on and which are held out: splits by creator, and the leaks between splits."""

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from vidcls.data.decoding.result import USABLE
from vidcls.data.options import canonical_name
from vidcls.errors import UserError

_ATTEMPTS = 100
_BYTES, _LABELS, _NEAR, _CREATOR = "same bytes", "same bytes, different labels", "near-duplicate", "same creator"
HELD_OUT_FIRST = (("val", ("test",)), ("train", ("val", "test")))  # each drops what it shares with the others


def group_videos(videos: pd.DataFrame, *, creators: bool = True, clusters: bool = True) -> list[str]:
    """The name of each video's group: videos of one creator, one content or one cluster of copies stay together.

    ``videos`` has the columns path, creator, sha256 and optionally cluster; "" is unknown and connects nothing. Groups
    are connected components. A group is named after the creator of most of its videos, or after a hash, so that its
    name does not change when other groups come or go.

    >>> hashes, names = ["a", "b", "b", "c"], ["ann", "bob", "", "ann"]
    >>> group_videos(pd.DataFrame({"path": ["1.mp4", "2.mp4", "3.mp4", "4.mp4"], "creator": names, "sha256": hashes}))
    ['creator ann', 'creator bob', 'creator bob', 'creator ann']
    """
    kinds = ["creator"] * creators + ["sha256", "path"] + ["cluster"] * (clusters and "cluster" in videos)
    names = [
        [f"{kind} {name}" for kind, name in zip(kinds, row, strict=True) if name]
        for row in videos[kinds].itertuples(index=False, name=None)
    ]
    count, nodes = len(videos), dict[str, int]()
    keys = [[canonical_name(name) if name.startswith("creator ") else name for name in ties] for ties in names]
    edges = [(video, nodes.setdefault(key, count + len(nodes))) for video, ties in enumerate(keys) for key in ties]
    ends = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    components = number_components(*ends, count=count + len(nodes))[:count].tolist()
    votes: dict[int, Counter[str]] = defaultdict(Counter)
    for component, ties in zip(components, names, strict=True):
        votes[component][ties[0]] += 1
    chosen = {
        component: min(counts, key=lambda name: (not name.startswith("creator "), -counts[name], name))
        for component, counts in votes.items()
    }
    return [chosen[component] for component in components]


def group_numbers(rows: pd.DataFrame) -> Int[np.ndarray, " N"]:
    """The groups of `group_videos` as numbers."""
    return np.unique(group_videos(rows), return_inverse=True)[1]


def number_components(one: Int[np.ndarray, " P"], other: Int[np.ndarray, " P"], *, count: int) -> Int[np.ndarray, " _"]:
    """The connected component of each of ``count`` nodes, with edges between ``one[i]`` and ``other[i]``."""
    from scipy.sparse import coo_array  # only here: it takes a while
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(one)), (one, other)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def assign_splits(
    labels: Sequence[str],
    groups: Sequence[str],
    given: Sequence[str],
    *,
    val_fraction: float | int,
    test_fraction: float | int,
    seed: int,
) -> list[str]:
    """The split of each of N videos: as the source gives it, and drawn where it gives none.

    - Nothing given: train, val and test are drawn.
    - train given but no val: ``val_fraction`` of train becomes val; a given test split is kept.
    - train and val given: nothing is drawn.

    A group's split is a function of ``seed`` and the group's name alone, so that it does not change when videos are
    added, removed or cannot be decoded. Only where a class would get less than half or more than twice its share of a
    split, as happens with few groups, are some groups moved. Each class is in each split that is drawn.

    Raises:
        UserError: the given splits are incomplete, or no division has each class in each split.
    """
    check_all_or_none(given)
    there = set(given)
    if there and not there & {"", "train"}:
        remedy = "Add train videos, or remove the split folders to have the splits made."
        got = f"only {', '.join(sorted(there))}"
        raise UserError("a train split beside the other splits", got, remedy, "no-train-split")
    fractions = {"test": test_fraction, "val": val_fraction} if there == {""} else {"val": val_fraction}
    fractions = {name: fraction for name, fraction in fractions.items() if fraction > 0 and name not in there}
    if not fractions:
        return list(given)
    videos = pd.DataFrame({"group": groups, "label": labels})
    drawable = videos[[split in ("", "train") for split in given]]
    drawn = _draw_splits(pd.crosstab(drawable["group"], drawable["label"]), fractions, seed)
    return [split if split in ("val", "test") else drawn[group] for group, split in zip(groups, given, strict=True)]


def check_all_or_none(given: Sequence[str]) -> None:
    """Raises `UserError` if the source names a split for some videos and none ("") for others."""
    there = set(given) - {""}
    if there and "" in given:
        got = f"{list(given).count('')} videos without one beside {', '.join(sorted(there))}"
        raise UserError(
            "a split for each video or for none", got, "Give each video a split, or none at all.", "partial-splits"
        )


def _draw_splits(counts: pd.DataFrame, fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """The split of each group, from its number of videos of each class."""
    needed, groups = len(fractions) + 1, (counts > 0).sum()
    remedy = "Add videos of other creators, set a fraction in data.split to 0, or set data.split.grouped=false."
    if groups.min() < needed:
        label = groups.idxmin()
        expected = f"at least {needed} creators or groups of copies in each class, for {needed} splits"
        got = f"only {groups[label]} ({counts[label].sum()} videos) in class {label!r}"
        raise UserError(expected, got, remedy, "too-few-per-class")
    names = [*fractions, "train"]
    for attempt in range(_ATTEMPTS):
        position = np.array([_unit_hash(f"{seed} {attempt} {group}") for group in counts.index])
        drawn = _try_draw(counts.to_numpy(), list(fractions.values()), position)
        if drawn is not None:
            return {group: names[number] for group, number in zip(counts.index, drawn, strict=True)}
    got = f"none in {_ATTEMPTS} draws, as some creators have videos of several classes"
    raise UserError("a division of the creators that leaves each class in each split", got, remedy, "no-grouped-split")


def _unit_hash(text: str) -> float:
    """A number in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _try_draw(
    counts: Int[np.ndarray, "G K"], fractions: Sequence[float], position: Float[np.ndarray, " G"]
) -> Int[np.ndarray, " G"] | None:
    """The index of each group's split, train being the last; None where a class is missing from a split.

    A group whose ``position`` in [0, 1) is below ``fractions[0]`` prefers split 0, and so on.
    """
    train, has = len(fractions), counts > 0
    preferred = np.searchsorted(np.cumsum(fractions), position, side="right")
    drawn = np.full(len(counts), train)
    for split, fraction in enumerate(fractions):
        few_groups = np.maximum(fraction * has.sum(axis=0) // 2, 1)
        many_videos = min(2 * fraction, (1 + fraction) / 2) * counts.sum(axis=0)
        spare = has[drawn == train].sum(axis=0) - (train - split)  # the splits that follow need a group each
        groups, videos = np.zeros_like(spare), np.zeros_like(spare)
        rest = np.flatnonzero(drawn == train)
        for group in rest[np.lexsort((position[rest], preferred[rest] != train, preferred[rest] != split))]:
            own = has[group]
            wanted = preferred[group] == split or (groups < few_groups)[own].any()
            if wanted and (groups < spare)[own].all() and (videos + counts[group] <= many_videos)[own].all():
                drawn[group] = split
                groups += own
                videos += counts[group]
        for label in range(counts.shape[1]):
            if groups[label] > 0:
                continue
            rest = np.flatnonzero((drawn == train) & has[:, label] & ~(has & (groups >= spare)).any(axis=1))
            if len(rest) == 0:
                return None
            group = rest[np.lexsort((position[rest], counts[rest].sum(axis=1)))[0]]  # the smallest, as all are large
            drawn[group] = split
            groups += has[group]
    return drawn


def assign_folds(
    labels: Sequence[str] | Int[np.ndarray, " N"], groups: Sequence[str], folds: int, seed: int | None
) -> list[int]:
    """The fold of each of N videos by scikit-learn's ``StratifiedGroupKFold``, which depends on their order.

    With ``seed=None`` groups are not shuffled.

    Raises:
        UserError: there are fewer groups than folds.
        ValueError: each class has fewer videos than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # only here: it takes a while

    if (found := len(set(groups))) < folds:
        expected = f"at least {folds} creators or groups of copies, for folds={folds}"
        raise UserError(expected, str(found), "Lower folds, or add videos of others.", "too-few-groups")
    drawn = np.full(len(labels), -1)
    with warnings.catch_warnings():  # a class with fewer videos than folds is not in each of them
        warnings.filterwarnings("ignore", "The least populated class")
        splitter = StratifiedGroupKFold(folds, shuffle=seed is not None, random_state=seed)
        for fold, (_, held_out) in enumerate(splitter.split(labels, labels, groups)):
            drawn[held_out] = fold
    return [int(fold) for fold in drawn]


def find_leaks(manifest: pd.DataFrame) -> pd.DataFrame:
    """What splits share and should not: a row (kind, key, splits, videos) per hash, cluster or creator.

    The kinds, in this order: "same bytes" in two splits; "same bytes, different labels" anywhere; "near-duplicate" in
    two splits; "same creator" in two splits. Rows without a split, undecodable and dropped ones do not count.
    """
    live = _live(manifest)
    leaks = []
    for kind, key, column in (
        (_BYTES, "sha256", "split"),
        (_LABELS, "sha256", "label"),
        (_NEAR, "cluster", "split"),
        (_CREATOR, "creator", "split"),
    ):
        for name, rows in _several(live, key, column):
            leaks.append((kind, name, "+".join(sorted(set(rows["split"]))), len(rows)))
    return pd.DataFrame(leaks, columns=["kind", "key", "splits", "videos"])


def drop_leaks(manifest: pd.DataFrame, order: Sequence[tuple[str, Sequence[str]]] = HELD_OUT_FIRST) -> pd.DataFrame:
    """A copy of ``manifest`` where leaking videos have the status "dropped" and a reason.

    For each (split, others) of ``order``, drops the videos of the split that share content, cluster or creator with the
    others. Of videos with the same bytes but different labels all copies in train are dropped, since it is unknown
    which label is right; in val and test they stay, and `find_leaks` still reports them.
    """
    kept = manifest.copy()
    for split, others in order:
        for key, kind in (("sha256", _BYTES), ("cluster", _NEAR), ("creator", _CREATOR)):
            live = _live(kept)
            held = live[live["split"].isin(others) & (live[key] != "")].drop_duplicates(key).set_index(key)
            leaking = live.loc[(live["split"] == split) & live[key].isin(held.index), key]
            _drop(kept, leaking.map(f"{kind} as " + held["path"] + " in " + held["split"]))
    for _, rows in _several(_live(kept), "sha256", "label"):
        labels = ", ".join(sorted(set(rows["label"])))
        _drop(kept, rows.loc[rows["split"] == "train", "path"].map(lambda _, labels=labels: f"{_LABELS}: {labels}"))
    return kept


def _live(manifest: pd.DataFrame) -> pd.DataFrame:
    live = manifest[(manifest["split"] != "") & manifest["status"].isin(USABLE)]
    live = live.assign(creator=live["creator"].map(canonical_name))
    return live if "cluster" in live else live.assign(cluster="")


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
