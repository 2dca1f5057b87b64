"""engine=ray where machines differ: in their files, in their packages, or as one of them is sick."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import call, once
from helpers.runs import predict, refused
from helpers.videos import write_video

from vidcls.data.decoding.result import undecodable
from vidcls.files import claim_file
from vidcls.prediction.catalogue import Content

ray_engine = pytest.importorskip("vidcls.prediction.ray_engine")
cluster = pytest.importorskip("vidcls.data.cluster")
machines = pytest.importorskip("vidcls.data.machines")
pytestmark = pytest.mark.usefixtures("cluster")
FILES = ("predictions.csv", "segments.csv")
OPTIONS = ["data.decode.workers=2"]


@pytest.fixture(scope="session")
def videos(shared: Path) -> Path:
    """Eight short videos, one of them damaged."""

    def make(folder: Path) -> None:
        for number in range(8):
            frames = np.random.default_rng(number).integers(60, size=(12, 32, 32, 3), dtype=np.uint8)
            write_video(folder / f"{number}.mp4", frames)
        content = (folder / "0.mp4").read_bytes()
        (folder / "0.mp4").write_bytes(content[: len(content) // 2])

    return once(shared, "eight", make)


@pytest.fixture(scope="session")
def local(shared: Path, finished: Path, videos: Path) -> Path:
    return once(shared, "eight_local", lambda folder: predict(finished, videos, folder, *OPTIONS))


def assert_same(found: Path, expected: Path) -> None:
    for name in FILES:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def forget_results(output: Path) -> None:
    """So that only the hashes are known, as after an interruption."""
    with closing(sqlite3.connect(output / "journal.sqlite")) as journal, journal:
        for table in ("results", "videos"):
            journal.execute(f"DELETE FROM {table}")


def elsewhere(there: Path) -> type:
    """Readers on a machine that has ``there`` in the place of the folder of the videos."""

    class ElsewhereReader(ray_engine.Reader):  # type: ignore[misc, name-defined]
        def obtain(self, locations: Sequence[str]) -> tuple[list[Any], Path | None]:
            return super().obtain([str(there / Path(location).name) for location in locations])

        def read(self, contents: Sequence[Content], max_windows: float) -> Iterator[tuple[int, Any]]:
            yield from super().read([replace(one, file=there / one.file.name) for one in contents], max_windows)

    return ElsewhereReader


def test_copies_of_the_videos_do_as_well(
    finished: Path, videos: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their inodes and times are others."""
    shutil.copytree(videos, tmp_path / "copies")
    monkeypatch.setattr(ray_engine._Driver, "reader", elsewhere(tmp_path / "copies"))
    for _ in range(2):
        predict(finished, videos, tmp_path / "out", *OPTIONS, "engine=ray")
        assert_same(tmp_path / "out", local)
        forget_results(tmp_path / "out")


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("difference", ["absent", "older"])
def test_other_contents_end_it(
    finished: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: str, hashed: bool
) -> None:
    """With the file and the machine, and no row for it, also where its hash is known already."""
    there, command = tmp_path / "there", [f"run={finished}", f"input={videos}", f"output={tmp_path}/out", *OPTIONS]
    shutil.copytree(videos, there)
    if hashed:
        monkeypatch.setattr(ray_engine._Driver, "reader", elsewhere(there))
        assert call("predict.py", *command, "engine=ray").code == 0
        forget_results(tmp_path / "out")
    (there / "5.mp4").unlink()
    if difference == "older":
        shutil.copy(videos / "6.mp4", there / "5.mp4")
    monkeypatch.setattr(ray_engine._Driver, "reader", elsewhere(there))
    result = call("predict.py", *command, "engine=ray")
    refused(result, "[shared-paths]", "5.mp4 on machine")
    assert "5.mp4" not in (tmp_path / "out" / "predictions.csv").read_text()


