"""predict.py over videos behind URLs, from a real S3 protocol server, with faults."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.commands import call
from helpers.runs import CLASSES, predict, refused, rows_of
from helpers.s3 import BUCKET, S3, SECRET, serve_s3
from helpers.videos import write_video

from vidcls.data import remote
from vidcls.files import hash_file

QUICK = ["data.fetch.attempts=2", "data.fetch.timeout_seconds=20", "data.decode.workers=1"]
FOLDER = f"s3://{BUCKET}/clips"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of short videos, all different but for one copy."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(5):
        write_video(folder / f"day {number % 2}" / f"{number}.mp4", np.full((6, 32, 32, 3), 40 * number, np.uint8))
    shutil.copy(folder / "day 0" / "0.mp4", folder / "day 1" / "copy.mp4")
    (folder / "day 1" / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def server(clips: Path) -> Iterator[S3]:
    with serve_s3() as found:
        yield found


@pytest.fixture
def s3(server: S3, clips: Path, monkeypatch: pytest.MonkeyPatch) -> S3:
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.001)
    server.reset()
    for path in clips.rglob("*.mp4"):
        server.put(f"clips/{path.relative_to(clips)}", path.read_bytes())
    server.gets.clear()
    return server


@pytest.fixture(scope="module")
def local(clips: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """predictions.csv of the same videos in a local folder."""
    output = tmp_path_factory.mktemp("local") / "out"
    predict(finished, clips, output, *QUICK)
    return (output / "predictions.csv").read_bytes()


def written(output: Path) -> str:
    return "".join(path.read_bytes().decode("latin-1") for path in output.rglob("*") if path.is_file())


def test_a_remote_folder_has_the_rows_of_a_local_one_and_is_fetched_once(
    s3: S3, finished: Path, local: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    predict(finished, FOLDER, output, *QUICK, "data.fetch.max_gigabytes=1e-5", "data.fetch.space_gigabytes=1e-5")
    assert (output / "predictions.csv").read_bytes() == local and len(s3.gets) == 7
    assert not (output / "fetched").exists() and SECRET not in written(output)
    s3.gets.clear()
    again = predict(finished, FOLDER, output, *QUICK)
    assert s3.gets == [] and "7 videos, 7 of them classified before" in again.stdout
    s3.put("clips/day 0/2.mp4", (s3.client.get_object(Bucket=BUCKET, Key="clips/day 1/3.mp4"))["Body"].read())
    s3.gets.clear()
    predict(finished, FOLDER, output, *QUICK)
    rows = rows_of(output)
    assert s3.gets == ["clips/day 0/2.mp4"]
    assert rows.loc["day 0/2.mp4"].equals(rows.loc["day 1/3.mp4"].rename("day 0/2.mp4"))


def test_what_cannot_be_fetched_is_for_review_and_tried_again(
    s3: S3, finished: Path, local: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    faults = {"day 0/0.mp4": "500", "day 0/2.mp4": "denied", "day 0/4.mp4": "truncated", "day 1/1.mp4": "gone"}
    s3.faults |= {f"clips/{name}": [fault, ...] for name, fault in faults.items()}
    result = predict(finished, FOLDER, output, *QUICK)
    rows = rows_of(output)
    assert len(rows) == 7 and "4 could not be fetched; the same command tries them again" in result.stdout
    lost = rows.loc[list(faults)]
    assert set(lost["status"]) == {"unfetchable"} and set(lost["decision"]) == {"review"}
    assert set(lost["sha256"]) == {""} and (lost[CLASSES] == "").all(axis=None)
    assert lost["reason"].str.contains("unfetchable: cannot be fetched: ").all()
    s3.faults.clear()
    s3.gets.clear()
    predict(finished, FOLDER, output, *QUICK)
    assert (output / "predictions.csv").read_bytes() == local and len(s3.gets) == 4


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_a_list_of_signed_urls_and_local_files(s3: S3, finished: Path, clips: Path, tmp_path: Path, kind: str) -> None:
    output, source = tmp_path / "out", tmp_path / f"list.{kind}"
    names = ["day 0/2.mp4", "day 1/1.mp4", "day 1/missing.mp4"]

    def sign(hours: int) -> list[str]:
        objects = [{"Bucket": BUCKET, "Key": f"clips/{name}"} for name in names]
        signed = [s3.client.generate_presigned_url("get_object", one, ExpiresIn=3600 * hours) for one in objects]
        table = pd.DataFrame({"url": [*signed, str(clips / "day 1" / "3.mp4"), "absent.mp4"]})
        if kind == "txt":
            source.write_text("\n".join(table["url"]))
        else:
            table.to_csv(source, index=False) if kind == "csv" else table.to_parquet(source)
        return signed

    signed = sign(hours=1)
    result = predict(finished, source, output, *QUICK)
    rows = rows_of(output)
    assert len(rows) == 5 and rows["status"].value_counts().to_dict() == {"ok": 3, "undecodable": 1, "unfetchable": 1}
    found = [str(name) for name in rows.index if str(name).startswith("http")]
    assert len(found) == 3 and all("ignature=***" in name for name in found)
    for url in signed:
        for part in url.partition("?")[2].split("&"):
            assert "ignature" not in part or part.partition("=")[2] not in written(output) + result.stdout
    s3.gets.clear()
    sign(hours=2)  # as one must after a while: under the same names, what is done stays done
    predict(finished, source, output, *QUICK)
    assert len(rows_of(output)) == 5 and not [key for key in s3.gets if "missing" not in key]


def test_inputs_that_are_refused(s3: S3, finished: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice.txt"
    twice.write_text("https://host/a.mp4?sig=1111\nhttps://host/a.mp4?sig=2222\n")
    cases = {
        "https://me:hunter2@host/clips/": "url-credentials",
        "https://host/a.mp4?X-Amz-Signature=hunter2": "url-credentials",
        f"s3://{BUCKET}/nothing/": "input",
        f"s3://{BUCKET}/list.txt": "unreadable-source",
        "s3://no-such-bucket/clips": "unreadable-source",
        "what://bucket/a/": "filesystem",
        f"s3://{BUCKET}/clips.zip": "input",
        str(twice): "same-name",
    }
    for number, (text, code) in enumerate(cases.items()):
        result = call("predict.py", f"run={finished}", f"input={text}", f"output={tmp_path / str(number)}", *QUICK)
        refused(result, f"[{code}]")
        assert not {"hunter2", "2222"} & set(result.stderr.replace("@", " ").replace("=", " ").split())


def test_an_object_named_like_a_local_file_is_not_that_file(
    s3: S3, finished: Path, clips: Path, tmp_path: Path
) -> None:
    other = clips / "day 0" / "0.mp4"
    url = s3.put(f"strange/{other}", (clips / "day 1" / "3.mp4").read_bytes())
    predict(finished, f"s3://{BUCKET}/strange", tmp_path / "out", *QUICK)
    (sha256,) = rows_of(tmp_path / "out")["sha256"]
    assert sha256 == hash_file(clips / "day 1" / "3.mp4") != hash_file(other) and url.endswith("//" + str(other)[1:])


def test_single_videos_behind_urls(s3: S3, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    predict(finished, f"{FOLDER}/day 1/3.mp4", output, *QUICK)
    before = rows_of(output)
    assert before["status"].to_dict() == {"3.mp4": "ok"}
    s3.put("clips/day 0/3.mp4", s3.client.get_object(Bucket=BUCKET, Key="clips/day 0/2.mp4")["Body"].read())
    again = predict(finished, f"{FOLDER}/day 0/3.mp4", output, *QUICK)  # another one of this name
    assert "1 again, whose rows are replaced" in again.stdout
    assert rows_of(output)["sha256"].to_dict() != before["sha256"].to_dict()
