from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.warm_python import warm_python

from vidcls.data.decoding.result import DecodeResult
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FrameStore, StoreEntryError
from vidcls.files import write_atomically
from vidcls.tensor_file import TensorFile

RESULT = DecodeResult("partial", "one frame of 6 is damaged", "pyav", 2.5, 5 / 6)
KEY = "ab" + 62 * "0"
OTHER = "cd" + 62 * "1"
ALL = np.arange(6)


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def store(tmp_path: Path, frames: np.ndarray) -> FrameStore:
    """A store that holds one video, KEY."""
    store = FrameStore(tmp_path / "store", StoreSpec(6, 8))
    store.write(KEY, frames, RESULT)
    return store


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---- what goes in comes out


def test_round_trip(store: FrameStore, frames: np.ndarray) -> None:
    assert store.find(KEY) == RESULT
    back = store.read(KEY, ALL)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, frames)


@pytest.mark.parametrize("indices", [[2], [0, 5], [1, 3, 5], [0, 0, 4, 4], [5, 4, 3, 2, 1, 0], [3, 4, 5, 0, 1, 2]])
def test_some_frames_only(store: FrameStore, frames: np.ndarray, indices: list[int]) -> None:
    np.testing.assert_array_equal(store.read(KEY, np.array(indices)), frames[indices])


def test_what_was_read_may_be_changed_and_does_not_change_the_store(store: FrameStore, frames: np.ndarray) -> None:
    for indices in (ALL, ALL[:2]):
        store.read(KEY, indices)[:] = 0
    np.testing.assert_array_equal(store.read(KEY, ALL), frames)


def test_a_video_that_is_not_there(store: FrameStore) -> None:
    assert store.find(OTHER) is None
    with pytest.raises(StoreEntryError, match=OTHER):
        store.read(OTHER, ALL)


