from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from helpers.s3 import BUCKET, S3, SECRET, serve_s3

from vidcls.data import remote
from vidcls.data.listing import walk, walk_folder
from vidcls.data.options import FetchLimits
from vidcls.data.parallel_fetch import FetchSpace, map_unordered
from vidcls.data.remote import UnfetchableError, fetch, remote_version
from vidcls.errors import UserError

CONTENT = os.urandom(300_000)
QUICK = FetchLimits(workers=4, attempts=3, timeout_seconds=20.0)


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with serve_s3() as found:
        yield found


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(remote, "_NOT_MD5", set())
    server.reset()
    return server


def reason(url: str, folder: Path, limits: FetchLimits = QUICK) -> str:
    with pytest.raises(UnfetchableError) as error:
        fetch(url, folder, limits)
    assert not list(folder.iterdir())
    assert SECRET not in str(error.value)
    return str(error.value)


def test_a_file_is_fetched_and_removed_after_use(s3: S3, tmp_path: Path) -> None:
    url = s3.put("a b/ü.MP4", CONTENT)
    fetched = fetch(url, tmp_path / "fetched", QUICK)
    assert fetched.path.read_bytes() == CONTENT and fetched.path.name == "ü.MP4"
    assert fetched.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert fetched.version == f"300000 {hashlib.md5(CONTENT).hexdigest()}" == remote_version(url, QUICK)
    fetched.remove()
    assert not list((tmp_path / "fetched").iterdir())
    assert s3.gets == ["a b/ü.MP4"]


