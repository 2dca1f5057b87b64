"""predict.py killed, interrupted, on a full disk, and with the output of another run."""

from __future__ import annotations

import resource
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from helpers.bright import lit
from helpers.commands import call, once, start
from helpers.runs import details_of, predict, refused, rows_of, wait_until
from helpers.videos import write_video

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def many(shared: Path) -> Path:
    """A folder of videos that take some seconds in all."""

    def make(folder: Path) -> None:
        for number in range(8):
            frames = lit(10 + number, (number, number + 3)).repeat(2, axis=1).repeat(2, axis=2)
            write_video(folder / f"video_{number:02}.mp4", frames)

    return once(shared, "many", make)


WINDOWS = [
    "predict.window_seconds=2",
    "predict.stride_seconds=0.1",
    "predict.max_whole_seconds=2",
    "data.decode.workers=1",
]


FILES = ("predictions.csv", "segments.csv", "predict.json")


def num_done(output: Path) -> int:
    """How many videos the journal holds, for a run that may be killed at any moment."""
    copied = output.with_name(f"{output.name}.copy")
    shutil.rmtree(copied, ignore_errors=True)
    copied.mkdir()
    try:
        for file in output.glob("journal.sqlite*"):
            shutil.copy(file, copied)
        with closing(sqlite3.connect(copied / "journal.sqlite")) as database:
            return database.execute("SELECT count(*) FROM videos").fetchone()[0]
    except (sqlite3.Error, OSError):  # it is being created
        return 0


def assert_same_results(output: Path, reference: Path) -> None:
    for name in FILES:
        assert (output / name).read_bytes() == (reference / name).read_bytes(), name
    timelines = [pd.read_parquet(folder / "timelines.parquet") for folder in (output, reference)]
    pd.testing.assert_frame_equal(*timelines)
    assert details_of(output) == details_of(reference)
    # The facts at its head and the rows are the same; the details are listed in the same order.
    assert (output / "report.html").read_bytes() == (reference / "report.html").read_bytes()


@pytest.fixture(scope="session")
def undisturbed(shared: Path, bright: Path, many: Path) -> Path:
    return once(shared, "undisturbed", lambda folder: predict(bright, many, folder, *WINDOWS))


def test_killed_and_then_interrupted_a_run_ends_as_if_nothing_had_happened(
    bright: Path, many: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """After `kill -9` the journal alone is there; after Ctrl-C all files are, for what has been done."""
    output, command = tmp_path / "out", [f"run={bright}", f"input={many}", f"output={tmp_path / 'out'}", *WINDOWS]
    process = start("predict.py", *command, cwd=tmp_path)
    wait_until(lambda: num_done(output) > 0, process)
    process.kill()
    process.communicate(timeout=200)
    killed = num_done(output)
    assert 0 < killed < 8 and not (output / "predictions.csv").exists()
    process = start("predict.py", *command, cwd=tmp_path)
    wait_until(lambda: num_done(output) > killed, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 130 and "interrupted" in stderr and "Traceback" not in stderr
    done, details = rows_of(output), details_of(output)
    assert killed < len(done) < 8 and f"{len(done)} of 8 videos" in stdout
    assert set(pd.read_parquet(output / "timelines.parquet")["path"]) == set(done.index)
    assert all(path in (output / "report.html").read_text() for path in done.index)
    predict(bright, many, output, *WINDOWS)
    assert list(details_of(output).items())[: len(details)] == list(details.items())  # nothing was done twice
    assert_same_results(output, undisturbed)


def test_a_full_disk_is_one_clear_line_and_what_is_done_is_kept(
    bright: Path, many: Path, undisturbed: Path, tmp_path: Path
) -> None:
    command = [f"run={bright}", f"input={many}", f"output={tmp_path / 'out'}", *WINDOWS]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))  # the journal outgrows it
        refused(call("predict.py", *command), "[output-full]")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 0 < num_done(tmp_path / "out") < 8
    predict(bright, many, tmp_path / "out", *WINDOWS)
    assert_same_results(tmp_path / "out", undisturbed)


# ---- refused


def test_another_runs_output_is_refused(
    bright: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = write_video(tmp_path / "a.mp4", lit(2))
    predict(bright, video, tmp_path / "out")
    options = [f"input={video}", f"output={tmp_path / 'out'}"]
    refused(call("predict.py", f"run={finished}", *options), "the same model, policy", "[other-settings]")
    refused(
        call("predict.py", f"run={bright}", *options, "predict.aggregation=mean"),
        "the same aggregation",
        "[other-settings]",
    )
    with monkeypatch.context() as patched:
        patched.setattr("vidcls.data.store.DECODE_VERSION", 10**6)  # the program has been updated since
        refused(call("predict.py", f"run={bright}", *options), "the same decoding", "[other-settings]")
    refused(call("predict.py", f"run={bright}", options[0], f"output={video}"), "[output]")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("precious")
    refused(call("predict.py", f"run={bright}", options[0], f"output={tmp_path / 'mine'}"), "[foreign-output]")


def test_two_at_once_in_one_folder_are_refused(bright: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", lit(2))
    predict(bright, video, tmp_path / "out")
    with closing(sqlite3.connect(tmp_path / "out" / "journal.sqlite")) as held:
        held.execute("BEGIN EXCLUSIVE")
        before = (tmp_path / "out" / "predictions.csv").read_bytes()
        result = call("predict.py", f"run={bright}", f"input={video}", f"output={tmp_path / 'out'}")
        refused(result, "[output-in-use]")
        assert (tmp_path / "out" / "predictions.csv").read_bytes() == before
    predict(bright, video, tmp_path / "out")
