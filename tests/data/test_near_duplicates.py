"""PDQ against its reference, copies made by ffmpeg, the search against a naive one, and what the splits do with it."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.datasets import module, prepare
from helpers.videos import ffmpeg, write_video
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from vidcls.data import near_duplicates
from vidcls.data.near_duplicates import find_clusters, hash_frames, pdq
from vidcls.data.options import DataOptions
from vidcls.data.preparation import frame_store, pool_videos, prepare_external
from vidcls.data.splits import assign_splits, group_videos
from vidcls.errors import UserError

# Height, width and seed of `picture`; the quality, the hash and that of the mirror image by pdqhash 0.2.8, whose bits
# are in the opposite order.
REFERENCE = [
    (
        (64, 64, 1),
        100,
        "95552aaa50001555caab3555caee3555caeb35564af83550caf93547cbef3455",
        "3fff8000faaabfff60019fff60009fe660419fb8e0029f7a60009fed60459ee9",
    ),
    (
        (224, 224, 2),
        100,
        "c2aa8d5532aa25555aaa55559b55f4001fffb555e0004eafe0014ebfe0174eff",
        "680027ff98008ffff000ffff31ff5eaab5551fff4aaae4004aaae4014aaae401",
    ),
    (
        (90, 160, 3),
        100,
        "f000cbaab400a115267f25a84b5554aa4555a2aa0d5fa2bf0d7fa6bf0f7fa2d7",
        "5aaa61001eaa0bbf8cd58f0ae1fffe00efff0800a7fd080fa7d40e3fa5c0087f",
    ),
    (
        (512, 300, 4),
        100,
        "f80ac0f0878a8e7099ca3331364a25b5696a4a95556a5555556affd5556affd0",
        "52a06a482d2024d8336099989ce08f1ac3c0e03fffc0ffffffc0057effc0557a",
    ),
    (
        (32, 32, 5),
        100,
        "a807207dc3c30f1d9c7319cd3332366d24926d254b5a5ab5552ad555aaabbf56",
        "02a98ad66968a5b636d8b36699989cc78e38c78fe1f0f01fff807fff000003fc",
    ),
]
COPIES = {
    "lower rate": ["-crf", "38"],
    "scaled": ["-vf", "scale=96:64"],
    "cropped": ["-vf", "crop=iw*0.95:ih*0.95"],
    "logo": ["-vf", "drawbox=x=iw*0.8:y=ih*0.05:w=iw*0.15:h=ih*0.12:color=yellow:t=fill"],
    "mirrored": ["-vf", "hflip"],
    "other frame rate": ["-r", "10"],
    "shortened": ["-t", "1.7"],
}


def picture(height: int, width: int, k: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = 60 * np.sin(x * k / 37 + y / (5 + k)) + 50 * np.cos(x * y * k / (height * width) * 9)
    return (128 + waves).clip(0, 255).astype(np.uint8)


def scene(camera: int, action: int) -> np.ndarray:
    """50 frames of a camera's view, in which something bright walks, as ``action`` says."""
    frames = np.repeat(picture(144, 192, camera)[None, :, :, None], 50, axis=0).repeat(3, axis=-1)
    generator = np.random.default_rng(action)
    (top, left), (down, right) = generator.integers(10, 80, 2), generator.uniform(-1, 1, 2)
    for t, frame in enumerate(frames):
        y, x = int(np.clip(top + down * t, 0, 104)), int(np.clip(left + right * t, 0, 152))
        frame[y : y + 40, x : x + 40] = 240 - frame[y : y + 40, x : x + 40] // 2
    return frames


def encode(path: Path, camera: int, action: int) -> Path:
    return write_video(path, scene(camera, action), options={"crf": "18", "preset": "ultrafast"})


