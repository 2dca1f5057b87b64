"""The videos of a resumed run are those of its manifest, whatever has become of its source."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from helpers.datasets import draw, module
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vidcls.data.datamodule import VideoDataModule
from vidcls.data.manifest import MANIFEST_COLUMNS, digest_path, read_manifest, write_manifest
from vidcls.data.options import DataOptions
from vidcls.data.preparation import prepare_videos, redecode_missing
from vidcls.errors import UserError
from vidcls.files import hash_file


@pytest.fixture
def started(source: Path, cache: Path, tmp_path: Path) -> tuple[DataOptions, Path]:
    """The options and the manifest of a run on a copy of the training videos, whose splits were drawn."""
    for label in ("safe", "adult"):
        shutil.copytree(source / "rtp" / "train" / label, tmp_path / "clips" / label)
        draw(tmp_path / "clips" / label / f"{label}_1.mp4", 20 + len(label))
    options = module(tmp_path / "clips", cache, split={"test_fraction": 0}).options
    VideoDataModule(options, tmp_path / "manifest.csv").prepare_data()
    return options, tmp_path / "manifest.csv"


def resume(options: DataOptions, manifest: Path) -> str:
    """What a resumed run prints about its videos; they must be those of its manifest."""
    written, before = io.StringIO(), manifest.read_bytes()
    prepared = prepare_videos(options, Console(file=written, width=1000), manifest)
    data = VideoDataModule(options, manifest, prepared)
    pd.testing.assert_frame_equal(data.manifest, read_manifest(manifest))
    assert manifest.read_bytes() == before
    assert sum(len(batch.label) for batch in data.loader("train")) == len(data.rows("train"))
    return written.getvalue()


def test_a_resumed_run_keeps_its_splits_and_says_what_differs_in_the_source(started: tuple[DataOptions, Path]) -> None:
    options, manifest = started
    folder = Path(options.source)
    draw(folder / "safe" / "new_1.mp4", 33)
    draw(folder / "adult" / "new_2.mp4", 34)
    (folder / "safe" / "safe_1.mp4").unlink()
    draw(folder / "adult" / "adult_1.mp4", 35)
    printed = resume(options, manifest)
    assert "2 videos of the source are new, and not used, such as adult/new_2.mp4" in printed
    assert "1 videos of the source are gone, such as safe/safe_1.mp4" in printed
    assert "1 videos of the source are changed, such as adult/adult_1.mp4" in printed


def test_a_resumed_run_says_nothing_of_a_source_that_is_the_same(started: tuple[DataOptions, Path]) -> None:
    assert "Since this run was started" not in resume(*started)


def test_a_resumed_run_needs_its_source_only_for_what_is_not_stored(started: tuple[DataOptions, Path]) -> None:
    options, manifest = started
    shutil.rmtree(options.source)
    assert "cannot be compared" in resume(options, manifest)
    elsewhere = DataOptions(options.source, str(manifest.parent / "empty"), num_frames=4, resolution=32)
    with pytest.raises(UserError) as error:
        resume(elsewhere, manifest)
    assert error.value.code == "missing-source"


def test_a_video_that_failed_stays_out_of_a_resumed_run(started: tuple[DataOptions, Path]) -> None:
    """As one whose decoder ran out of time: the other videos stay where they are, and so does it."""
    options, manifest = started
    rows = read_manifest(manifest)
    rows.loc[0, ["status", "reason"]] = ["undecodable", "timed out"]
    write_manifest(manifest, rows)
    resume(options, manifest)


def test_a_video_that_cannot_be_decoded_moves_no_other(started: tuple[DataOptions, Path]) -> None:
    options, manifest = started
    before = read_manifest(manifest)
    lost = next(row.path for row in before.itertuples() if (before["split"] == row.split).sum() > 2)
    Path(options.source, lost).write_bytes(b"damaged")
    after = prepare_videos(options, Console(file=io.StringIO())).manifest
    assert (after["status"] == "undecodable").sum() == 1
    assert after["split"].tolist() == before["split"].tolist()


def test_empty_files_tie_no_creators(started: tuple[DataOptions, Path]) -> None:
    """As copies of each other, they would make one group of all creators that have one."""
    options, manifest = started
    for row in read_manifest(manifest).itertuples():
        Path(options.source, row.label, f"{row.creator}_empty.mp4").touch()
    after = prepare_videos(options, Console(file=io.StringIO())).manifest
    lost = after["status"] == "undecodable"
    assert lost.any() and after[lost]["sha256"].nunique() == 1
    assert after.groupby("creator")["split"].nunique().max() == 1 < after["split"].nunique()


@pytest.mark.parametrize("exists", [True, False])
def test_the_demo_is_never_drawn_for_a_run_folder(
    started: tuple[DataOptions, Path], tmp_path: Path, exists: bool
) -> None:
    """A run folder may be a stranger's, and its data.source may name any folder."""
    options, manifest = started
    source = Path(options.source)
    shutil.rmtree(source)
    if exists:
        source.mkdir()
        (source / "demo.json").write_text("{}")
    demo = {"seed": 0, "creators": 3, "videos_per_creator": 3}
    options = DataOptions(str(source), str(tmp_path / "empty"), num_frames=4, resolution=32, demo=demo)
    console = Console(file=io.StringIO())
    with pytest.raises(UserError):
        prepare_videos(options, console, manifest)
    with pytest.raises(UserError):
        redecode_missing(options, read_manifest(manifest), ["val"], console)
    assert [path.name for path in source.iterdir()] == ["demo.json"] if exists else not source.exists()


