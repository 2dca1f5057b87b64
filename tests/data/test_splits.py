from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidcls.data.splits import assign_splits, drop_leaks, find_leaks, group_videos
from vidcls.errors import UserError

DEFAULTS: dict[str, Any] = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": 0}


def split(labels: list[str], groups: list[int], given: list[str] | None = None, **changes: Any) -> list[str]:
    return assign_splits(labels, [str(group) for group in groups], given or [""] * len(labels), **(DEFAULTS | changes))


def manifest(*rows: tuple[str, ...]) -> pd.DataFrame:
    """A manifest of rows (split, creator, sha256[, label[, status]])."""
    filled = [(*row, *("safe", "ok")[len(row) - 3 :]) for row in rows]
    table = pd.DataFrame(filled, columns=["split", "creator", "sha256", "label", "status"], dtype=str)
    return table.assign(path=table.index.astype(str) + ".mp4", reason="")


# ---- groups


def group(videos: list[tuple[str, str]]) -> list[str]:
    """Videos of (creator, hash); their names count up."""
    table = pd.DataFrame(videos, columns=["creator", "sha256"])
    return group_videos(table.assign(path=[f"{number}.mp4" for number in range(len(videos))]))


def test_groups_are_joined_in_chains() -> None:
    videos = [("ann", "1"), ("bob", "2"), ("", "2"), ("cat", "3"), ("", ""), ("bob", "3"), ("", "4")]
    bob = "creator bob"
    assert group(videos) == ["creator ann", bob, bob, bob, "path 4.mp4", bob, "sha256 4"]


ONE_CREATOR = [("Ann", "ann"), ("jos\u00e9", "jose\u0301"), ("STRASSE", "stra\u00dfe"), ("ann b", "ann  b ")]


@pytest.mark.parametrize("one, other", ONE_CREATOR)
def test_creators_that_people_take_for_one_are_one(one: str, other: str) -> None:
    """A folder made on macOS spells é in two characters; who types a list by hand forgets capitals."""
    assert group([(one, "1"), (other, "2"), (one, "3"), ("bob", "4")]) == [f"creator {one}"] * 3 + ["creator bob"]
    table = manifest(("train", one, "1"), ("test", other, "2"), ("train", "bob", "3"))
    assert find_leaks(table)["kind"].tolist() == ["same creator"]
    assert drop_leaks(table)["status"].tolist() == ["dropped", "ok", "ok"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["", "a", "b", "c", "d"]), st.sampled_from(["", "1", "2", "3", "4"]))))
def test_groups_are_the_connected_components(videos: list[tuple[str, str]]) -> None:
    groups = group(videos)
    reachable = [{number} for number in range(len(videos))]
    for _ in videos:  # plain search for what can be reached, for comparison
        for one, first in enumerate(videos):
            for two, second in enumerate(videos):
                if any(key and key == other for key, other in zip(first, second, strict=True)):
                    reachable[one] |= reachable[two]
    for one, name in enumerate(groups):
        assert {two for two, other in enumerate(groups) if other == name} == reachable[one]


# ---- drawn splits

VIDEOS = st.lists(st.tuples(st.sampled_from(["safe", "harmful", "adult"]), st.integers(0, 12)), min_size=2, max_size=60)
FRACTIONS = [(0.0, 0.15), (0.1, 0.5), (0.25, 0.15), (0.4, 0.0), (0.4, 0.5)]


@settings(deadline=None)
@given(videos=VIDEOS, fractions=st.sampled_from(FRACTIONS), seed=st.integers(0, 2**32 - 1))
def test_each_class_is_in_each_split_and_no_group_in_two_or_an_error_says_why(
    videos: list[tuple[str, int]], fractions: tuple[float, float], seed: int
) -> None:
    labels, groups = [label for label, _ in videos], [number for _, number in videos]
    options: dict[str, Any] = {"val_fraction": fractions[0], "test_fraction": fractions[1], "seed": seed}
    wanted = {"train"} | ({"val"} if fractions[0] else set()) | ({"test"} if fractions[1] else set())
    groups_of = {label: {number for name, number in videos if name == label} for label in labels}
    try:
        splits = split(labels, groups, **options)
    except UserError as error:
        # Only creators with several classes can make a division impossible that the counts allow.
        mixed = len(set(videos)) > len(set(groups))
        assert min(map(len, groups_of.values())) < len(wanted) or mixed
        assert error.code in ("too-few-per-class", "no-grouped-split")
        return
    for name in wanted:
        assert {label for label, here in zip(labels, splits, strict=True) if here == name} == set(labels)
    assert len(set(zip(groups, splits, strict=True))) == len(set(groups))
    shuffled = random.Random(seed).sample(range(len(videos)), len(videos))
    again = split([labels[video] for video in shuffled], [groups[video] for video in shuffled], **options)
    assert again == [splits[video] for video in shuffled]


