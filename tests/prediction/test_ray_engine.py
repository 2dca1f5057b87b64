"""engine=ray gives what engine=local gives, whatever dies."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bright import lit
from helpers.cluster import equip
from helpers.commands import call, once
from helpers.runs import predict, refused, rows_of
from helpers.s3 import BUCKET, S3, SECRET, serve_s3
from helpers.videos import write_video

from vidcls.data.options import EngineOptions
from vidcls.errors import UserError
from vidcls.files import claim_file
from vidcls.prediction.catalogue import Catalogue, Content

ray_engine = pytest.importorskip("vidcls.prediction.ray_engine")
pytestmark = pytest.mark.usefixtures("cluster")
# The long video has more windows than those that are read with the others.
OPTIONS = ["predict.max_whole_seconds=3", "predict.window_seconds=1", "predict.stride_seconds=0.05"]
OPTIONS += ["data.decode.workers=2"]
FILES = ("predictions.csv", "segments.csv", "report.html")


def noise(seconds: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, size=(round(25 * seconds), 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def mixed(shared: Path) -> Path:
    """Short and long videos, a copy, and three that are damaged."""

    def make(folder: Path) -> None:
        for number in range(5):
            write_video(folder / f"short_{number}.mp4", noise(0.5, number))
        write_video(folder / "poison.mp4", noise(0.5, 5))
        content = write_video(folder / "long.mkv", noise(8, 6)).read_bytes()
        (folder / "part.mkv").write_bytes(content[: len(content) // 2])
        (folder / "no_video.mp4").write_text("no video")
        (folder / "empty.mp4").write_bytes(b"")
        shutil.copy(folder / "short_1.mp4", folder / "copy.mp4")

    return once(shared, "mixed", make)


@pytest.fixture(scope="session")
def local(shared: Path, finished: Path, mixed: Path) -> Path:
    return once(shared, "mixed_local", lambda folder: predict(finished, mixed, folder, *OPTIONS))


def test_results_are_those_of_the_local_engine(
    finished: Path, mixed: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a file changes meanwhile, and nothing is read when the command is repeated."""
    changing, assign = tmp_path / "in" / "short_4.mp4", Catalogue.assign
    shutil.copytree(mixed, tmp_path / "in")
    write_video(changing, noise(0.5, 9))

    def assign_and_change(catalogue: Catalogue, hashes: dict[str, Any], *files: Any) -> list[Content]:
        contents = assign(catalogue, hashes, *files)
        if changing.name in hashes and changing.read_bytes() != (mixed / changing.name).read_bytes():
            shutil.copy(mixed / "short_4.mp4", changing)
        return contents

    monkeypatch.setattr(Catalogue, "assign", assign_and_change)
    predict(finished, tmp_path / "in", tmp_path / "out", *OPTIONS, "engine=ray")
    monkeypatch.undo()
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (local / name).read_bytes(), name
    monkeypatch.setattr(ray_engine._Driver, "_read", None)
    predict(finished, tmp_path / "in", tmp_path / "out", *OPTIONS, "engine=ray")
    assert (tmp_path / "out" / FILES[0]).read_bytes() == (local / FILES[0]).read_bytes()


def test_a_coarse_search_finds_the_same(bright: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "hit.mp4", lit(40, (18, 21)))
    write_video(tmp_path / "in" / "dark.mp4", lit(40))
    options = ["predict.max_whole_seconds=3", "predict.window_seconds=1", "predict.search=coarse"]
    options.append("data.decode.workers=1")
    for name, engine in (("local", []), ("ray", ["engine=ray"])):
        predict(bright, tmp_path / "in", tmp_path / name, *options, "predict.coarse_stride_seconds=2", *engine)
    for file in FILES:
        assert (tmp_path / "ray" / file).read_bytes() == (tmp_path / "local" / file).read_bytes(), file
    assert rows_of(tmp_path / "ray")["decision"].to_dict() == {"dark.mp4": "allow", "hit.mp4": "block"}


