"""From a source to splits and batches: what is found, what is wrong with it, and what is served."""

from __future__ import annotations

import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.datasets import LAYOUT, module, numbers, prepare

from vidcls.data.datamodule import VideoDataModule
from vidcls.data.manifest import MANIFEST_COLUMNS
from vidcls.errors import UserError


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
    assert "unknown" not in prepare(data)
    splits = {split: data.rows(split) for split in ("train", "val", "test")}
    assert sum(map(len, splits.values())) == number
    for split, rows in splits.items():
        assert set(rows["label"]) == {"adult", "safe"}, split
    creators = [set(rows["creator"]) for rows in splits.values()]
    assert sum(map(len, creators)) == len(set.union(*creators)) == len(set(data.manifest["creator"]))
    nobody = module(tmp_path / "clips", cache, creator_pattern="(?P<creator>.+)-.+")
    assert f"The creators of {number} of {number} videos are unknown" in prepare(nobody)


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


# ---- class weights


def test_balanced_class_weights(prepared: tuple[VideoDataModule, str]) -> None:
    """N / (K n_k) with N = 8 and K = 3; adult, harmful, safe have 2, 2 and 4."""
    assert prepared[0].balanced_class_weights(["train"]) == pytest.approx([8 / 6, 8 / 6, 8 / 12])


def test_balanced_class_weights_need_every_class(
    prepared: tuple[VideoDataModule, str], source: Path, cache: Path
) -> None:
    manifest = prepared[0].manifest
    data = module(source, cache)
    data.load_manifest(manifest[(manifest["split"] != "train") | (manifest["label"] != "harmful")])
    with pytest.raises(UserError) as error:
        data.balanced_class_weights(["train"])
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


def test_it_says_which_classes_a_split_lacks(
    source: Path, cache: Path, tmp_path: Path, prepared: tuple[VideoDataModule, str]
) -> None:
    assert "No val video of harmful: " in prepared[1] and "No train video" not in prepared[1]
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    train = copy / "rtp" / "train"
    (train / "safe").rename(train / "saefe")
    written = prepare(module(copy, cache))
    assert "No train video of safe: " in written and "No test video of saefe: " in written


def test_it_says_that_copies_in_a_split_count_like_other_videos(source: Path, cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    first = min((copy / "rtp" / "test" / "harmful").iterdir())
    shutil.copy(first, first.with_name("again_1.mp4"))
    written = prepare(module(copy, cache))
    assert "1 test videos have the same bytes as another one there" in written and "train videos have" not in written


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
