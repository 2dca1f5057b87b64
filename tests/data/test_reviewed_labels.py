"""Decisions become labels of training videos; what is held out stays what it would be without them."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from helpers.datasets import draw, module, prepare
from helpers.decisions import decisions
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vidcls.data.datamodule import VideoDataModule
from vidcls.data.decisions import read_decisions
from vidcls.data.manifest import read_manifest
from vidcls.data.preparation import prepare_videos
from vidcls.data.reviewed_labels import UNRESOLVED, agreement, apply_decisions, resolve
from vidcls.errors import UserError
from vidcls.files import hash_file

HOSTILE = "[red]'=1\u202e"


def content(number: int) -> str:
    return f"{number:064x}"


# ---- what reviewers say together


@pytest.mark.parametrize(
    ("said", "majority", "latest", "drop"),
    [
        (["safe"], "safe", "safe", "safe"),
        (["unsure"], None, None, None),
        (["unsure", "safe"], "safe", "safe", "safe"),
        (["safe", "adult"], UNRESOLVED, "adult", UNRESOLVED),
        (["safe", "safe", "adult"], "safe", "adult", UNRESOLVED),
        (["bad_file", "bad_file", "adult", "unsure"], "bad_file", "adult", UNRESOLVED),
        (["adult", "safe", "bad_file"], UNRESOLVED, "bad_file", UNRESOLVED),
    ],
)
def test_disagreement_is_settled_as_asked(
    tmp_path: Path, said: list[str], majority: str | None, latest: str | None, drop: str | None
) -> None:
    rows = [(content(1), f"reviewer {number}", one) for number, one in enumerate(said)]
    table = read_decisions([decisions(tmp_path / "d.csv", *rows)])
    for option, expected in {"majority": majority, "latest": latest, "drop": drop}.items():
        resolved = resolve(table, option)
        found = [row.label or row.verdict for row in resolved.itertuples()]
        assert found == ([] if expected is None else [expected]), option


def test_agreement_by_hand(tmp_path: Path) -> None:
    """Of four videos both have seen, three agree: kappa is (3/4 - 1/2) / (1 - 1/2)."""
    ada, bo = ["x", "x", "y", "y", "x"], ["x", "x", "y", "x"]
    rows = [(content(number), "Ada", said) for number, said in enumerate(ada)]
    rows += [(content(number), "Bo", said) for number, said in enumerate(bo)]
    rows += [(content(number), "Cy", "x") for number in (0, 1)]
    found = agreement(read_decisions([decisions(tmp_path / "d.csv", *rows)])).set_index(["one", "other"])
    assert found.loc[("Ada", "Bo")].tolist() == [4, 3, 0.5]
    assert found.loc[("Ada", "Cy"), "videos"] == 2 and found["kappa"].isna().tolist() == [False, True, True]


@given(st.data())
def test_held_out_videos_stay_as_they_are_whatever_is_decided(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    table = pd.DataFrame(
        {
            "path": [f"{number}.mp4" for number in range(count)],
            "label": [data.draw(st.sampled_from(["a", "b", ""])) for _ in range(count)],
            "sha256": [content(data.draw(st.integers(0, 8))) for _ in range(count)],
            "status": "ok",
            "reason": "",
            "label_source": "folder",
        }
    )
    table["split"] = [data.draw(st.sampled_from(["train", "val", "test", *[""] * (not x)])) for x in table["label"]]
    groups = [data.draw(st.sampled_from("uvwxyz")) for _ in range(count)]
    verdicts = {
        content(number): data.draw(st.sampled_from([("label", "a"), ("label", "b"), ("bad_file", "")]))
        for number in range(0, 8, 2)
    }
    resolved = pd.DataFrame.from_dict(verdicts, "index", columns=["verdict", "label"])
    kept = apply_decisions(table, groups, resolved)
    assert (kept["label"] != "").all() and not set(kept["path"]) - set(table["path"])
    held = table["split"].isin(["val", "test"]) & (table["label"] != "")
    pd.testing.assert_frame_equal(
        kept[kept["split"] != "train"].reset_index(drop=True), table[held].reset_index(drop=True)
    )
    tied = {group for group, held_out in zip(groups, table["split"].isin(["val", "test"]), strict=True) if held_out}
    for row in kept[kept["split"] == "train"].itertuples():
        verdict, label = verdicts.get(row.sha256, ("", ""))
        before = table.set_index("path").loc[row.path]
        assert row.label == (label if verdict == "label" else before["label"])
        assert (row.status == "dropped") == (verdict == "bad_file")
        assert (row.label_source == "decisions") == (verdict == "label")
        assert before["split"] == "train" or groups[int(row.path[:-4])] not in tied


# ---- in a run's data


@pytest.fixture
def listed(tmp_path: Path, cache: Path) -> tuple[Path, dict[str, str]]:
    """A list of 16 videos of 8 creators with drawn splits, and of 4 without a label, one by a creator of those 8."""
    rows, sha256s = [], {}
    for number in range(20):
        creator = f"c{number // 2 if number < 16 else number - 9}"  # the first new one is of c7
        name = f"{creator}_{number}.mp4"
        sha256s[name] = hash_file(draw(tmp_path / name, number))
        rows.append([name, ["safe", "adult"][number % 2] if number < 16 else ""])
    path = tmp_path / "list.csv"
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(path, index=False)
    return path, sha256s


def test_labels_change_in_training_alone_and_it_is_said(
    listed: tuple[Path, dict[str, str]], cache: Path, tmp_path: Path
) -> None:
    path, sha256s = listed
    labelled = tmp_path / "labelled.csv"
    pd.read_csv(path, keep_default_na=False).query("label != ''").to_csv(labelled, index=False)
    before = module(labelled, cache)
    prepare(before)
    known = before.manifest.set_index("path")
    in_train = [name for name in known.index[known["split"] == "train"] if known["label"][name] == "safe"]
    held_out = known.index[known["split"] != "train"]
    new = [name for name in sha256s if name not in known.index]
    rows = [(sha256s[name], "Ada", "adult") for name in (in_train[0], *held_out, *new[:3])]
    rows += [(sha256s[in_train[1]], "Ada", "safe"), (sha256s[in_train[1]], "Bo", "safe"), (content(1), "Bo", "safe")]
    rows += [(sha256s[in_train[2]], HOSTILE, "bad_file"), (sha256s[in_train[0]], HOSTILE, "adult")]
    rows += [(sha256s[in_train[3]], "Ada", "safe"), (sha256s[in_train[3]], "Bo", "adult")]
    data = module(path, cache, decisions=[str(decisions(tmp_path / "d.csv", *rows))])
    printed = prepare(data)
    after = data.manifest.set_index("path")
    tied = {known["creator"][name] for name in held_out}
    joined = [name for name in new[:3] if name.split("_")[0] not in tied]
    assert set(after.index) == {*known.index, *joined} and len(joined) >= 2
    assert (after.loc[known.index, "split"] == known["split"]).all()
    assert (after.loc[held_out, "label"] == known.loc[held_out, "label"]).all()
    assert after.loc[[in_train[0], *joined], "label"].tolist() == ["adult"] * (1 + len(joined))
    assert (after.loc[joined, "split"] == "train").all()
    decided = after.index[after["label_source"] == "decisions"]
    assert set(decided) == {in_train[0], in_train[1], *joined}
    assert after["status"][in_train[2]] == "dropped" and "bad file" in after["reason"][in_train[2]]
    assert after["status"][in_train[3]] == "dropped" and "disagree" in after["reason"][in_train[3]]
    for text in (
        "  1 labels are changed",
        "  1 labels are confirmed",
        f"  {len(joined)} videos without a label join",
        "  1 are left out (reviewed: a bad file)",
        f"  {len(held_out)} reviewed videos are held out",
        f"  {4 - len(joined)} videos without a label are not used",
        "  1 reviewed videos are not in the source",
        "1 disputed (data.disagreement=majority)",
        "Cohen's kappa",
        "Ada: safe, Bo: adult",
        HOSTILE,
    ):
        assert text in printed, text


def test_a_resumed_run_keeps_its_labels(listed: tuple[Path, dict[str, str]], cache: Path, tmp_path: Path) -> None:
    path, sha256s = listed
    file = decisions(tmp_path / "d.csv", *((sha256, "Ada", "adult") for sha256 in list(sha256s.values())[:-1]))
    options = module(path, cache, decisions=str(file)).options
    VideoDataModule(options, tmp_path / "manifest.csv").prepare_data()
    first = read_manifest(tmp_path / "manifest.csv")
    assert set(first.loc[first["split"] == "train", "label_source"]) == {"decisions"}
    file.unlink()
    resumed = VideoDataModule(options, tmp_path / "manifest.csv")
    resumed.prepare_data()
    pd.testing.assert_frame_equal(resumed.manifest, first)
    written = io.StringIO()
    prepare_videos(options, Console(file=written, width=1000), tmp_path / "manifest.csv")
    assert "not used" not in written.getvalue()  # what has no label is not new


def test_manifests_of_earlier_versions_have_labels_of_folders(
    listed: tuple[Path, dict[str, str]], cache: Path, tmp_path: Path
) -> None:
    path, sha256s = listed
    options = module(path, cache, decisions=[str(decisions(tmp_path / "d.csv"))]).options
    VideoDataModule(options, tmp_path / "manifest.csv").prepare_data()
    manifest = read_manifest(tmp_path / "manifest.csv")
    manifest.drop(columns=["label_source", "cluster"]).to_csv(tmp_path / "old.csv", index=False)
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "old.csv"), manifest)
    manifest.assign(label_source="=guess").to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(UserError) as error:
        read_manifest(tmp_path / "bad.csv")
    assert error.value.code == "bad-manifest" and len(sha256s) == 20


@pytest.mark.parametrize(("said", "code"), [("violent", "unknown-classes"), (None, "bad-csv")])
def test_what_cannot_be_used_is_refused(
    listed: tuple[Path, dict[str, str]], cache: Path, tmp_path: Path, said: str | None, code: str
) -> None:
    """A label of no class; and a list with empty labels that no decisions can fill."""
    path, sha256s = listed
    rows = [(sha256s["c0_0.mp4"], "Ada", str(said))]
    given = [str(decisions(tmp_path / "d.csv", *rows))] if said else []
    with pytest.raises(UserError) as error:
        prepare(module(path, cache, decisions=given))
    assert error.value.code == code
