from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from helpers.warm_python import warm_python

from vidcls.data.file_hashes import FileState, HashCache, hash_files, local_version


def test_hashes_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("b", "a", "c")]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 10**6)
    found = hash_files(files, None)
    assert [one.sha256 for one in found] == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert [one.error for one in found] == [""] * 3


def test_what_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    found = hash_files([tmp_path / "missing", tmp_path, tmp_path / "pipe", tmp_path / "a\0b"], None)
    assert [one.sha256 for one in found] == [""] * 4
    assert found[0].error == "the file cannot be read: No such file or directory"
    assert all(one.error == "the file cannot be read: not a regular file" for one in found[1:3])
    assert found[3].error == "the file cannot be read: embedded null byte"


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    cache = HashCache(tmp_path / "new" / "hashes.sqlite")
    (first,) = hash_files([file], cache)
    monkeypatch.delattr("vidcls.data.file_hashes.hash_file")  # whoever hashes fails
    assert hash_files([file], cache) == [first]
    cache.close()
    again = HashCache(tmp_path / "new" / "hashes.sqlite")
    assert hash_files([file], again) == [first]
    again.close()


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_another_content_of_the_same_size_and_time_is_noticed(tmp_path: Path, how: str) -> None:
    """As rsync and tar leave files: their size and modification time say nothing."""
    file, cache = tmp_path / "a", HashCache(tmp_path / "hashes.sqlite")
    file.write_bytes(b"one")
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    (first,) = hash_files([file], cache)
    other = file if how == "written" else tmp_path / "b"
    other.write_bytes(b"two")
    os.utime(other, ns=times)
    other.replace(file)
    assert file.stat().st_mtime_ns == times[1]
    (second,) = hash_files([file], cache)
    assert second.sha256 == hashlib.sha256(b"two").hexdigest() != first.sha256


def test_a_hash_of_a_file_that_changes_meanwhile_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = tmp_path / "a", HashCache(tmp_path / "hashes.sqlite")
    file.write_bytes(b"one")

    def slow_hash(stream: object) -> str:
        file.write_bytes(b"longer")
        return hashlib.sha256(b"one").hexdigest()

    with monkeypatch.context() as patch:
        patch.setattr("vidcls.data.file_hashes.hash_file", slow_hash)
        hash_files([file], cache)
    assert hash_files([file], cache)[0].sha256 == hashlib.sha256(b"longer").hexdigest()


def test_what_was_known_of_a_file_before_it_was_opened_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS answers for up to a minute from what it remembers; only when a file is opened it asks the server."""
    file, cache = tmp_path / "a", HashCache(tmp_path / "hashes.sqlite")
    file.write_bytes(b"one")
    hash_files([file], cache)
    remembered, stat = file.stat(), os.stat
    file.write_bytes(b"two")
    monkeypatch.setattr("os.stat", lambda path, **more: remembered if path == file else stat(path, **more))
    assert hash_files([file], cache)[0].sha256 == hashlib.sha256(b"two").hexdigest()


def test_a_file_whose_next_change_might_not_show_is_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where times are whole seconds, two contents of one size may have the same ones; the server's clock may differ."""
    now = time.time_ns() // 10**9 * 10**9
    for age, settled in ((0, False), (120, False), (-120, False), (3600, True)):
        state = FileState(3, 1, now - age * 10**9, now - age * 10**9)
        assert state.is_settled is settled and bool(local_version(state)) is settled
        assert state._replace(ctime_ns=now + 1).is_settled
    file, cache, of = tmp_path / "a", HashCache(tmp_path / "hashes.sqlite"), FileState.of
    coarse = FileState(3, 1, now, now)
    monkeypatch.setattr(FileState, "of", lambda where: of(where) and coarse)
    for content in (b"one", b"two"):
        file.write_bytes(content)
        assert hash_files([file], cache)[0].sha256 == hashlib.sha256(content).hexdigest()


def test_where_there_are_no_locks_nothing_waits_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite takes what NFS without lockd says for a lock of another process, and would wait for a minute."""
    (tmp_path / "a").write_bytes(b"one")
    monkeypatch.setattr("vidcls.data.file_hashes.lock_problem", lambda folder: "no locks")
    with pytest.warns(UserWarning, match="no locks"):
        cache = HashCache(tmp_path / "hashes.sqlite")
    assert hash_files([tmp_path / "a"], cache)[0].sha256 == hashlib.sha256(b"one").hexdigest()
    assert not cache.path.exists()


@pytest.mark.parametrize("damage", ["text", "folder"])
def test_a_damaged_cache_is_a_warning(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "hashes.sqlite"
    if damage == "text":
        path.write_bytes(b"no database" * 100)
    else:
        path.mkdir()
    (tmp_path / "a").write_bytes(b"one")
    with pytest.warns(UserWarning, match="hashes.sqlite"):
        cache = HashCache(path)
    assert hash_files([tmp_path / "a"], cache)[0].sha256 == hashlib.sha256(b"one").hexdigest()


def test_a_name_that_is_not_utf_8_is_remembered_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = tmp_path / os.fsdecode(b"\xff\xe9"), HashCache(tmp_path / "hashes.sqlite")
    file.write_bytes(b"one")
    (first,) = hash_files([file], cache)
    monkeypatch.delattr("vidcls.data.file_hashes.hash_file")  # whoever hashes fails
    assert hash_files([file], cache) == [first]


HASH = """
import sys, warnings
from pathlib import Path
from vidcls.data.file_hashes import FileState, HashCache, hash_files, local_version
warnings.simplefilter("error")
folder = Path(sys.argv[1])
sys.stdin.readline()
print(*sorted(one.sha256 for one in hash_files(sorted(folder.glob("*.bin")), HashCache(folder / "hashes.sqlite"))))
"""


def test_six_processes_open_a_new_cache_at_once(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number}.bin").write_bytes(bytes([number]))
    command, pipe = [warm_python(), "-c", HASH, str(tmp_path)], subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(6)]
    found = {process.communicate("go\n", timeout=100) for process in processes}
    assert len(found) == 1
    ((hashes, complaints),) = found
    assert len(hashes.split()) == 50 and not complaints


@pytest.mark.parametrize("trouble", ["read-only", "locked", "damaged later"])
def test_any_trouble_with_the_cache_is_one_warning(tmp_path: Path, trouble: str) -> None:
    """Read-only as for another user; a file system on which SQLite cannot lock; what the disk altered."""
    path, files = tmp_path / "hashes.sqlite", [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(file.name.encode())
    HashCache(path).close()
    cache = HashCache(path, timeout=0.1)
    assert cache._database is not None
    if trouble == "read-only":
        cache._database.execute("PRAGMA query_only = 1")
    elif trouble == "locked":
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
    else:
        path.write_bytes(b"no database" * 1000)
    with pytest.warns(UserWarning, match="hashes.sqlite") as caught:
        found = hash_files(files, cache)
    assert [one.sha256 for one in found] == [hashlib.sha256(name.encode()).hexdigest() for name in "abc"]
    assert len(caught) == 1
    cache.close()