def test_a_large_file_comes_in_one_stream(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of it that come at the same time would be held in memory."""
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "default_block_size", 1000)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fetched = fetch(s3.put("a.mp4", CONTENT), tmp_path, QUICK)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert fetched.path.read_bytes() == CONTENT and s3.gets == ["a.mp4"]


@pytest.mark.parametrize("fault", ["500", "truncated", "corrupt"])
def test_what_passes_is_tried_again(s3: S3, tmp_path: Path, fault: str) -> None:
    url = s3.put("a.mp4", CONTENT)
    s3.faults["a.mp4"] = [fault, fault]
    fetched = fetch(url, tmp_path, QUICK)
    assert fetched.path.read_bytes() == CONTENT
    fetched.remove()
    assert len(s3.gets) == 3 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("faults", "words", "gets"),
    [
        (["500", ...], "(3 attempts)", 3),
        (["truncated", ...], "(3 attempts)", 3),
        (["denied", ...], "orbidden", 0),
        (["gone", ...], "not found", 0),
    ],
)
def test_what_does_not_pass_is_a_reason(s3: S3, tmp_path: Path, faults: list[str], words: str, gets: int) -> None:
    url = s3.put("a.mp4", CONTENT)
    s3.faults["a.mp4"] = faults
    found = reason(url, tmp_path)
    assert found.startswith("cannot be fetched: ") and words in found and len(s3.gets) == gets


def test_a_slow_server_costs_the_time_limit(s3: S3, tmp_path: Path) -> None:
    url = s3.put("a.mp4", CONTENT)
    s3.faults["a.mp4"] = ["slow", ...]
    found = reason(url, tmp_path, FetchLimits(attempts=2, timeout_seconds=0.3))
    assert "timed out after 0.3 s" in found and len(s3.gets) == 2


def test_a_file_that_changes_meanwhile_is_fetched_again(s3: S3, tmp_path: Path) -> None:
    url = s3.put("a.mp4", CONTENT)
    s3.faults["a.mp4"] = ["replaced"]
    fetched = fetch(url, tmp_path, QUICK)
    assert fetched.path.read_bytes() == b"another content of this object"
    assert fetched.version == remote_version(url, QUICK)


def test_an_etag_that_is_no_md5_is_believed_after_two_equal_downloads(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of objects that S3 encrypts with a key of its key service."""
    monkeypatch.setattr(remote, "_md5_of", lambda info, path: "" if BUCKET in remote._NOT_MD5 else "0" * 32)
    url = s3.put("a.mp4", CONTENT)
    for count in (2, 3):
        fetch(url, tmp_path, QUICK).remove()
        assert len(s3.gets) == count


def test_a_file_larger_than_the_limit_is_not_fetched(s3: S3, tmp_path: Path) -> None:
    url = s3.put("a.mp4", CONTENT)
    assert "0.0003 GB" in reason(url, tmp_path, FetchLimits(max_gigabytes=0.0001)) and s3.gets == []


def test_credentials_that_are_missing_or_a_server_that_is_not_there(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = reason("http://127.0.0.1:1/a.mp4?token=abc123", tmp_path)
    assert "Cannot connect" in found and "(3 attempts)" in found and "abc123" not in found
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        assert "redentials" in reason(f"s3://{BUCKET}/a.mp4", tmp_path)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_the_size_of_files_without_a_size_is_limited_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a web server that does not say how much follows."""
    system = fsspec.filesystem("memory")
    system.pipe("/a.mp4", CONTENT)
    monkeypatch.setattr(type(system), "info", lambda *_, **__: {"type": "file"})
    monkeypatch.setattr(type(system), "blocksize", 1000, raising=False)
    assert "data.fetch.max_gigabytes" in reason("memory://a.mp4", tmp_path, FetchLimits(max_gigabytes=0.0001))
    fetched = fetch("memory://a.mp4", tmp_path, QUICK)
    assert fetched.path.read_bytes() == CONTENT and fetched.version == ""


def test_a_full_disk_is_no_fault_of_the_video(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    url = s3.put("a.mp4", CONTENT)
    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(UserError) as error:
        fetch(url, tmp_path, QUICK)
    assert error.value.code == "disk-full" and s3.gets == []


def test_an_unknown_kind_of_url(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        fetch("what://bucket/a.mp4", tmp_path, QUICK)
    assert error.value.code == "filesystem"


# ---- listing


def test_folders_are_listed_page_by_page(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"day {day}/{number}.mp4" for day in range(2) for number in range(4)]
    for name in names:
        s3.put(f"clips/{name}", name.encode())
    s3.put("clips-of-others/a.mp4", b"other")
    monkeypatch.setattr("vidcls.data.listing.S3_PAGE", 3)
    s3.requests = 0
    found = dict(walk(f"s3://{BUCKET}/clips/"))
    assert sorted(found) == names and s3.requests == 3
    assert found["day 0/0.mp4"] == f"11 {hashlib.md5(b'day 0/0.mp4').hexdigest()}"
    assert found["day 1/3.mp4"] == remote_version(f"s3://{BUCKET}/clips/day 1/3.mp4", QUICK)


def test_keys_that_look_like_paths_and_urls_are_keys(s3: S3, tmp_path: Path) -> None:
    """Who may write into a bucket must not choose what else is read."""
    (tmp_path / "local.mp4").write_bytes(b"local")
    strange = [str(tmp_path / "local.mp4"), f"file://{tmp_path}/local.mp4", "http://127.0.0.1:1/a.mp4", "a::b.mp4"]
    strange += ["zip://a::file:///etc/hosts.mp4", "day//a.mp4", "a?b#c%20d+e.mp4", "x;token=1.mp4", "UP.MP4"]
    for key in strange:
        s3.put(f"clips/{key}", key.encode())
    found = {path: location for path, location, _ in walk_folder(f"s3://{BUCKET}/clips", Counter())}
    assert sorted(found) == sorted(strange)
    for key, location in found.items():
        assert fetch(location, tmp_path / "fetched", QUICK).path.read_bytes() == key.encode()


def test_other_file_systems_are_listed_too() -> None:
    system = fsspec.filesystem("memory")
    for name in ("/in/safe/a.mp4", "/in/b.mp4", "/in/.hidden/c.mp4", "/in/readme.txt", "/inside/d.mp4"):
        system.pipe(name, b"content")
    ignored: Counter[str] = Counter()
    found = {path: location for path, location, _ in walk_folder("memory://in", ignored)}
    assert found == {"b.mp4": "memory://in/b.mp4", "safe/a.mp4": "memory://in/safe/a.mp4"}
    assert ignored.total() == 2


def test_a_bucket_that_cannot_be_listed_is_one_line(s3: S3) -> None:
    with pytest.raises(UserError) as error:
        list(walk("s3://no-such-bucket/clips"))
    assert error.value.code == "unreadable-source" and SECRET not in str(error.value)


# ---- several at once


def test_files_that_are_there_at_once_keep_within_the_space(s3: S3, tmp_path: Path) -> None:
    urls = [s3.put(f"{number}.mp4", os.urandom(100_000)) for number in range(6)]
    space = FetchSpace(0.00025)  # two of them
    most = 0
    for fetched in map_unordered(lambda url: fetch(url, tmp_path, QUICK, space), urls, workers=4):
        most = max(most, len(list(tmp_path.iterdir())))
        if fetched is not None:
            fetched.remove()
    assert most <= 2 and not list(tmp_path.iterdir()) and sorted(s3.gets) == [f"{number}.mp4" for number in range(6)]


def test_cancelling_ends_downloads_and_the_waiting_for_space(s3: S3, tmp_path: Path) -> None:
    space = FetchSpace(0.0003)
    s3.put("a.mp4", CONTENT)
    s3.faults["a.mp4"] = ["slow", ...]
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            fetch(f"s3://{BUCKET}/a.mp4", tmp_path, QUICK, space)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not s3.gets:
        pass
    space.cancel()
    for thread in threads:
        thread.join(timeout=20)
    assert [type(error).__name__ for error in errors] == ["CancelledError"] * 2 and not list(tmp_path.iterdir())
