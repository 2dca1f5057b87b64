"""select_videos.py: a recorded choice among new videos, which predict.py and train.py take as a list."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.commands import call
from helpers.decisions import decisions
from helpers.runs import predict, refused, table
from helpers.videos import write_video

from vidcls.data.options import DataOptions, FetchLimits
from vidcls.data.sources import list_videos
from vidcls.errors import UserError
from vidcls.prediction.inputs import Inputs

HOSTILE = "=1<b>\u202e'.mp4"
LATIN = os.fsdecode(b"caf\xe9.mp4")


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """A dozen videos, a copy of one, one of the run's own, one that no list can name, and a broken one."""
    folder = tmp_path_factory.mktemp("new")
    for number in range(13):
        frames = np.random.default_rng(number).integers(0, 256, (10, 32, 32, 3), np.uint8)
        write_video(folder / {0: HOSTILE, 12: LATIN}.get(number, f"c{number}_1.mp4"), frames)
    shutil.copy(folder / HOSTILE, folder / "copy.mp4")
    shutil.copy(next((demo_folder / "rtp" / "train").rglob("*.mp4")), folder / "known.mp4")
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def select(run: Path, new: Path, output: Path, *overrides: str) -> pd.DataFrame:
    result = call("select_videos.py", f"run={run}", f"input={new}", f"output={output}", *overrides)
    assert result.code == 0, result.stderr
    return table(output / "selected.csv")


def test_a_selection_is_recorded_repeatable_and_a_list(finished: Path, new: Path, tmp_path: Path) -> None:
    first = select(finished, new, tmp_path / "out", "count=10")
    assert first["reason"].tolist() == ["random"] * 2 + ["uncertain"] * 4 + ["diverse"] * 4
    assert set(first["path"]) <= {path.name for path in new.iterdir()} - {"known.mp4", "broken.mp4"}
    assert first["sha256"].is_unique
    assert first["inclusion_probability"].tolist() == [f"{2 / 12:.9g}"] * 2 + [""] * 8
    left_out = {"of the run itself": 1, "with names that are not UTF-8": 1}
    assert json.loads((tmp_path / "out" / "selection.json").read_text())["left_out"] == left_out
    written = (tmp_path / "out" / "selected.csv").read_bytes()
    select(finished, new, tmp_path / "out", "count=10")  # nothing is classified again
    assert (tmp_path / "out" / "selected.csv").read_bytes() == written
    other = select(finished, new, tmp_path / "out", "count=10", "seed=1")
    assert set(other["path"][:2]) != set(first["path"][:2])
    every = select(finished, new, tmp_path / "out", "count=99", "random_share=1", "diverse_share=0")
    assert len(every) == 12 and HOSTILE in set(every["path"])
    listed = tmp_path / "out" / "to_label.csv"
    assert {Path(one.location) for one in Inputs(str(listed), FetchLimits())} == {new / name for name in every["path"]}
    options = DataOptions(str(listed), "", decisions=[str(decisions(tmp_path / "d.csv"))])
    with pytest.raises(UserError) as error:  # of labelled videos there must be some beside them
        list_videos(options, None)
    assert error.value.code == "one-class"


def test_decided_videos_and_those_of_other_inputs_are_left_out(finished: Path, new: Path, tmp_path: Path) -> None:
    predict(finished, new, tmp_path / "out")
    shutil.copytree(new, tmp_path / "some", ignore=shutil.ignore_patterns("c1*"))
    kept = select(finished, tmp_path / "some", tmp_path / "out", "count=99")
    assert not kept["path"].str.startswith("c1").any() and len(kept) == 9
    file = decisions(tmp_path / "d.csv", *((sha256, "Ada", "unsure") for sha256 in kept["sha256"][:5]))
    rest = select(finished, tmp_path / "some", tmp_path / "out", "count=99", f"decisions={file}")
    assert set(rest["sha256"]) == set(kept["sha256"][5:])
    file = decisions(tmp_path / "d.csv", *((sha256, "Ada", "safe") for sha256 in kept["sha256"]))
    overrides = [f"run={finished}", f"input={tmp_path / 'some'}", f"output={tmp_path / 'out'}", f"decisions=[{file}]"]
    refused(call("select_videos.py", *overrides), "9 decided", "nothing-to-select")


def test_without_clip_vectors_the_uncertain_take_the_place_of_the_diverse(
    finished: Path, new: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "reference.safetensors").unlink()
    found = select(run, new, tmp_path / "out", "count=5")
    assert found["reason"].tolist() == ["random"] + ["uncertain"] * 4