def test_frames_of_other_decoders_are_not_found(store: FrameStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The versions of both decoders, and of the FFmpeg that each brings along, are in the address."""
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    assert f"_decord{metadata.version('decord')}-" in store.folder.name
    assert store.folder.name.endswith(f"_av{av.__version__}-{codec}")
    monkeypatch.setattr("vidcls.data.store.decoder_versions", lambda: {"av": "99"})
    assert FrameStore(store.folder.parent, store.spec).find(KEY) is None


def test_writing_again_replaces(store: FrameStore, frames: np.ndarray) -> None:
    ok = DecodeResult("ok", "", "decord", 2.5, 1.0)
    store.write(KEY, 255 - frames, ok)
    assert store.find(KEY) == ok
    np.testing.assert_array_equal(store.read(KEY, ALL), 255 - frames)
    assert files(store.folder) == [store.path(KEY)]


def test_each_choice_of_settings_and_each_video_has_its_own_place(tmp_path: Path) -> None:
    settings = [(6, 8, "uniform"), (8, 6, "uniform"), (6, 8, "first"), (68, 8, "uniform"), (6, 88, "uniform")]
    paths = {FrameStore(tmp_path, StoreSpec(*choice)).path(key) for choice in settings for key in (KEY, OTHER)}
    assert len(paths) == 2 * len(settings)
    assert all(path.is_relative_to(tmp_path) for path in paths)


def test_another_choice_of_settings_does_not_find_it(store: FrameStore, tmp_path: Path) -> None:
    for choice in ((3, 8, "uniform"), (6, 4, "uniform"), (6, 8, "first")):
        assert FrameStore(tmp_path / "store", StoreSpec(*choice)).find(KEY) is None


# ---- what the disk altered


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 0.5, 0.99, -1])
def test_a_truncated_entry_is_not_trusted(store: FrameStore, kept: float) -> None:
    path = store.path(KEY)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert store.find(KEY) is None
    with pytest.raises(StoreEntryError, match=path.name):
        store.read(KEY, ALL)


def test_an_entry_with_an_altered_byte_is_not_trusted(store: FrameStore, frames: np.ndarray) -> None:
    """Whichever byte it is: the entry is refused, or what was altered does not matter (as white space in the head)."""
    path = store.path(KEY)
    content = path.read_bytes()
    pixels = content.index(frames.tobytes())
    generator = np.random.default_rng(0)
    head = generator.choice(pixels, 120, replace=False).tolist()
    refused = 0
    for place in [*head, *generator.integers(pixels, len(content), 80).tolist(), len(content) - 1]:
        altered = bytearray(content)
        altered[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(altered)
        found = store.find(KEY)
        if pixels <= place < pixels + frames.nbytes:
            assert found is None, place
        refused += found is None
        if found is not None:
            np.testing.assert_array_equal(store.read(KEY, ALL), frames)
    assert refused > 80


def test_what_is_said_of_an_entry_is_checked_too(store: FrameStore) -> None:
    path = store.path(KEY)
    content = path.read_bytes()
    assert content.count(b"partial") == 1
    path.write_bytes(content.replace(b"partial", b"pbrtial"))
    assert store.find(KEY) is None


def test_damage_elsewhere_does_not_matter_to_a_reader_but_the_entry_is_built_again(
    store: FrameStore, frames: np.ndarray
) -> None:
    path = store.path(KEY)
    content = bytearray(path.read_bytes())
    content[content.index(frames[5].tobytes())] ^= 1
    path.write_bytes(content)
    np.testing.assert_array_equal(store.read(KEY, ALL[:5]), frames[:5])
    with pytest.raises(StoreEntryError, match="checksums"):
        store.read(KEY, ALL[4:])
    assert store.find(KEY) is None


def test_an_entry_of_another_shape_is_not_trusted(store: FrameStore, tmp_path: Path) -> None:
    other = FrameStore(tmp_path / "other", StoreSpec(6, 4))
    other.write(KEY, np.zeros((6, 4, 4, 3), np.uint8), RESULT)
    store.path(KEY).write_bytes(other.path(KEY).read_bytes())
    assert store.find(KEY) is None
    with pytest.raises(StoreEntryError, match=r"shape \[4, 4, 3\]"):
        store.read(KEY, ALL)


def test_a_folder_in_an_entrys_place_is_no_entry(store: FrameStore) -> None:
    store.path(OTHER).mkdir(parents=True)
    assert store.find(OTHER) is None


@pytest.mark.parametrize(("code", "times"), [(errno.ESTALE, 1), (errno.ESTALE, 2), (errno.EIO, 1)])
def test_errors_of_a_network_file_system(
    store: FrameStore, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch, code: int, times: int
) -> None:
    """A stale file is one that another machine has replaced, by the same frames."""
    left = [times]

    class Failing(TensorFile):
        def get_tensor(self, name: str) -> np.ndarray:
            if left[0]:
                left[0] -= 1
                raise OSError(code, os.strerror(code))
            return super().get_tensor(name)

    monkeypatch.setattr("vidcls.data.store.TensorFile", Failing)
    if (code, times) == (errno.ESTALE, 1):
        np.testing.assert_array_equal(store.read(KEY, ALL), frames)
    else:
        with pytest.raises(StoreEntryError, match=os.strerror(code)):
            store.read(KEY, ALL)


# ---- whole or not at all


def test_only_the_file_itself_appears(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert files(tmp_path) == [path]


# Writes to argv[1] without end, each time another text of 32 MB; says when it has begun.
WRITER = """
import sys
from pathlib import Path
from vidcls.files import write_atomically
from vidcls.tensor_file import TensorFile
print("begun", flush=True)
while True:
    for letter in (b"a", b"b"):
        write_atomically(Path(sys.argv[1]), letter * 32_000_000)
"""


def test_a_killed_writer_leaves_a_whole_file_or_none(tmp_path: Path) -> None:
    unfinished = 0
    for attempt in range(4):
        path = tmp_path / str(attempt) / "file"
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline() == b"begun\n"
        deadline = time.monotonic() + 20
        while not files(tmp_path / str(attempt)) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        others = [other for other in files(path.parent) if other != path]
        unfinished += len(others)
        assert all(other.name.startswith(".") for other in others)  # never under a name that is looked up
        if path.exists():
            content = path.read_bytes()
            assert content in (b"a" * 32_000_000, b"b" * 32_000_000)
    assert unfinished > 0  # some were killed while writing, or nothing has been tested


# Stores one video of 0.3 MB in argv[1], says what became of it, and lists the files that are there afterwards.
STORE_ONE = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from vidcls.data.decoding.result import DecodeResult
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FrameStore
from vidcls.errors import UserError
folder, file_limit = Path(sys.argv[1]), int(sys.argv[2])
if file_limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
try:
    result = DecodeResult("ok", "", "decord", 1.0, 1.0)
    FrameStore(folder, StoreSpec(6, 128)).write("ab" * 32, np.ones((6, 128, 128, 3), np.uint8), result)
except UserError as error:
    print("UserError:", error)
print("files:", [str(path) for path in folder.rglob("*") if path.is_file()])
"""
FULL = r"UserError: expected .* \[disk-full\]\nfiles: \[\]\n"


def test_a_file_that_cannot_grow_is_the_users_to_mend_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [warm_python(), "-c", STORE_ONE, tmp_path, "100000"]
    child = subprocess.run(command, capture_output=True, text=True)
    assert re.fullmatch(FULL, child.stdout), child.stdout + child.stderr


@pytest.mark.parametrize(
    "size",
    [
        "size=100k",  # too small for the file
        "nr_inodes=2",  # no room even for the folder that the file goes to
        "nr_inodes=3",  # room for the folders, none for the file
    ],
)
def test_a_full_disk_is_the_users_to_mend_and_leaves_nothing_behind(tmp_path: Path, size: str) -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "--", "sh", "-ec"]
    mount = f"mount -t tmpfs -o {size} tmpfs '{tmp_path}'"
    if shutil.which("unshare") is None or subprocess.run([*unshare, mount], capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small file system here")
    # The mount is the child's own and ends with it.
    command = [*unshare, f'{mount}; exec "$0" "$@"', sys.executable, "-c", STORE_ONE, tmp_path, "0"]
    child = subprocess.run(command, capture_output=True, text=True)
    assert re.fullmatch(FULL, child.stdout), child.stdout + child.stderr