def test_what_dies_is_replaced_and_what_kills_is_given_up(
    finished: Path, mixed: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, network = ray_engine.Reader, ray_engine.Network

    def die_once(name: str) -> None:
        if claim_file(tmp_path / name, ""):
            os.kill(os.getpid(), signal.SIGKILL)

    class MortalNetwork(network):  # type: ignore[misc, valid-type]
        def predict(self, windows: np.ndarray, reading: Any) -> np.ndarray:
            die_once("network")
            return super().predict(windows, reading)

    class MortalReader(reader):  # type: ignore[misc, valid-type]
        def read(self, contents: Sequence[Content], max_windows: float) -> Iterator[tuple[int, Any]]:
            for place, result in super().read(contents, max_windows):
                if contents[place].file.name == "poison.mp4":
                    os.kill(os.getpid(), signal.SIGKILL)
                yield place, result
                die_once("reader")

    monkeypatch.setattr(ray_engine, "Network", MortalNetwork)
    monkeypatch.setattr(ray_engine._Driver, "reader", MortalReader)
    predict(finished, mixed, tmp_path / "out", *OPTIONS[:-1], "data.decode.workers=1", "engine=ray")
    assert (tmp_path / "network").exists() and (tmp_path / "reader").exists()
    found, expected = rows_of(tmp_path / "out"), rows_of(local)
    assert found.loc["poison.mp4", "status"] == "undecodable"
    assert ray_engine.QUARANTINED in found.loc["poison.mp4", "reason"]
    assert found.drop("poison.mp4").equals(expected.drop("poison.mp4"))


@pytest.fixture
def s3(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The videos behind URLs, listed in list.txt."""
    with serve_s3() as server:
        server.reset()
        urls = [server.put(f"clips/{file.name}", file.read_bytes()) for file in sorted(mixed.iterdir())]
        (tmp_path / "list.txt").write_text("\n".join(urls))
        monkeypatch.setattr(ray_engine._Driver, "reader", equip(ray_engine.Reader, tmp_path / "scratch"))
        yield server


def test_videos_behind_urls_have_the_results_of_the_local_engine(
    s3: S3, finished: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though two cannot be fetched, there is room for few at a time, and a reader dies beside what it has fetched.

    One that kills its readers is given up.
    """
    reader, source = ray_engine._Driver.reader, tmp_path / "list.txt"
    signed = s3.client.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": "clips/short_2.mp4"})
    signature = signed.partition("Signature=")[2].partition("&")[0]
    absent, truncated = f"s3://{BUCKET}/clips/absent.mp4", f"s3://{BUCKET}/clips/short_3.mp4"
    source.write_text("\n".join([source.read_text(), signed, absent, str(mixed / "short_0.mp4")]))
    s3.faults["clips/short_3.mp4"] = ["truncated", ...]
    gigabytes = (mixed / "long.mkv").stat().st_size / 1e9
    options = [*OPTIONS[:-1], "data.decode.workers=1", "data.fetch.attempts=2"]
    options += [f"data.fetch.max_gigabytes={gigabytes}", f"data.fetch.space_gigabytes={gigabytes}"]
    predict(finished, source, tmp_path / "local", *options)

    class MortalReader(reader):  # type: ignore[misc, valid-type]
        def read(self, contents: Sequence[Content], max_windows: float) -> Iterator[tuple[int, Any]]:
            for place, result in super().read(contents, max_windows):
                if contents[place].file.name == "short_3.mp4":
                    os.kill(os.getpid(), signal.SIGKILL)
                yield place, result
                folder = contents[place].file.parent
                if folder != mixed and claim_file(tmp_path / "died_beside", str(folder)):
                    os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ray_engine._Driver, "reader", MortalReader)
    printed = predict(finished, source, tmp_path / "ray", *options, "engine=ray")
    for name in FILES:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
    rows = rows_of(tmp_path / "ray")
    assert set(rows.index[rows["status"] == "unfetchable"]) == {absent, truncated}
    assert "2 attempts" in rows.loc[truncated, "reason"] and "not found" in rows.loc[absent, "reason"]
    logs = Path(ray_engine.ray._private.worker._global_node.get_logs_dir_path())
    written = [path for folder in (tmp_path / "ray", logs) for path in folder.rglob("*") if path.is_file()]
    text = printed.stdout + printed.stderr + "".join(path.read_bytes().decode("latin-1") for path in written)
    assert signature and SECRET not in text and signature not in text
    s3.faults.clear()  # now the video that was truncated kills its readers
    predict(finished, source, tmp_path / "ray", *options, "engine=ray")
    row = rows_of(tmp_path / "ray").loc[truncated]
    assert row["status"] == "undecodable" and ray_engine.QUARANTINED in row["reason"]
    assert not Path((tmp_path / "died_beside").read_text()).exists()


def test_machines_that_do_not_find_the_videos_end_it(
    finished: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than calling them undecodable."""

    class ElsewhereReader(ray_engine.Reader):  # type: ignore[misc, name-defined]
        def obtain(self, locations: Sequence[str]) -> tuple[list[Any], Path | None]:
            return super().obtain([f"/nowhere/{Path(location).name}" for location in locations])

    monkeypatch.setattr(ray_engine._Driver, "reader", ElsewhereReader)
    command = [f"run={finished}", f"input={mixed}", f"output={tmp_path / 'out'}", "engine=ray"]
    refused(call("predict.py", *command), "[shared-paths]", "shared file system")


def test_options_are_checked(finished: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [f"run={finished}", f"input={mixed}", f"output={tmp_path / 'out'}", "engine=ray"]
    refused(call("predict.py", *command, "engine.networks=0"), "[engine.networks]")
    monkeypatch.setattr("vidcls.data.options.find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        EngineOptions("ray")
    assert error.value.code == "no-ray"