def test_names_with_line_breaks_come_back(started: tuple[DataOptions, Path], tmp_path: Path) -> None:
    options, _ = started
    for number, name in enumerate(("car\rriage_1.mp4", "new\nline_2.mp4", 'quo"te, comma_3.mp4')):
        draw(Path(options.source, "safe", name), 36 + number)
    data = VideoDataModule(options, tmp_path / "again.csv")
    data.prepare_data()
    assert read_manifest(tmp_path / "again.csv")["path"].tolist() == data.manifest["path"].tolist()


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1e7)), min_size=1, max_size=5))
def test_any_coverage_and_duration_comes_back(values: list[tuple[float, float]]) -> None:
    """As a twentieth of a thousandth, which is written as 5e-05."""
    rows = [
        [f"{number}.mp4", "a", "train", "", "0" * 64, "partial", "damaged", "pyav", seconds, coverage, "folder", ""]
        for number, (coverage, seconds) in enumerate([(5e-05, 1.0), *values])
    ]
    with TemporaryDirectory() as folder:
        path = Path(folder, "manifest.csv")
        write_manifest(path, pd.DataFrame(rows, columns=MANIFEST_COLUMNS))
        found = read_manifest(path)
    assert found["coverage"].tolist() == pytest.approx([row[9] for row in rows])
    assert found["seconds"].tolist() == pytest.approx([row[8] for row in rows])


@pytest.mark.parametrize(
    "content", [b"", b"path,label\n1.mp4,safe\n", b"\xff\xfe\x00", b'path\n"1.mp4\n', b"a,b\n1,2,3\n"]
)
def test_a_damaged_manifest_is_refused(started: tuple[DataOptions, Path], content: bytes) -> None:
    options, manifest = started
    digest_path(manifest).unlink()  # which those of earlier versions lack
    manifest.write_bytes(content)
    with pytest.raises(UserError) as error:
        prepare_videos(options, Console(file=io.StringIO()), manifest)
    assert error.value.code == "bad-manifest"


@pytest.mark.parametrize("kept", [slice(None, -1), slice(None, 1), slice(0, None, 2)])
def test_a_manifest_whose_rows_have_gone_is_refused(started: tuple[DataOptions, Path], kept: slice) -> None:
    """It is a table like any other; only its digest tells."""
    options, manifest = started
    head, *lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join([head, *lines[kept]]))
    with pytest.raises(UserError) as error:
        prepare_videos(options, Console(file=io.StringIO()), manifest)
    assert error.value.code == "bad-manifest" and "manifest.csv.sha256" in str(error.value)
    digest_path(manifest).unlink()  # as the message says
    assert len(prepare_videos(options, Console(file=io.StringIO()), manifest).manifest) == len(lines[kept])


def test_the_digest_of_a_manifest_is_what_sha256sum_checks(started: tuple[DataOptions, Path]) -> None:
    manifest = started[1]
    assert digest_path(manifest).read_text() == f"{hash_file(manifest)}  manifest.csv\n"
