"""engine=ray fills a shared store as engine=local does, whatever dies."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.cluster import equip
from helpers.commands import train
from helpers.runs import assert_same_result
from helpers.s3 import BUCKET, S3, serve_s3
from helpers.videos import write_video

from vidcls.data.ingest import IngestStats, ingest
from vidcls.data.ingest_job import IngestJob
from vidcls.data.options import DecodeLimits, EngineOptions, FetchLimits
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FrameStore
from vidcls.errors import UserError
from vidcls.files import claim_file

ray_ingest = pytest.importorskip("vidcls.data.ray_ingest")
pytestmark = pytest.mark.usefixtures("cluster")
RAY = EngineOptions("ray")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve short videos, a copy, and two that are no videos."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(12):
        write_video(folder / f"{number:02}.mp4", np.full((6, 32, 32, 3), 20 * number, np.uint8))
    shutil.copy(folder / "03.mp4", folder / "copy.mp4")
    (folder / "no_video.mp4").write_text("no video")
    (folder / "empty.mp4").write_bytes(b"")
    return folder


def run(
    cache: Path, locations: list[str], engine: EngineOptions | None = None, workers: int = 2
) -> tuple[pd.DataFrame, dict[str, bytes], IngestStats]:
    """The manifest, the entries of the store by name, and the cost."""
    rows = [(location, location, "safe", "train", "") for location in locations]
    videos = pd.DataFrame(rows, columns=["path", "file", "label", "split", "creator"], dtype=str)
    store, fetch = FrameStore(cache / "store", StoreSpec(2, 16)), FetchLimits(attempts=2)
    manifest, stats = ingest(videos, store, DecodeLimits(workers), cache / "hashes.sqlite", fetch, engine)
    entries = {path.name: path.read_bytes() for path in cache.rglob("*.safetensors")}
    assert not list(store.folder.glob(".shared-*"))
    return manifest, entries, stats


def paths(clips: Path) -> list[str]:
    return [str(path) for path in sorted(clips.iterdir())]


@pytest.fixture
def s3(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with serve_s3() as server:
        server.reset()
        for path in clips.iterdir():
            server.put(path.name, path.read_bytes())
        monkeypatch.setattr(ray_ingest._Driver, "reader", equip(ray_ingest.StoreReader, tmp_path / "scratch"))
        yield server


def test_manifest_and_store_are_those_of_one_machine(s3: S3, clips: Path, tmp_path: Path) -> None:
    urls = [f"s3://{BUCKET}/{path.name}" for path in sorted(clips.iterdir())]
    locations = [*paths(clips)[4:], *urls, f"s3://{BUCKET}/absent.mp4"]
    s3.faults["01.mp4"] = ["truncated", ...]
    expected = run(tmp_path / "local", locations)
    found = run(tmp_path / "ray", locations, RAY)
    pd.testing.assert_frame_equal(found[0], expected[0])
    assert found[1] == expected[1] and found[2].decoded == expected[2].decoded == len(found[1]) == 11
    assert found[0].groupby("status").size().to_dict() == {"ok": 21, "undecodable": 4, "unfetchable": 2}
    assert not list((tmp_path / "scratch").glob("vidcls-*-*"))
    s3.faults.clear()
    s3.gets.clear()
    again, entries, stats = run(tmp_path / "ray", locations, RAY)
    assert stats.decoded == 1 and len(entries) == 12 and (again["status"] == "ok").sum() == 22
    assert set(s3.gets) == {"01.mp4", "no_video.mp4", "empty.mp4"}  # what has no entry


def test_what_dies_is_replaced_and_what_kills_is_given_up(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, reader, poison = run(tmp_path / "local", paths(clips)), ray_ingest.StoreReader, str(clips / "05.mp4")

    class MortalReader(reader):  # type: ignore[misc, valid-type]
        def decode(self, locations: list[str], hashes: list[Any]) -> IngestJob:
            if poison in locations:
                os.kill(os.getpid(), signal.SIGKILL)
            done = super().decode(locations, hashes)
            if claim_file(tmp_path / "died", ""):
                os.kill(os.getpid(), signal.SIGKILL)
            return done

    monkeypatch.setattr(ray_ingest._Driver, "reader", MortalReader)
    manifest, entries, _ = run(tmp_path / "ray", paths(clips), RAY)
    killed = manifest["file"] == poison
    assert (tmp_path / "died").exists()
    assert manifest.loc[killed, ["status", "reason"]].to_numpy().tolist() == [["undecodable", ray_ingest.QUARANTINED]]
    pd.testing.assert_frame_equal(manifest[~killed], expected[0][~killed])
    assert len(entries) == 11
    monkeypatch.undo()
    manifest, entries, stats = run(tmp_path / "ray", paths(clips), RAY)
    pd.testing.assert_frame_equal(manifest, expected[0])
    assert entries == expected[1] and stats.decoded == 1


@pytest.mark.parametrize("missing", ["videos", "store"])
def test_machines_that_do_not_share_the_files_end_it(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    class ElsewhereReader(ray_ingest.StoreReader):  # type: ignore[misc, name-defined]
        def decode(self, locations: list[str], hashes: list[Any]) -> IngestJob:
            if missing == "store":
                self._proof = Path("/nowhere")
            return super().decode([f"/nowhere/{Path(one).name}" for one in locations], hashes)

    monkeypatch.setattr(ray_ingest._Driver, "reader", ElsewhereReader)
    with pytest.raises(UserError) as error:
        run(tmp_path, paths(clips), RAY, workers=1)
    assert error.value.code == "shared-paths" and not list(tmp_path.rglob("*.safetensors"))


def test_a_run_is_the_same(finished: Path, tiny: list[str], tmp_path: Path) -> None:
    train(*tiny, f"cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}", "engine=ray")
    assert list(tmp_path.rglob("*.safetensors"))
    assert_same_result(tmp_path / "run", finished)
