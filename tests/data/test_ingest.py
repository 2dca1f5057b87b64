from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from helpers.pools import processes
from helpers.videos import ffmpeg, write_video
from rich.console import Console

import vidcls
from vidcls.data.decoding.frames import decode
from vidcls.data.ingest import ingest
from vidcls.data.manifest import MANIFEST_COLUMNS, report_bad
from vidcls.data.options import DecodeLimits
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FrameStore
from vidcls.errors import UserError
from vidcls.files import hash_file

LIMITS = DecodeLimits(workers=2)
FRAMES, SIDE = 4, 32


def draw(path: Path, level: int, count: int = 8, height: int = 48) -> Path:
    """A short video of one grey, brighter from left to right."""
    row = np.clip(level + np.arange(64).repeat(height // 48), 0, 255).astype(np.uint8)
    return write_video(path, np.broadcast_to(row[None, None, :, None], (count, height, len(row), 3)))


def listing(*files: Path) -> pd.DataFrame:
    rows = [(f"safe/{file.name}", str(file), "safe", "", f"creator of {file.stem}") for file in files]
    return pd.DataFrame(rows, columns=["path", "file", "label", "split", "creator"], dtype=str)


def run(
    folder: Path, *files: Path, limits: DecodeLimits = LIMITS, store: FrameStore | None = None
) -> tuple[pd.DataFrame, FrameStore]:
    store = store or FrameStore(folder / "store", StoreSpec(FRAMES, SIDE))
    return ingest(listing(*files), store, limits, folder / "hashes.sqlite")[0], store


def entries(store: FrameStore) -> dict[Path, int]:
    """When each entry of the store was written."""
    return {path: path.stat().st_mtime_ns for path in store.folder.rglob("*.safetensors")}


# ---- videos that are well


def test_each_video_is_stored_and_listed(tmp_path: Path) -> None:
    files = [draw(tmp_path / f"{name}.mp4", level) for name, level in (("b", 40), ("c", 90), ("a", 140))]
    twin = tmp_path / "twin.mp4"
    twin.write_bytes(files[0].read_bytes())
    videos = listing(*files, twin)
    videos.index = pd.Index([7, 3, 5, 1])  # as of a table that was filtered: only the order counts
    store = FrameStore(tmp_path / "store", StoreSpec(FRAMES, SIDE))
    manifest, cost = ingest(videos, store, LIMITS, tmp_path / "new" / "hashes.sqlite")
    assert cost.seconds > 0 and cost.decoded == 3  # twins are decoded once
    assert list(manifest.columns) == [*MANIFEST_COLUMNS, "file"]
    assert list(manifest["path"]) == [f"safe/{name}.mp4" for name in ("b", "c", "a", "twin")]
    for column in ("label", "split", "creator", "file"):
        assert list(manifest[column]) == list(videos[column])
    assert list(manifest["status"]) == ["ok"] * 4
    assert list(manifest["reason"]) == [""] * 4
    assert list(manifest["decoder"]) == ["decord"] * 4
    assert list(manifest["coverage"]) == [1.0] * 4
    assert list(manifest["seconds"]) == pytest.approx([8 / 25] * 4, abs=1e-3)
    for file, sha256 in zip(manifest["file"], manifest["sha256"], strict=True):
        assert sha256 == hashlib.sha256(Path(file).read_bytes()).hexdigest() == hash_file(Path(file))
        frames, _ = decode(Path(file), StoreSpec(FRAMES, SIDE), ("decord",))
        np.testing.assert_array_equal(store.read(sha256, np.arange(FRAMES)), frames)
    assert len(entries(store)) == 3  # the twins share theirs


def test_only_what_is_new_or_broken_is_decoded_again(tmp_path: Path) -> None:
    files = [draw(tmp_path / f"{number}.mp4", 30 * number) for number in range(4)]
    first, store = run(tmp_path, *files)
    before = entries(store)
    again, _ = run(tmp_path, *files)
    pd.testing.assert_frame_equal(again, first)
    assert entries(store) == before

    broken = store.path(first["sha256"][1])
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    short = store.path(first["sha256"][2])
    short.write_bytes(short.read_bytes()[:100])
    draw(files[3], 200)  # another video under the same name
    before = entries(store)
    fixed, _ = run(tmp_path, *files)
    assert list(fixed["status"]) == ["ok"] * 4
    assert list(fixed["sha256"][:3]) == list(first["sha256"][:3])
    assert fixed["sha256"][3] == hash_file(files[3]) != first["sha256"][3]
    after = entries(store)
    assert {path for path in after if after[path] != before.get(path)} == {
        broken,
        short,
        store.path(fixed["sha256"][3]),
    }
    for sha256, file in zip(fixed["sha256"], files, strict=True):
        frames, _ = decode(file, StoreSpec(FRAMES, SIDE), ("decord",))
        np.testing.assert_array_equal(store.read(sha256, np.arange(FRAMES)), frames)


def test_of_several_that_want_the_same_one_decodes(tmp_path: Path) -> None:
    """Jobs of a sweep start together: those that come later wait, and find everything there."""
    files = [draw(tmp_path / f"{number}.mp4", 30 * number) for number in range(4)]
    store = FrameStore(tmp_path / "store", StoreSpec(FRAMES, SIDE))
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(ingest, listing(*files), store, LIMITS, tmp_path / "hashes.sqlite") for _ in range(3)]
    manifests, costs = zip(*(job.result() for job in jobs), strict=True)
    assert sorted(cost.decoded for cost in costs) == [0, 0, 4]
    for manifest in manifests[1:]:
        pd.testing.assert_frame_equal(manifest, manifests[0])


def test_nothing_starts_where_everything_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job of a sweep ingests, all but the first for nothing: seconds of starting processes would add up."""
    files = [draw(tmp_path / f"{number}.mp4", 30 * number) for number in range(2)]
    first, store = run(tmp_path, *files)
    monkeypatch.delattr("vidcls.data.decoding.pool.ProcessPool")  # whoever asks for one fails
    again, cost = ingest(listing(*files), store, LIMITS, tmp_path / "hashes.sqlite")
    pd.testing.assert_frame_equal(again, first)
    assert cost.decoded == 0


# ---- videos that are not


def test_no_bad_file_stops_the_others(tmp_path: Path) -> None:
    """One of each kind, among them a pipe, on which a reader would wait for ever."""
    good = [draw(tmp_path / f"good{number}.mp4", 40 * number) for number in range(3)]
    bad = {name: tmp_path / f"{name}.mp4" for name in ("text", "empty", "sound", "folder", "missing", "waiting")}
    bad["text"].write_text("no video\n" * 200)
    bad["empty"].write_bytes(b"")
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", "-c:a", "aac", bad["sound"])
    bad["folder"].mkdir()
    os.mkfifo(bad["waiting"])
    noise = tmp_path / "no_index.mp4"
    noise.write_bytes(good[2].read_bytes()[:-400])
    bad["no_index"] = noise
    order = [good[0], bad["waiting"], *[file for name, file in bad.items() if name != "waiting"], *good[1:]]
    started = time.monotonic()
    manifest, store = run(tmp_path, *order, limits=DecodeLimits(workers=2, timeout_seconds=2.0))
    assert time.monotonic() - started < 60
    assert list(manifest["path"]) == [f"safe/{file.name}" for file in order]
    rows = manifest.set_index(manifest["path"].str.removeprefix("safe/").str.removesuffix(".mp4"))
    assert set(rows.index[rows["status"] == "ok"]) == {"good0", "good1", "good2"}
    assert set(rows.index[rows["status"] == "undecodable"]) == set(bad)
    undecodable = rows.loc[list(bad)]
    assert (undecodable["decoder"] == "").all()
    assert (undecodable[["seconds", "coverage"]] == 0).all(axis=None)
    assert not undecodable["reason"].str.contains("\n").any()
    assert not undecodable["reason"].str.contains(str(tmp_path), regex=False).any()
    assert rows["reason"]["waiting"] == "the file cannot be read: not a regular file"
    for name in ("text", "empty", "sound", "no_index"):
        assert rows["reason"][name].startswith("pyav: ")
        assert rows["sha256"][name] == hash_file(bad[name])
    assert rows["reason"]["folder"] == "the file cannot be read: not a regular file"
    assert rows["reason"]["missing"] == "the file cannot be read: No such file or directory"
    assert len(entries(store)) == 3
    assert processes() == []


def test_a_video_that_eats_memory_is_given_up(tmp_path: Path) -> None:
    big = tmp_path / "big.mov"
    ffmpeg("-f", "lavfi", "-i", "color=c=gray:s=16x16:d=0.2", "-c:v", "qtrle", big)
    content = big.read_bytes()
    size = content.index(b"rle ") + 28  # then 16000 x 16000, of which a frame takes 770 MB
    big.write_bytes(content[:size] + 2 * (16000).to_bytes(2, "big") + content[size + 4 :])
    good = [draw(tmp_path / "before.mp4", 40), draw(tmp_path / "after.mp4", 80)]
    limits = DecodeLimits(workers=1, timeout_seconds=60.0, memory_gigabytes=1.0)
    manifest, _ = run(tmp_path, good[0], big, good[1], limits=limits)
    assert list(manifest["status"]) == ["ok", "undecodable", "ok"]
    assert "memory" in manifest["reason"][1].lower()


def test_a_decoder_that_dies_takes_no_other_video_with_it(many: Path, tmp_path: Path) -> None:
    """Workers are killed, as by the system when memory is short, while they decode."""
    store = FrameStore(tmp_path / "store", StoreSpec(40, 64))
    files = sorted(many.iterdir())
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(run, tmp_path, *files, limits=DecodeLimits(workers=1), store=store)
        deadline = time.monotonic() + 150
        while not entries(store) and time.monotonic() < deadline:
            time.sleep(0.001)
        for worker in processes():
            worker.kill()
        manifest, _ = future.result()
    assert list(manifest["status"]) == ["ok"] * 20 and set(manifest["decoder"]) == {"decord"}
    assert (manifest["sha256"] != "").all()


def test_a_video_that_times_out_keeps_its_hash(tmp_path: Path) -> None:
    slow = tmp_path / "slow.mp4"  # with a single key frame: about 300 frames are decoded for the last of the four
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=1280x720:d=15", "-preset", "ultrafast", "-g", "9999", slow)
    manifest, _ = run(tmp_path, slow, limits=DecodeLimits(workers=1, timeout_seconds=0.1))
    assert manifest["status"][0] == "undecodable" and "timed out after 0.1 s" in manifest["reason"][0]
    assert manifest["sha256"][0] == hash_file(slow)


def test_a_store_that_cannot_be_written_is_not_the_videos_fault(tmp_path: Path) -> None:
    """As with another user's cache: the folder of an entry is a file here, which root cannot write into either."""
    video = draw(tmp_path / "a.mp4", 40)
    store = FrameStore(tmp_path / "store", StoreSpec(FRAMES, SIDE))
    store.folder.mkdir(parents=True)
    store.path(hash_file(video)).parent.write_text("in the way")
    with pytest.raises(UserError) as error:
        run(tmp_path, video, store=store)
    assert error.value.code == "cache-unwritable"


# ---- interrupted

# argv: folder with videos, work folder, more videos, which come first.
INGEST = """
import sys
from pathlib import Path
import pandas as pd
from vidcls.data.options import DecodeLimits
from vidcls.data.ingest import ingest
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FrameStore
from vidcls.errors import UserError
videos, work = Path(sys.argv[1]), Path(sys.argv[2])
files = [*map(Path, sys.argv[3:]), *sorted(videos.iterdir())]
rows = [(file.name, str(file), "safe", "", "") for file in files]
listing = pd.DataFrame(rows, columns=["path", "file", "label", "split", "creator"], dtype=str)
try:
    ingest(listing, FrameStore(work / "store", StoreSpec(40, 64)), DecodeLimits(workers=2), work / "hashes.sqlite")
except UserError as error:
    sys.exit(f"UserError: {error}")
"""


def start(script: str, folder: Path, *arguments: Path) -> subprocess.Popen[str]:
    """Runs ``script`` as a program of its own, from a file without a main guard."""
    (folder / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(vidcls.__file__).parents[1])}
    command = [sys.executable, folder / "script.py", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 videos, alike to look at but each of other bytes."""
    folder = tmp_path_factory.mktemp("many")
    content = draw(folder / "first.mp4", 100, count=60, height=240).read_bytes()
    (folder / "first.mp4").unlink()
    for number in range(20):
        free = b"free" + bytes([number] * 8)  # a box of an mp4 that nobody reads
        (folder / f"{number:02}.mp4").write_bytes(content + (len(free) + 4).to_bytes(4, "big") + free)
    return folder


def test_a_killed_ingest_goes_on_where_it_was(many: Path, tmp_path: Path) -> None:
    """And its workers end with it, also one that waits for a video that never comes."""
    waiting = tmp_path / "waiting.mp4"
    os.mkfifo(waiting)
    store = FrameStore(tmp_path / "store", StoreSpec(40, 64))
    ingesting = start(INGEST, tmp_path, many, tmp_path, waiting)
    deadline = time.monotonic() + 150
    while len(entries(store)) < 4 and ingesting.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert ingesting.poll() is None
    workers = processes(ingesting.pid)
    assert len(workers) == 2
    ingesting.send_signal(signal.SIGKILL)
    _, left = psutil.wait_procs(workers, timeout=120)
    for worker in left:
        worker.kill()
    _, complaint = ingesting.communicate(timeout=120)
    assert ingesting.returncode == -signal.SIGKILL, complaint
    assert left == []
    before = entries(store)
    assert 4 <= len(before) < 20

    files = sorted(many.iterdir())
    manifest, _ = run(tmp_path, *files, store=store)
    assert list(manifest["status"]) == ["ok"] * 20
    after = entries(store)
    assert len(after) == 20
    assert {path: after[path] for path in before} == before


def test_a_full_disk_stops_the_ingest_and_keeps_what_is_stored(many: Path, tmp_path: Path) -> None:
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
    full = start(limit + INGEST, tmp_path, many, tmp_path)
    _, complaint = full.communicate(timeout=100)
    assert full.returncode == 1, complaint
    message = complaint.strip().splitlines()[-1]
    assert message.startswith("UserError: ") and message.endswith("[disk-full]")
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == [".ingest.lock"]


# ---- reports


def test_the_report_names_the_bad_ones() -> None:
    rows = [("ok", "safe/a.mp4", ""), ("partial", "safe/b.mp4", "2 of 4"), ("undecodable", "adult/[/c]_1.mp4", "[why]")]
    rows.append(("undecodable", "\x1b[2J.mp4", "why"))
    manifest = pd.DataFrame(rows, columns=["status", "path", "reason"])
    written = io.StringIO()
    report_bad(manifest, Console(file=written, width=40))
    assert (
        written.getvalue()
        == "partial safe/b.mp4: 2 of 4\nundecodable adult/[/c]_1.mp4: [why]\nundecodable \\x1b[2J.mp4: why\n"
    )


def test_a_long_report_is_cut_and_says_so() -> None:
    manifest = pd.DataFrame({"status": "undecodable", "path": [f"{n}.mp4" for n in range(25)], "reason": "why"})
    written = io.StringIO()
    report_bad(manifest, Console(file=written), limit=5)
    lines = written.getvalue().splitlines()
    assert lines[:5] == [f"undecodable {n}.mp4: why" for n in range(5)]
    assert len(lines) == 6 and "and 20 more" in lines[5] and "manifest.csv" in lines[5]