def copy_video(video: Path, kind: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ffmpeg("-i", video, "-c:v", "libx264", "-preset", "ultrafast", *COPIES[kind], path)
    return path


@pytest.mark.parametrize("size, quality, expected, mirrored", REFERENCE)
def test_pdq_is_that_of_its_reference(size: tuple[int, int, int], quality: int, expected: str, mirrored: str) -> None:
    hashes, found = pdq(picture(*size).astype(float))
    reference = np.frombuffer(bytes.fromhex(expected + mirrored), np.uint8).reshape(2, 32)
    assert np.bitwise_count(hashes ^ reference).sum() <= 4  # which computes in single precision
    assert found == quality


def test_a_picture_without_detail_has_no_quality() -> None:
    assert pdq(np.full((64, 64), 100.0))[1] == 0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cameras with four videos each, of a creator each: no copies, but pictures that are alike."""
    root = tmp_path_factory.mktemp("cameras")
    for camera in range(1, 6):
        for action in range(4):
            label = "fight" if action % 2 else "safe"
            encode(root / label / f"camera{camera}_{camera}{action}.mp4", camera, 10 * camera + action)
    return root


@pytest.fixture
def with_copies(source: Path, tmp_path: Path) -> Path:
    """The source, and a copy of each kind of a video of camera 1, each by a creator of its own."""
    root = shutil.copytree(source, tmp_path / "with_copies")
    for number, kind in enumerate(COPIES):
        copy_video(root / "safe" / "camera1_10.mp4", kind, root / "safe" / f"thief{number}_{number}.mp4")
    return root


def options(source: Path, cache: Path, **settings: object) -> DataOptions:
    return module(source, cache, **({"num_frames": 16, "resolution": 64} | settings)).options


def test_copies_are_found_and_other_videos_of_a_camera_are_not(with_copies: Path, cache: Path) -> None:
    videos, _ = pool_videos(options(with_copies, cache, near_duplicates="group"), ("train",), Console(quiet=True))
    together = videos[videos["cluster"] != ""]
    assert set(together["cluster"]) == {"safe/camera1_10.mp4"}
    assert len(together) == 1 + len(COPIES)


def test_one_frame_does_not_tell_copies_from_videos_of_a_camera(source: Path, cache: Path) -> None:
    one = options(source, cache, near_duplicates="group", num_frames=1)
    with pytest.warns(UserWarning, match="not looked for"):
        videos, _ = pool_videos(one, ("train",), Console(quiet=True))
    assert set(videos["cluster"]) == {""}


def test_hashes_are_kept(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = options(source, tmp_path, near_duplicates="group")
    pool_videos(chosen, ("train",), Console(quiet=True))
    monkeypatch.setattr(near_duplicates, "hash_frames", None)
    pool_videos(chosen, ("train",), Console(quiet=True))
    kept = next(near_duplicates.hash_folder(frame_store(chosen)).glob("*/*"))
    kept.write_bytes(kept.read_bytes()[:-1])  # a damaged one is made again
    with pytest.raises(TypeError):
        pool_videos(chosen, ("train",), Console(quiet=True))


def test_hashes_that_cannot_be_kept_are_computed_again(source: Path, tmp_path: Path) -> None:
    chosen = options(source, tmp_path, near_duplicates="ignore")
    pool_videos(chosen, ("train",), Console(quiet=True))
    store = frame_store(chosen)
    near_duplicates.hash_folder(store).parent.write_text("in the way")
    known = [path.stem for path in store.folder.glob("*/*.safetensors")]
    with pytest.warns(UserWarning, match=f"Near-duplicates of 1 of {len(known) + 1} videos"):
        hashes = near_duplicates.hash_videos([*known, "0" * 64], store)
    assert hashes[:-1, -1].all() and not hashes[-1, -1]  # nothing is known of a video that is not stored


def test_still_videos_need_a_stricter_match() -> None:
    still = np.repeat(picture(64, 64, 3)[None, :, :, None], 8, axis=0).repeat(3, axis=-1)
    brighter, other = still // 2 + 100, still.copy()
    other[:, 8:30, 20:50] = 150
    hashes = np.stack([hash_frames(frames) for frames in (still, brighter, other, still[:, :, ::-1])])
    near = np.bitwise_count(hashes[0, :32] ^ hashes[2, :32]).sum()
    assert near_duplicates.STILL_DISTANCE < near < near_duplicates.MAX_DISTANCE
    clusters = find_clusters(hashes)
    assert clusters[0] == clusters[1] == clusters[3] != clusters[2]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_clusters_are_those_of_a_naive_search(data: st.DataObject) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    count, originals = data.draw(st.integers(0, 40)), generator.integers(0, 256, (5, 129), np.uint8)
    hashes = originals[generator.integers(0, 5, count)]
    flips = generator.random((count, 128, 8)) < generator.choice([0.05, 0.2, 0.25, 0.3])
    hashes[:, :128] ^= np.packbits(flips, axis=-1)[..., 0]
    hashes[:, 128] = generator.integers(0, 3, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "BLOCK", data.draw(st.integers(1, 50)))
        found = find_clusters(hashes)
    sides, groups = hashes[:, :128].reshape(-1, 2, 2, 32), list(range(count))
    for i in range(count):
        for j in range(i + 1, count):
            if 0 in (hashes[i, 128], hashes[j, 128]):
                continue
            limits = [31, 256] if hashes[i, 128] == hashes[j, 128] == 1 else [64, 64]
            distances = np.bitwise_count(sides[i, 0] ^ sides[j]).sum(axis=-1)
            if (distances <= limits).all(axis=1).any():
                groups = [groups[i] if group == groups[j] else group for group in groups]
    assert [[one == other for other in found] for one in found] == [[i == j for j in groups] for i in groups]


# ---- what the splits do with them


def given_splits(source: Path, root: Path) -> Path:
    """Camera 1 to 3 in train and 4 and 5 in val, with a mirrored copy of a training video in val."""
    for video in source.rglob("*.mp4"):
        split = "val" if int(video.name[6]) > 3 else "train"
        target = root / split / video.parent.name / video.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, target)
    copy_video(source / "safe" / "camera1_10.mp4", "mirrored", root / "val" / "safe" / "thief_1.mp4")
    return root


def test_copies_in_two_splits_are_leakage(source: Path, cache: Path, tmp_path: Path) -> None:
    root = given_splits(source, tmp_path / "given")
    shared = {"num_frames": 16, "resolution": 64}
    with pytest.warns(UserWarning, match="optimistic"):
        printed = prepare(module(root, cache, **shared))
    assert "near-duplicate" in printed and "train/safe/camera1_10.mp4" in printed
    with pytest.raises(UserError) as error:
        prepare(module(root, cache, **shared, leakage="error"))
    assert error.value.code == "leakage"
    dropping = module(root, cache, **shared, leakage="drop")
    prepare(dropping)
    dropped = dropping.manifest[dropping.manifest["status"] == "dropped"]
    assert list(dropped["path"]) == ["train/safe/camera1_10.mp4"]
    assert list(dropped["reason"]) == ["near-duplicate as val/safe/thief_1.mp4 in val"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "Leakage" not in prepare(module(root, cache, **shared, near_duplicates="ignore"))


def test_the_same_bytes_are_no_near_duplicates(source: Path, cache: Path, tmp_path: Path) -> None:
    root = shutil.copytree(source, tmp_path / "same")
    shutil.copy(root / "safe" / "camera1_10.mp4", root / "safe" / "thief_1.mp4")
    videos, _ = pool_videos(options(root, cache, near_duplicates="group"), ("train",), Console(quiet=True))
    assert set(videos["cluster"]) == {""}


def test_copies_stay_in_one_drawn_split_if_asked_to(with_copies: Path, cache: Path) -> None:
    drawn = {}
    for choice in ("ignore", "report", "group"):
        data = module(with_copies, cache, num_frames=16, resolution=64, near_duplicates=choice, seed=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prepare(data)
        drawn[choice] = dict(zip(data.manifest["path"], data.manifest["split"], strict=True))
    assert drawn["report"] == drawn["ignore"]  # to report them moves nothing
    copies = [path for path in drawn["group"] if "thief" in path or "camera1_" in path]
    assert len({drawn["ignore"][path] for path in copies}) > 1
    assert len({drawn["group"][path] for path in copies}) == 1


def table_of(*columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(dict(zip(("path", "creator", "sha256", "cluster"), columns, strict=True)))


def test_a_copy_that_is_added_moves_no_more_than_what_it_connects() -> None:
    creators, labels = [f"creator{n}" for n in range(300)], ["safe", "fight"] * 150
    shared = {"val_fraction": 0.15, "test_fraction": 0.15, "seed": 0}

    def draw(copies: int) -> list[str]:
        clusters = ["copied", "copied", *[""] * 298, *["copied"] * copies]
        names = [*creators, *(f"thief{n}" for n in range(copies))]
        paths = [str(n) for n in range(len(names))]
        groups = group_videos(table_of(paths, names, paths, clusters))
        return assign_splits([*labels, *["safe"] * copies], groups, [""] * len(names), **shared)

    before, after = draw(0), draw(3)
    assert after[2:300] == before[2:300]
    assert len({*after[:2], *after[300:]}) == 1


def test_a_copy_may_connect_two_creators() -> None:
    groups = group_videos(
        table_of(["1", "2", "3", "4"], ["ann", "bob", "", "eve"], ["a", "b", "c", "d"], ["", "x", "x", ""])
    )
    assert groups == ["creator ann", "creator bob", "creator bob", "creator eve"]


def test_copies_of_training_videos_are_found_in_other_data(source: Path, cache: Path, tmp_path: Path) -> None:
    run = module(source, cache, num_frames=16, resolution=64)
    prepare(run)
    trained = run.manifest.assign(split="train").drop(columns="cluster")
    copy_video(source / "safe" / "camera1_10.mp4", "cropped", tmp_path / "other" / "safe" / "thief_1.mp4")
    encode(tmp_path / "other" / "fight" / "New_1.mp4", 6, 99)
    chosen = options(tmp_path / "other", cache, classes=["fight", "safe"], leakage="drop")
    manifest = prepare_external(chosen, "test", trained, Console(quiet=True)).manifest
    assert dict(zip(manifest["path"], manifest["status"], strict=True)) == {
        "fight/New_1.mp4": "ok",
        "safe/thief_1.mp4": "dropped",
    }
    assert set(manifest["creator"]) == {"New", "thief"}  # as they are written
    elsewhere = options(tmp_path / "other", tmp_path / "empty", classes=["fight", "safe"])  # has no frames of the run
    with pytest.warns(UserWarning, match=f"Near-duplicates of {len(trained)} of {len(trained) + 2} videos"):
        prepare_external(elsewhere, "test", trained, Console(quiet=True))
