"""Videos behind URLs on their way into the store and the manifest."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.pools import processes
from helpers.s3 import BUCKET, S3, SECRET, serve_s3
from helpers.videos import write_video
from rich.console import Console

from vidcls.data import remote
from vidcls.data.options import DataOptions
from vidcls.data.preparation import pool_videos, prepare_videos
from vidcls.data.sources import list_videos
from vidcls.errors import UserError

NAMES = [f"{split}/{label}/{split}{number}_1.mp4" for split in ("train", "val") for label in "ab" for number in (0, 1)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Short videos by name, all different."""
    folder, found = tmp_path_factory.mktemp("clips"), {}
    for number, name in enumerate(NAMES):
        frames = np.full((6, 32, 32, 3), 20 * number, np.uint8)
        found[name] = write_video(folder / f"{number}.mp4", frames).read_bytes()
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with serve_s3() as found:
        yield found


@pytest.fixture
def s3(server: S3, clips: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> S3:
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.001)
    server.reset()
    for name, content in clips.items():
        server.put(f"clips/{name}", content)
    server.gets.clear()
    return server


def options(source: str | Path, tmp_path: Path, **others: object) -> DataOptions:
    fetch = {"attempts": 2, "timeout_seconds": 20.0, **others}
    decode = {"workers": 1}
    return DataOptions(str(source), str(tmp_path / "cache"), num_frames=2, resolution=16, decode=decode, fetch=fetch)


def prepare(source: str | Path, tmp_path: Path, **others: object) -> tuple[pd.DataFrame, str]:
    """The manifest, by path, and what was printed."""
    text = io.StringIO()
    prepared = prepare_videos(options(source, tmp_path, **others), Console(file=text, width=200))
    assert not list((tmp_path / "cache").rglob("fetched"))
    return prepared.manifest.set_index("path"), text.getvalue()


def test_a_folder_is_fetched_once_and_has_the_rows_of_a_local_one(
    s3: S3, clips: dict[str, bytes], tmp_path: Path
) -> None:
    source = f"s3://{BUCKET}/clips"
    manifest, printed = prepare(source, tmp_path, workers=2, space_gigabytes=0.00001, max_gigabytes=0.00001)
    assert sorted(s3.gets) == sorted(f"clips/{name}" for name in NAMES) and f"Found 8 videos in {source}" in printed
    s3.gets.clear()
    again, _ = prepare(source, tmp_path)
    pd.testing.assert_frame_equal(again, manifest)
    assert s3.gets == []
    for name, content in clips.items():
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_bytes(content)
    local, _ = prepare(tmp_path / "local", tmp_path)
    pd.testing.assert_frame_equal(local.drop(columns="file"), manifest.drop(columns="file"))


def test_only_what_has_changed_is_fetched_again(s3: S3, clips: dict[str, bytes], tmp_path: Path) -> None:
    urls = tmp_path / "list.csv"
    rows = [(f"s3://{BUCKET}/clips/{name}", name.split("/")[1], name.split("/")[0]) for name in NAMES]
    pd.DataFrame(rows, columns=["url", "label", "split"]).to_csv(urls, index=False)
    first, _ = prepare(urls, tmp_path)
    assert (first["status"] == "ok").all() and list(first.index) == sorted(row[0] for row in rows)
    s3.gets.clear()
    s3.put(f"clips/{NAMES[0]}", clips[NAMES[1]])
    store = next((tmp_path / "cache" / "store").iterdir())
    lost = first["sha256"].iloc[-1]
    (store / lost[:2] / f"{lost}.safetensors").unlink()
    again, _ = prepare(urls, tmp_path)
    last = first.index[-1].partition("/videos/")[2]
    assert sorted(s3.gets) == sorted([f"clips/{NAMES[0]}", last.removeprefix("/")]) or len(s3.gets) == 2
    assert (again["status"] == "ok").all()
    assert again.loc[rows[0][0], "sha256"] == first.loc[rows[1][0], "sha256"]