@pytest.mark.parametrize(("val_fraction", "test_fraction"), [(0.15, 0.15), (0.1, 0.3), (0.33, 0.33), (0.05, 0.1)])
def test_fractions_are_near_the_wanted(val_fraction: float, test_fraction: float) -> None:
    draw = random.Random(1)
    creators = [draw.choice(["safe"] * 6 + ["harmful"] * 3 + ["adult"]) for _ in range(2000)]
    groups = [creator for creator in range(2000) for _ in range(draw.randint(1, 5))]
    labels = [creators[group] for group in groups]
    splits = split(labels, groups, val_fraction=val_fraction, test_fraction=test_fraction)
    for name, wanted in (("val", val_fraction), ("test", test_fraction)):
        assert splits.count(name) / len(splits) == pytest.approx(wanted, abs=0.04)
        for label in set(labels):
            here = [split for split, other in zip(splits, labels, strict=True) if other == label]
            assert here.count(name) / len(here) == pytest.approx(wanted, abs=0.1)


def split_creators(videos: list[tuple[str, int]], seed: int) -> dict[int, str]:
    splits = split([label for label, _ in videos], [creator for _, creator in videos], seed=seed)
    return {creator: name for (_, creator), name in zip(videos, splits, strict=True)}


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_drawn_splits_do_not_move_when_videos_are_added_or_removed(seed: int) -> None:
    """800 creators with one to four videos; any tenth of the videos goes, and as many others come."""
    change = random.Random(seed)
    videos = [(("safe", "adult")[creator % 2], creator) for creator in range(800) for _ in range(creator % 4 + 1)]
    changed = [video for video in videos if change.random() > 0.1]
    changed += [(change.choice(["safe", "adult"]), change.randrange(2000)) for _ in range(len(videos) // 10)]
    before, after = split_creators(videos, seed), split_creators(changed, seed)
    assert all(after[creator] == before[creator] for creator in before.keys() & after.keys())


def test_in_a_small_set_at_most_single_groups_move() -> None:
    """40 creators of two classes: of 50 draws, few move a group when a creator is removed, and then few groups."""
    labels, groups = ["safe", "adult"] * 20, list(range(40))
    moved = []
    for seed in range(50):
        whole, fewer = split(labels, groups, seed=seed), split(labels[1:], groups[1:], seed=seed)
        moved.append(sum(one != two for one, two in zip(whole[1:], fewer, strict=True)))
    assert sum(count > 0 for count in moved) <= 10 and max(moved) <= 2


@pytest.mark.parametrize("seed", range(20))
def test_a_large_creator_does_not_fill_a_held_out_split(seed: int) -> None:
    """A third of the videos of a class are by one creator."""
    groups = [0] * 30 + [creator for creator in range(1, 31) for _ in range(2)]
    splits = split(["safe"] * 90 + ["adult"] * 60, groups + list(range(100, 160)), seed=seed)
    assert all(6 <= splits[:90].count(name) <= 36 for name in ("val", "test"))


def test_seeds_differ() -> None:
    labels, groups = ["safe", "adult"] * 50, list(range(100))
    assert split(labels, groups, seed=1) != split(labels, groups, seed=2)


def test_three_creators_per_class_are_enough() -> None:
    labels = ["safe"] * 9 + ["adult"] * 3
    groups = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 5]
    splits = split(labels, groups)
    assert Counter(splits[:9]) == {"train": 3, "val": 3, "test": 3}
    assert sorted(splits[9:]) == ["test", "train", "val"]


def test_says_which_class_has_too_few_creators() -> None:
    labels, groups = ["safe"] * 6 + ["adult"] * 5, [0, 1, 2, 3, 4, 5, 6, 6, 6, 7, 7]
    with pytest.raises(UserError) as error:
        split(labels, groups)
    assert error.value.code == "too-few-per-class" and "only 2 (5 videos) in class 'adult'" in str(error.value)


def test_says_when_creators_with_several_classes_forbid_it() -> None:
    """Creators 0-2 hold all of adult and two of them all of safe's last: no three parts have both."""
    labels = ["safe", "adult", "safe", "adult", "safe", "harmful", "adult", "harmful", "harmful"]
    groups = [0, 0, 1, 1, 2, 2, 3, 3, 0]
    with pytest.raises(UserError) as error:
        split(labels, groups)
    assert error.value.code == "no-grouped-split" and "data.split.grouped=false" in str(error.value)


# ---- given splits


def test_val_is_carved_out_of_a_given_train_and_test_stays() -> None:
    labels = ["safe", "adult"] * 30
    given = ["train"] * 50 + ["test"] * 10
    splits = split(labels, [number // 2 for number in range(60)], given)
    assert splits[50:] == ["test"] * 10
    assert set(splits[:50]) == {"train", "val"} and 5 <= splits[:50].count("val") <= 20


def test_a_given_train_alone_yields_no_test() -> None:
    assert set(split(["safe", "adult"] * 10, list(range(20)), ["train"] * 20)) == {"train", "val"}


@pytest.mark.parametrize("names", [["train", "val"], ["train", "val", "test"]])
def test_given_splits_are_kept(names: list[str]) -> None:
    """Even where a class is missing from one, or a group is in two: those are reported elsewhere."""
    given = [names[number % len(names)] for number in range(7)]
    assert split(["safe"] * 6 + ["adult"], [0] * 7, given) == given


def test_given_train_without_val_wanted() -> None:
    assert split(["safe", "adult"], [0, 1], ["train", "test"], val_fraction=0.0) == ["train", "test"]


@pytest.mark.parametrize("given", [["val"] * 4, ["val", "test"] * 2])
def test_given_splits_without_train(given: list[str]) -> None:
    with pytest.raises(UserError) as error:
        split(["safe", "adult"] * 2, [0, 1, 2, 3], given)
    assert error.value.code == "no-train-split"


def test_splits_for_some_videos_only() -> None:
    with pytest.raises(UserError) as error:
        split(["safe", "adult"] * 2, [0, 1, 2, 3], ["train", "test", "", ""])
    assert error.value.code == "partial-splits"


# ---- leaks


def test_leak_table() -> None:
    table = manifest(
        ("train", "ann", "1"),
        ("test", "bob", "1"),
        ("train", "bob", "2"),
        ("val", "", ""),
        ("train", "", ""),
        ("val", "cat", "3", "safe"),
        ("val", "cat", "3", "adult"),
        ("test", "ann", "4", "safe", "dropped"),
        ("", "ann", "5"),
        ("val", "bob", "6"),
    )
    assert find_leaks(table).values.tolist() == [
        ["same bytes", "1", "test+train", 2],
        ["same bytes, different labels", "3", "val", 2],
        ["same creator", "bob", "test+train+val", 3],
    ]
    assert list(find_leaks(table).columns) == ["kind", "key", "splits", "videos"]


def test_no_leaks_is_an_empty_table() -> None:
    leaks = find_leaks(manifest(("train", "ann", "1"), ("test", "bob", "2")))
    assert leaks.empty and list(leaks.columns) == ["kind", "key", "splits", "videos"]


def test_drops_from_train_for_val_and_from_val_for_test() -> None:
    table = manifest(
        ("train", "ann", "1"),  # goes: its bytes are in test
        ("test", "", "1"),
        ("val", "bob", "2"),  # goes: its creator is in test
        ("test", "bob", "3"),
        ("train", "", "2"),  # stays: the copy in val has gone
        ("train", "cat", "4"),  # goes: its creator is in val
        ("val", "cat", "5"),
        ("train", "dan", "6"),
    )
    dropped = drop_leaks(table)
    assert dropped["status"].tolist() == ["dropped", "ok", "dropped", "ok", "ok", "dropped", "ok", "ok"]
    assert dropped["reason"].tolist() == [
        "same bytes as 1.mp4 in test",
        "",
        "same creator as 3.mp4 in test",
        "",
        "",
        "same creator as 6.mp4 in val",
        "",
        "",
    ]
    assert (table["status"] == "ok").all()  # a copy was changed
    assert find_leaks(dropped).empty


def test_conflicting_labels_go_from_train_only() -> None:
    table = manifest(
        ("train", "", "1", "safe"),
        ("train", "", "1", "adult"),
        ("train", "", "1", "safe"),
        ("test", "", "2", "safe"),
        ("test", "", "2", "adult"),
    )
    dropped = drop_leaks(table)
    assert dropped["status"].tolist() == ["dropped"] * 3 + ["ok"] * 2
    assert dropped["reason"][0] == "same bytes, different labels: adult, safe"
    assert find_leaks(dropped).values.tolist() == [["same bytes, different labels", "2", "test", 2]]


def test_dropping_keeps_what_was_wrong_before() -> None:
    table = manifest(("train", "ann", "1", "safe", "partial"), ("test", "ann", "2"))
    table.loc[0, "reason"] = "1 frame"
    assert drop_leaks(table)["reason"][0] == "same creator as 1.mp4 in test; 1 frame"


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["train", "val", "test", ""]),
        st.sampled_from(["", "a", "b", "c", "d", "e"]),
        st.sampled_from(["", "1", "2", "3", "4", "5", "6"]),
        st.sampled_from(["safe", "adult"]),
        st.sampled_from(["ok", "ok", "partial", "undecodable", "dropped"]),
    ),
    max_size=25,
)


@settings(max_examples=15)
@given(ROWS)
def test_nothing_leaks_after_dropping(rows: list[tuple[str, ...]]) -> None:
    table = manifest(*rows)
    dropped = drop_leaks(table)
    leaks = find_leaks(dropped)
    assert not leaks["splits"].str.contains("+", regex=False).any()
    assert not leaks["splits"].str.contains("train").any()
    changed = dropped["status"] != table["status"]
    assert not (changed & ~table["split"].isin(["train", "val"])).any()
    assert (dropped.loc[changed, "status"] == "dropped").all() and (dropped.loc[changed, "reason"] != "").all()
    unchanged = dropped.drop(columns=["status", "reason"])
    pd.testing.assert_frame_equal(unchanged, table.drop(columns=["status", "reason"]))
    pd.testing.assert_frame_equal(drop_leaks(dropped), dropped)
