from __future__ import annotations

import io
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.videos import write_video
from rich.console import Console

from vidcls.data.datamodule import VideoDataModule
from vidcls.data.ingest import MANIFEST_COLUMNS, read_manifest
from vidcls.data.options import DataOptions
from vidcls.data.preparation import prepare_videos, redecode_missing
from vidcls.errors import UserError

LAYOUT = {  # what each split of the source holds; "harmful" is missing from val
    "train": {"safe": 4, "harmful": 2, "adult": 2},
    "val": {"safe": 1, "adult": 2},
    "test": {"safe": 1, "harmful": 2, "adult": 1},
}


def draw(path: Path, number: int) -> Path:
    """40 frames whose brightness is the frame's number, with a stripe on the right that is the video's ``number``."""
    frames = np.empty((40, 32, 64, 3), np.uint8)
    frames[:, :, :32] = (10 + 6 * np.arange(40))[:, None, None, None]
    frames[:, :, 32:] = 6 * number
    return write_video(path, frames, options={"crf": "0", "preset": "ultrafast"})


def numbers(frames: torch.Tensor) -> list[int]:
    """The numbers of the frames of a clip [T, H, W, 3]."""
    left = frames[:, :, : frames.shape[2] * 3 // 8].float()
    return ((left.mean((1, 2, 3)) - 9.5) / 6).round().int().tolist()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos in the original's layout, each of its own creator, with strays beside them. Copy it to change it."""
    root = tmp_path_factory.mktemp("source")
    number = 0
    for split, classes in LAYOUT.items():
        for label, count in classes.items():
            for _ in range(count):
                draw(root / "rtp" / split / label / f"creator{number}_700{number}.mp4", number)
                number += 1
    (root / "rtp" / "train" / ".DS_Store").write_bytes(b"\0")
    (root / "rtp" / "notes.txt").write_text("by hand")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests: what one has decoded the others find."""
    return tmp_path_factory.mktemp("cache")


def module(source: Path, cache: Path, **settings: Any) -> VideoDataModule:
    defaults = {"num_frames": 4, "resolution": 32, "batch_size": 3, "decode": {"workers": 1}}
    return VideoDataModule(DataOptions(str(source), str(cache), **(defaults | settings)))


def prepare(data: VideoDataModule) -> str:
    """Prepares ``data`` and returns what it printed."""
    written = io.StringIO()
    prepared = prepare_videos(data.options, Console(file=written, width=1000))
    data.load_manifest(prepared.manifest)
    data.stats = prepared.stats
    return written.getvalue()


@pytest.fixture(scope="module")
def prepared(source: Path, cache: Path) -> tuple[VideoDataModule, str]:
    data = module(source, cache)
    return data, prepare(data)


# ---- from a source to splits


def test_the_splits_of_the_source_are_kept(prepared: tuple[VideoDataModule, str]) -> None:
    data, _ = prepared
    assert list(data.manifest.columns)[: len(MANIFEST_COLUMNS)] == MANIFEST_COLUMNS
    assert (data.manifest["status"] == "ok").all()
    for split, classes in LAYOUT.items():
        assert Counter(data.rows(split)["label"]) == classes
        assert data.rows(split)["path"].str.startswith(f"rtp/{split}/").all()
    assert data.stats.seconds > 0


def test_what_was_found_and_ignored_is_said(prepared: tuple[VideoDataModule, str]) -> None:
    _, printed = prepared
    assert "Found 15 videos" in printed and "1 hidden files" in printed and "1 files that are not videos" in printed
    table = {line.strip("│┃ ").split()[0]: line for line in printed.splitlines() if line.startswith("│")}
    for label in ("adult", "harmful", "safe"):
        cells = [cell.strip() for cell in table[label].strip("│").split("│")]
        assert cells == [label, *(str(LAYOUT[split].get(label, 0)) for split in ("train", "val", "test"))]


@pytest.mark.parametrize("classes", [None, ["safe", "harmful", "adult"]])
def test_one_class_order_for_all_splits(
    prepared: tuple[VideoDataModule, str], source: Path, cache: Path, classes: list[str] | None
) -> None:
    """Also where a split lacks a class."""
    data = module(source, cache, classes=classes)
    data.load_manifest(prepared[0].manifest)
    assert data.classes == (classes or ["adult", "harmful", "safe"])
    for split, counts in LAYOUT.items():
        rows, dataset = data.rows(split), data.dataset(split)
        assert [data.classes[label] for label in dataset.labels] == list(rows["label"])
        assert dataset.sha256s == list(rows["sha256"])
        assert set(dataset.labels) == {data.classes.index(label) for label in counts}


def test_the_classes_asked_for_are_kept_in_their_order(source: Path, cache: Path) -> None:
    data = module(source, cache, classes=["safe", "adult"])
    printed = prepare(data)
    assert data.classes == ["safe", "adult"]
    assert set(data.manifest["label"]) == {"safe", "adult"}
    assert "4 videos of class 'harmful', which is not in data.classes" in printed


def test_splits_are_made_where_there_are_none(source: Path, cache: Path, tmp_path: Path) -> None:
    number = 0
    for file in sorted(source.rglob("*.mp4")):
        if file.parent.name != "harmful":  # 5 videos of each class, two creators having two
            target = (
                tmp_path
                / "clips"
                / file.parent.name
                / f"by.me_{number % 4 + 4 * (file.parent.name == 'safe')}_{number}.mp4"
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
            number += 1
    data = module(tmp_path / "clips", cache, split={"val_fraction": 0.25, "test_fraction": 0.25})
    prepare(data)
    splits = {split: data.rows(split) for split in ("train", "val", "test")}
    assert sum(map(len, splits.values())) == number
    for split, rows in splits.items():
        assert set(rows["label"]) == {"adult", "safe"}, split
    creators = [set(rows["creator"]) for rows in splits.values()]
    assert sum(map(len, creators)) == len(set.union(*creators)) == len(set(data.manifest["creator"]))


# ---- what is wrong with the videos


@pytest.fixture(scope="module")
def leaking(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source, where test has a copy of a training video, and val another video of a creator of train."""
    root = tmp_path_factory.mktemp("leaking")
    shutil.copytree(source / "rtp", root / "rtp")
    first, second = sorted((root / "rtp" / "train" / "safe").iterdir())[:2]
    shutil.copy(first, root / "rtp" / "test" / "safe" / "somebody_1.mp4")
    draw(root / "rtp" / "val" / "safe" / f"{second.stem.split('_')[0]}_2.mp4", 30)
    return root


def test_leaks_are_reported(leaking: Path, cache: Path) -> None:
    data = module(leaking, cache)
    with pytest.warns(UserWarning, match="Held-out metrics will be optimistic"):
        printed = prepare(data)
    assert "Leakage between splits (data.leakage=warn)" in printed
    assert "same bytes" in printed and "test+train" in printed
    assert "same creator" in printed and "creator1" in printed and "train+val" in printed
    assert (len(data.rows("train")), len(data.rows("val")), len(data.rows("test"))) == (8, 4, 5)


def test_leaks_can_be_an_error(leaking: Path, cache: Path) -> None:
    with pytest.raises(UserError) as error:
        prepare(module(leaking, cache, leakage="error"))
    assert error.value.code == "leakage"


def test_leaks_can_be_dropped_from_the_split_trained_on(leaking: Path, cache: Path) -> None:
    data = module(leaking, cache, leakage="drop")
    printed = prepare(data)
    assert "Dropped 2 leaking videos" in printed
    assert (len(data.rows("train")), len(data.rows("val")), len(data.rows("test"))) == (6, 4, 5)
    dropped = data.manifest[data.manifest["status"] == "dropped"]
    assert set(dropped["path"]) == {"rtp/train/safe/creator0_7000.mp4", "rtp/train/safe/creator1_7001.mp4"}
    assert dropped["reason"].str.contains(r"^same (?:bytes|creator) as rtp/").all()


@pytest.fixture(scope="module")
def damaged(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source, of which one training video is text, and whose only safe validation video is empty."""
    root = tmp_path_factory.mktemp("damaged")
    shutil.copytree(source / "rtp", root / "rtp")
    (root / "rtp" / "train" / "safe" / "creator0_7000.mp4").write_text("no video\n" * 50)
    next((root / "rtp" / "val" / "safe").iterdir()).write_bytes(b"")
    return root


def test_bad_videos_are_named_and_left_out(damaged: Path, cache: Path) -> None:
    data = module(damaged, cache)
    printed = prepare(data)
    assert "undecodable rtp/train/safe/creator0_7000.mp4: pyav: " in printed
    assert "2 videos could not be decoded and are left out" in printed
    assert len(data.manifest) == 15
    assert (len(data.rows("train")), len(data.rows("val")), len(data.rows("test"))) == (7, 2, 4)
    seen = torch.cat([batch.index for batch in data.loader("train")])
    assert seen.tolist() == list(range(7))
    assert data.classes == ["adult", "harmful", "safe"]


def test_bad_videos_can_be_an_error(damaged: Path, cache: Path) -> None:
    with pytest.raises(UserError) as error:
        prepare(module(damaged, cache, on_bad="error"))
    assert error.value.code == "bad-videos" and "rtp/train/safe/creator0_7000.mp4: pyav: " in str(error.value)


def test_a_split_that_cannot_be_decoded_is_an_error(damaged: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(damaged / "rtp", tmp_path / "rtp")
    for file in (tmp_path / "rtp" / "val" / "adult").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError) as error:
        prepare(module(tmp_path, cache))
    assert error.value.code == "empty-val-split"


# ---- batches


def test_evaluation_sees_each_video_once_in_order(prepared: tuple[VideoDataModule, str]) -> None:
    data, _ = prepared
    batches = list(data.loader("test"))
    assert [tuple(batch.frames.shape) for batch in batches] == [(3, 4, 32, 32, 3), (1, 4, 32, 32, 3)]
    assert all(batch.frames.dtype == torch.uint8 for batch in batches)
    assert torch.cat([batch.index for batch in batches]).tolist() == [0, 1, 2, 3]
    labels = torch.cat([batch.label for batch in batches]).tolist()
    assert [data.classes[label] for label in labels] == list(data.rows("test")["label"])
    for batch in batches:
        assert all(numbers(frames) == [5, 15, 25, 35] for frames in batch.frames)
    assert [batch.index.tolist() for batch in data.val_dataloader()] == [[0, 1, 2]]


def test_training_sees_each_video_once_in_an_order_of_its_own(prepared: tuple[VideoDataModule, str]) -> None:
    loader = prepared[0].train_dataloader()
    orders = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        orders.append(torch.cat([batch.index for batch in loader]).tolist())
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_a_store_of_more_frames_serves_the_right_ones(source: Path, cache: Path) -> None:
    data = module(
        source, cache, num_frames=20, resolution=16, store={"num_frames": 40, "resolution": 32}, temporal_jitter=True
    )
    prepare(data)
    for batch in data.val_dataloader():
        assert batch.frames.shape[1:] == (20, 32, 32, 3)  # made smaller on the device
        for frames in batch.frames:
            assert numbers(frames) == list(range(1, 40, 2))
    for batch in data.train_dataloader():
        for frames in batch.frames:
            assert [number // 2 for number in numbers(frames)] == list(range(20))
            assert len({number % 2 for number in numbers(frames)}) == 2


def test_too_small_a_store_is_raised_to_what_the_run_asks_for(source: Path, cache: Path) -> None:
    data = module(source, cache, num_frames=20, resolution=32, store={"num_frames": 8, "resolution": 16})
    assert (data.store.spec.stored_frames, data.store.spec.stored_resolution) == (20, 32)
    printed = prepare(data)
    assert "data.store.num_frames=8 is less than this run asks for: storing 20" in printed
    assert "data.store.resolution=16 is less than this run asks for: storing 32" in printed


# ---- Lightning's hooks


def test_the_first_process_prepares_and_the_others_read_its_manifest(source: Path, cache: Path, tmp_path: Path) -> None:
    options = module(source, cache).options
    first, second = (VideoDataModule(options, tmp_path / "manifest.csv") for _ in range(2))
    first.prepare_data()
    content = (tmp_path / "manifest.csv").read_bytes()
    first.prepare_data()  # nothing is left to do
    first.setup("fit")
    second.setup("fit")
    assert first.classes == second.classes == ["adult", "harmful", "safe"]
    assert (tmp_path / "manifest.csv").read_bytes() == content
    for data in (first, second):
        assert sum(len(batch.label) for batch in data.test_dataloader()) == 4
        assert sum(len(batch.label) for batch in data.predict_dataloader()) == 4


def test_waiting_for_the_first_process_has_an_end(source: Path, cache: Path, tmp_path: Path) -> None:
    data = VideoDataModule(module(source, cache).options, tmp_path / "manifest.csv", wait_seconds=0.1)
    with pytest.raises(UserError) as error:
        data.setup("fit")
    assert error.value.code == "manifest-timeout" and str(tmp_path / "manifest.csv") in str(error.value)


# ---- a resumed run


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
    rows.to_csv(manifest, index=False)
    resume(options, manifest)


def test_a_video_that_cannot_be_decoded_moves_no_other(started: tuple[DataOptions, Path]) -> None:
    options, manifest = started
    before = read_manifest(manifest)
    lost = next(row.path for row in before.itertuples() if (before["split"] == row.split).sum() > 2)
    Path(options.source, lost).write_bytes(b"damaged")
    after = prepare_videos(options, Console(file=io.StringIO())).manifest
    assert (after["status"] == "undecodable").sum() == 1
    assert after["split"].tolist() == before["split"].tolist()


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


@pytest.mark.parametrize(
    "content", [b"", b"path,label\n1.mp4,safe\n", b"\xff\xfe\x00", b'path\n"1.mp4\n', b"a,b\n1,2,3\n"]
)
def test_a_damaged_manifest_is_refused(started: tuple[DataOptions, Path], content: bytes) -> None:
    options, manifest = started
    manifest.write_bytes(content)
    with pytest.raises(UserError) as error:
        prepare_videos(options, Console(file=io.StringIO()), manifest)
    assert error.value.code == "bad-manifest"


# ---- class weights


def test_balanced_class_weights(prepared: tuple[VideoDataModule, str]) -> None:
    """N / (K n_k) with N = 8 and K = 3; adult, harmful, safe have 2, 2 and 4."""
    assert prepared[0].balanced_class_weights() == pytest.approx([8 / 6, 8 / 6, 8 / 12])


def test_balanced_class_weights_need_every_class(
    prepared: tuple[VideoDataModule, str], source: Path, cache: Path
) -> None:
    manifest = prepared[0].manifest
    data = module(source, cache)
    data.load_manifest(manifest[(manifest["split"] != "train") | (manifest["label"] != "harmful")])
    with pytest.raises(UserError) as error:
        data.balanced_class_weights()
    assert error.value.code == "class-without-training-videos"


def test_balanced_sampling_draws_each_class_alike(source: Path, cache: Path) -> None:
    """Of 8 videos: 2 adult, 2 harmful and 4 safe; validation stays as it is."""
    data = module(source, cache, sampler="balanced")
    prepare(data)
    loader, drawn = data.train_dataloader(), []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        drawn.append(torch.cat([batch.label for batch in loader]).tolist())
        assert sorted(drawn[-1].count(label) for label in range(3)) == [2, 3, 3]
    assert [sum(labels.count(label) for labels in drawn) for label in range(3)] == [8, 8, 8]
    assert [batch.index.tolist() for batch in data.val_dataloader()] == [[0, 1, 2]]


def test_balanced_sampling_needs_every_class(source: Path, cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    shutil.rmtree(copy / "rtp" / "train" / "harmful")
    with pytest.raises(UserError) as error:
        prepare(module(copy, cache, sampler="balanced"))
    assert error.value.code == "class-without-training-videos"
    prepare(module(copy, cache))


# ---- names


def test_brackets_in_names_are_only_names(source: Path, cache: Path, tmp_path: Path) -> None:
    """Not the mark-up of the console."""
    root = tmp_path / "clips [new]"
    shutil.copytree(source / "rtp", root / "rtp")
    for split in ("train", "val", "test"):
        (root / "rtp" / split / "adult").rename(root / "rtp" / split / "[bold]")
    twin = next((root / "rtp" / "train" / "safe").iterdir())
    shutil.copy(twin, root / "rtp" / "test" / "safe" / "[red]_1.mp4")
    shutil.copy(twin, root / "rtp" / "train" / "safe" / "[red]_2.mp4")
    data = module(root, cache)
    with pytest.warns(UserWarning, match="leakage"):
        printed = prepare(data)
    assert "clips [new]" in printed
    assert "[bold]" in printed
    assert "[red]" in printed
    assert data.classes == ["[bold]", "harmful", "safe"]


# ---- the real clips


def test_real_clips_as_a_folder_and_as_a_zip(real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fights"
    for split, count in (("train", 3), ("val", 2)):
        for label in sorted(path.name for path in (real_data / "fights" / split).iterdir()):
            files = sorted((real_data / "fights" / split / label).glob("*.mp4"), key=lambda path: path.stat().st_size)
            (folder / split / label).mkdir(parents=True)
            for file in files[:count]:
                (folder / split / label / file.name).symlink_to(file)
    with zipfile.ZipFile(tmp_path / "fights.zip", "w") as archive:
        for file in sorted(folder.rglob("*.mp4")):
            archive.write(file, Path("wrapper", "rtp") / file.relative_to(folder))
        archive.writestr("__MACOSX/wrapper/._rtp", b"\0")
    by_folder, by_zip = (
        module(place, tmp_path / "cache", num_frames=20, resolution=64, decode={"workers": 2})
        for place in (folder, tmp_path / "fights.zip")
    )
    for data in (by_folder, by_zip):
        prepare(data)
        assert set(data.manifest["status"]) == {"ok"}
        assert set(data.manifest["decoder"]) == {"decord"}
        assert len(data.classes) == 2
        assert (len(data.rows("train")), len(data.rows("val")), len(data.rows("test"))) == (6, 4, 0)
        assert data.manifest["creator"].str.fullmatch(r"cam\d\d").all()
        batch = next(iter(data.val_dataloader()))
        assert batch.frames.shape == (3, 20, 64, 64, 3)
        assert batch.frames.float().std() > 10
    columns = ["label", "split", "creator", "sha256", "status", "decoder", "seconds"]
    assert by_zip.manifest[columns].equals(by_folder.manifest[columns])