def test_what_cannot_be_fetched_is_a_row_and_no_other_video_moves(s3: S3, tmp_path: Path) -> None:
    manifest, _ = prepare(f"s3://{BUCKET}/clips", tmp_path / "whole")
    denied, broken = NAMES[0], NAMES[2]
    s3.faults[f"clips/{denied}"] = ["denied", ...]
    s3.faults[f"clips/{broken}"] = ["500", ...]
    found, printed = prepare(f"s3://{BUCKET}/clips", tmp_path)
    assert list(found.index) == NAMES and "2 videos could not be fetched" in printed
    for name, words in {denied: "orbidden", broken: "2 attempts"}.items():
        row = found.loc[name]
        assert (row["status"], row["sha256"], row["coverage"]) == ("unfetchable", "", 0.0) and words in row["reason"]
    others = [name for name in NAMES if name not in (denied, broken)]
    pd.testing.assert_frame_equal(found.loc[others], manifest.loc[others])
    s3.faults.clear()
    healed, _ = prepare(f"s3://{BUCKET}/clips", tmp_path)
    pd.testing.assert_frame_equal(healed, manifest)


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_lists_name_videos_here_and_there(s3: S3, clips: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    """Here one list is local and the other remote, and their videos are in both places."""
    for name in NAMES[:2]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(clips[name])
    names = [*NAMES[:2], *(f"s3://{BUCKET}/clips/{name}" for name in NAMES[2:])]
    labels = [name.split("/")[-2] for name in names]
    table = pd.DataFrame(
        {"Path": names, "label": labels, "split": [name.split("/")[-3] for name in ["x/" + n for n in names]]}
    )
    here = tmp_path / f"list.{kind}"
    if kind == "txt":
        here.write_text("\n".join(names) + "\n")
    elif kind == "csv":
        table.to_csv(here, index=False)
    else:
        table.to_parquet(here)
    videos = list_videos(options(here, tmp_path), None).videos.set_index("path")
    assert videos["label"].to_dict() == dict(zip(names, labels, strict=True))
    assert videos.loc[NAMES[0], "file"] == str(tmp_path / NAMES[0])
    assert videos.loc[names[2], ["file", "split"]].tolist() == [names[2], "train"]
    there = s3.put(f"clips/list.{kind}", here.read_bytes())  # below it lie the first two as well
    remote_videos = list_videos(options(there, tmp_path), None).videos.set_index("path")
    assert remote_videos.loc[NAMES[0], "file"] == f"s3://{BUCKET}/clips/{NAMES[0]}"
    assert remote_videos.drop(columns="file").equals(videos.drop(columns="file"))


def test_signed_urls_of_a_list_are_written_without_their_signatures(s3: S3, tmp_path: Path) -> None:
    signed = {
        name: s3.client.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": f"clips/{name}"})
        for name in NAMES
    }
    assert all("Signature=" in url for url in signed.values())
    rows = [(url, name.split("/")[1], name.split("/")[0]) for name, url in signed.items()]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(tmp_path / "list.csv", index=False)
    s3.faults[f"clips/{NAMES[0]}"] = ["gone", ...]
    found, printed = prepare(tmp_path / "list.csv", tmp_path)
    assert found["status"].value_counts().to_dict() == {"ok": 7, "unfetchable": 1}
    (tmp_path / "list.csv").unlink()
    written = (
        printed
        + found.drop(columns="file").to_csv()
        + "".join(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file())
    )
    signatures = [part.partition("=")[2] for url in signed.values() for part in url.split("&") if "ignature=" in part]
    assert len(signatures) == 8
    for secret in (SECRET, *signatures):
        assert secret not in written
    assert "Signature=***" in written
    # Signed again they have the same names, and nothing is fetched.
    s3.gets.clear()
    again = pd.DataFrame([(url.replace("Expires=", "Expires=1"), *rest) for url, *rest in rows[1:]])
    again.to_csv(tmp_path / "list.csv", index=False, header=["path", "label", "split"])
    names = list_videos(options(tmp_path / "list.csv", tmp_path), None).videos["path"]
    assert set(names) == set(found.index[found["status"] == "ok"])


def test_folds_of_signed_urls_are_refused_before_anything_is_fetched(s3: S3, tmp_path: Path) -> None:
    """The lists of the folds would hold the signatures."""
    rows = [f"{s3.url}/{BUCKET}/clips/{name}?Signature=0badc0de,{name.split('/')[1]}" for name in NAMES]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(UserError) as error:
        pool_videos(options(tmp_path / "list.csv", tmp_path), ("train",), Console(quiet=True))
    assert error.value.code == "url-credentials" and s3.gets == []


def test_a_list_without_a_header_does_not_show_its_first_url(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("https://host/a.mp4?Signature=0badc0de,a\n")
    with pytest.raises(UserError) as error:
        list_videos(options(tmp_path / "list.csv", tmp_path), None)
    assert error.value.code == "csv-columns" and "0badc0de" not in str(error.value)


def test_urls_that_differ_in_their_credentials_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label\nhttps://host/a.mp4?token=1,a\nhttps://host/a.mp4?token=22,b\n")
    with pytest.raises(UserError) as error:
        list_videos(options(tmp_path / "list.csv", tmp_path), None)
    assert error.value.code == "bad-csv" and "token=22" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (f"s3://{BUCKET}/nothing", "empty-source"),
        (f"s3://{BUCKET}/list.csv", "unreadable-source"),
        (f"s3://{BUCKET}/clips.zip", "source-type"),
        ("what://bucket/clips", "filesystem"),
    ],
)
def test_sources_that_are_refused(s3: S3, tmp_path: Path, source: str, code: str) -> None:
    with pytest.raises(UserError) as error:
        list_videos(options(source, tmp_path), None)
    assert error.value.code == code


def test_what_a_killed_run_has_fetched_is_removed_by_the_next(s3: S3, tmp_path: Path) -> None:
    prepare(f"s3://{BUCKET}/clips", tmp_path)
    store = next((tmp_path / "cache" / "store").iterdir())
    (store / "fetched").mkdir()
    (store / "fetched" / "stale.mp4").write_bytes(b"half")
    for path in store.rglob("*.safetensors"):
        path.unlink()
    prepare(f"s3://{BUCKET}/clips", tmp_path)  # which checks that nothing is left


def test_a_disk_that_is_full_of_fetched_videos_ends_the_ingest(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos are fetched by other threads than the one that waits for what is decoded."""

    def fail(*_: object) -> None:
        raise UserError("room for fetched videos", "a full disk", "Free some space.", "disk-full")

    monkeypatch.setattr("vidcls.data.ingest_job.try_fetch", fail)
    with pytest.raises(UserError) as error:
        prepare(f"s3://{BUCKET}/clips", tmp_path)
    assert error.value.code == "disk-full" and processes() == []
    assert not list((tmp_path / "cache").rglob("fetched"))