@pytest.mark.parametrize("part", ["Reader", "Network"])
def test_other_packages_end_it(
    finished: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    class OtherReader(ray_engine.Reader):  # type: ignore[misc, name-defined]
        def start(self, versions: Any) -> tuple[str, str]:
            return super().start(versions | {"av": "1.0"})

    class OtherNetwork(ray_engine.Network):  # type: ignore[misc, name-defined]
        def load(self, config: Any) -> None:
            super().load(replace(config, versions=config.versions | {"av": "1.0"}))

    if part == "Reader":
        monkeypatch.setattr(ray_engine._Driver, "reader", OtherReader)
    else:
        monkeypatch.setattr(ray_engine, "Network", OtherNetwork)
    result = call("predict.py", f"run={finished}", f"input={videos}", f"output={tmp_path}/out", *OPTIONS, "engine=ray")
    refused(result, "[cluster-packages]", "instead of 1.0")


def test_a_machine_that_kills_decoders_is_not_believed(
    finished: Path, videos: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system does where memory is short."""

    class SickReader(ray_engine.Reader):  # type: ignore[misc, name-defined]
        def start(self, versions: Any) -> tuple[str, str]:  # each reader on a machine of its own
            return super().start(versions)[0], self._prefix

        def read(self, contents: Sequence[Content], max_windows: float) -> Iterator[tuple[int, Any]]:
            claim_file(tmp_path / "sick", self._prefix)
            for index, (decoded, result) in super().read(contents, max_windows):
                if (tmp_path / "sick").read_text() == self._prefix:
                    decoded = undecodable("decord: the decoding process died (SIGKILL)")
                    result = result[0] | {"status": "undecodable"}, None
                yield index, (decoded, result)

    monkeypatch.setattr(machines.Head, "machines", property(lambda _: ["one", "two"], lambda *_: None), raising=False)
    monkeypatch.setattr(ray_engine._Driver, "reader", SickReader)
    predict(finished, videos, tmp_path / "out", *OPTIONS, "engine=ray")
    assert_same(tmp_path / "out", local)


def test_a_machine_that_starts_no_decoders_is_no_fault_of_the_videos(
    finished: Path, videos: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it recovers, or ends the command."""

    class SickReader(ray_engine.Reader):  # type: ignore[misc, name-defined]
        def _classified(self, *arguments: Any) -> Any:
            times = len(list(tmp_path.glob("sick_*")))
            if times < 8:
                claim_file(tmp_path / f"sick_{times}", "")
                raise BrokenExecutor("no process")
            return super()._classified(*arguments)

    monkeypatch.setattr(ray_engine._Driver, "reader", SickReader)
    monkeypatch.setattr(cluster, "MAX_LOST", 4)
    command = [f"run={finished}", f"input={videos}", f"output={tmp_path}/out", *OPTIONS, "engine=ray"]
    refused(call("predict.py", *command), "[workers-failed]", "no decoding process can be started")
    predict(finished, videos, tmp_path / "out", *OPTIONS, "engine=ray")
    assert_same(tmp_path / "out", local)


def test_a_cluster_without_a_free_cpu_is_waited_for(
    finished: Path, videos: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 1.0)
    other = cluster.ray.remote(lambda: time.sleep(8)).options(num_cpus=2).remote()
    printed = predict(finished, videos, tmp_path / "out", *OPTIONS, "engine=ray").stdout
    assert "Waiting for a free CPU of the cluster" in printed
    assert_same(tmp_path / "out", local)
    cluster.ray.get(other)


def test_a_reader_that_does_not_answer_is_replaced(
    finished: Path, videos: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would wait for ever. It is frozen, which looks like a machine that cannot be reached from here."""
    marker = tmp_path / "frozen"

    class FreezingReader(ray_engine.Reader):  # type: ignore[misc, name-defined]
        def read(self, contents: Sequence[Content], max_windows: float) -> Iterator[tuple[int, Any]]:
            if claim_file(marker, ""):
                os.kill(os.getpid(), signal.SIGSTOP)
            yield from super().read(contents, max_windows)

    monkeypatch.setattr(cluster, "PING_SECONDS", 1.0)
    monkeypatch.setattr(cluster, "UNREACHABLE_SECONDS", 5.0)
    monkeypatch.setattr(ray_engine._Driver, "reader", FreezingReader)
    predict(finished, videos, tmp_path / "out", *OPTIONS, "engine=ray")
    assert marker.exists()
    assert_same(tmp_path / "out", local)
