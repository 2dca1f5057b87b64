"""Fetches videos behind URLs to local files that are removed after use. The only file that uses fsspec.

Videos are decoded in processes without a network, so fetching is a separate step. Credentials come from the
environment, profiles or fsspec's configuration; no text that leaves this file holds any.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import posixpath
import random
import re
import secrets
import shutil
import threading
import time
from collections import ChainMap
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any, TypeVar

from vidcls.data.file_hashes import FileState, HashResult
from vidcls.data.options import FetchLimits
from vidcls.data.parallel_fetch import CancelledError, FetchSpace
from vidcls.data.urls import path_of, redact
from vidcls.errors import FULL_DISK, UserError

Result = TypeVar("Result")

SILENT_SECONDS = 60.0  # of a web server, after which it is given up
BACKOFF_SECONDS = 1.0  # before the second attempt; doubled for each further one
# The keys under which file systems report a version or time of a file.
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "Last-Modified", "LastModified", "mtime", "created")
_S3, _WEB = ("s3", "s3a"), ("http", "https")
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ValueError, TypeError)
_TEMPORARY_STATUSES = {408, 425, 429, *range(500, 600)}
# As login pages and messages of errors begin, but no video.
_PAGE = re.compile(rb"""\s*(<!doctype|<html|<\?xml|\{\s*")""", re.IGNORECASE)
_NOT_MD5: set[str] = set()  # buckets whose ETags were found not to be MD5s, as of encrypted objects


class UnfetchableError(Exception):
    """A video that could not be fetched; the message holds no credentials."""


class FetchedFile:
    """A local copy of a remote video."""

    def __init__(self, path: Path, sha256: str, version: str, release: Callable[[], None]) -> None:
        self.path, self.sha256, self.version = path, sha256, version
        self._release = release

    def hashed(self) -> HashResult:
        return HashResult(self.sha256, "", FileState.of(self.path), self.version)

    def remove(self) -> None:
        """Deletes the file; may be called twice."""
        shutil.rmtree(self.path.parent, ignore_errors=True)
        self._release()
        self._release = lambda: None


def fetch(url: str, folder: Path, limits: FetchLimits, space: FetchSpace | None = None) -> FetchedFile:
    """Downloads a video into ``folder``, and checks its size, and its ETag where that is an MD5.

    Temporary failures (a lost connection, a server error, a truncated or changing file) are retried.

    Raises:
        UnfetchableError: it cannot be fetched, or is larger than ``limits`` allow.
        UserError: the local disk is full, or no package for this kind of URL is installed.
    """
    space = space or FetchSpace(limits.space_gigabytes)
    earlier: set[str] = set()  # the hashes of attempts with a wrong MD5
    for attempt in range(limits.attempts):
        if space.cancelled.is_set():
            raise CancelledError
        try:
            return _Download(url, folder, limits, space).run(earlier)
        except (UserError, UnfetchableError, CancelledError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                remedy = "Free some space, or lower data.fetch.space_gigabytes; then repeat the command."
                raise UserError(f"room for fetched videos in {folder}", "a full disk", remedy, "disk-full") from None
            final = _is_final(error)
            if final or attempt == limits.attempts - 1:
                tries = "" if final or limits.attempts == 1 else f" ({limits.attempts} attempts)"
                raise UnfetchableError(f"cannot be fetched: {describe(error, limits)}{tries}") from None
            pause = BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.0)
            space.cancelled.wait(max(pause, min(_retry_after(error), limits.timeout_seconds)))
    raise AssertionError("one attempt at least")


def try_fetch(url: str, folder: Path, limits: FetchLimits, space: FetchSpace) -> FetchedFile | UnfetchableError:
    """`fetch` that returns `UnfetchableError` instead of raising it."""
    try:
        return fetch(url, folder, limits, space)
    except UnfetchableError as error:
        return error


class _Download:
    """One attempt."""

    def __init__(self, url: str, folder: Path, limits: FetchLimits, space: FetchSpace) -> None:
        self.system, self.path = open_filesystem(url)
        self.web = url.lower().startswith("http")
        self.limits, self.space, self.received = limits, space, 0
        self.most = limits.max_gigabytes * 1e9
        # Under its own name, as decoders repeat it in messages and FFmpeg uses its extension.
        name = posixpath.basename(path_of(url))
        fits = name not in ("", ".", "..") and len(os.fsencode(name)) < 256
        self.file = folder / secrets.token_hex(8) / (name if fits else "video")

    def run(self, earlier: set[str]) -> FetchedFile:
        info = self.call("info", self.path)
        if info.get("type") == "directory":
            raise IsADirectoryError("a folder")
        size = info.get("size") or None  # some web servers say 0 before they send a file
        taken = float(self.most if size is None else size)
        if taken > self.most:
            raise UnfetchableError(f"not fetched: {taken / 1e9:.3g} GB, more than data.fetch.max_gigabytes")
        self.space.acquire(taken)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.call("get_file", self.path, str(self.file), callback=self.watch())
            found = self.file.stat().st_size
            if found != (found if size is None else size):
                raise OSError(f"{found} of {size} bytes arrived")
            if self.web and (page := self.page()):
                raise UnfetchableError(f"cannot be fetched: a page or message came instead: {page}")
            sha256, md5 = self.hash()
            if md5 != _md5_of(info, self.path):
                if sha256 in earlier:  # the same content twice: the ETag is not an MD5
                    _NOT_MD5.add(self.path.partition("/")[0])
                elif _md5_of(info, self.path):
                    earlier.add(sha256)
                    raise OSError("the content does not match its ETag")
                version = version_of(info)
                if version and version_of(self.call("info", self.path)) != version:
                    raise OSError("it changed while it was fetched")
            return FetchedFile(self.file, sha256, version_of(info), lambda: self.space.release(taken))
        except BaseException:
            shutil.rmtree(self.file.parent, ignore_errors=True)
            self.space.release(taken)
            raise

    def page(self) -> str:
        """How a text begins that a web server has sent in place of a file, with status 200; "" if it is a file."""
        with self.file.open("rb") as stream:
            start = stream.read(1000).removeprefix(b"\xef\xbb\xbf")
        return " ".join(start.decode(errors="replace").split())[:100] if _PAGE.match(start) else ""

    def hash(self) -> tuple[str, str]:
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with self.file.open("rb", buffering=0) as stream:
            while chunk := stream.read(1 << 20):
                sha256.update(chunk)
                md5.update(chunk)
        return sha256.hexdigest(), md5.hexdigest()

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return _call(self.system, self.limits.timeout_seconds, self.space.cancelled, method, *arguments, **options)

    def watch(self) -> Any:
        """A callback that ends a download that is cancelled or too large."""
        from fsspec.callbacks import Callback

        def check(received: int) -> None:
            self.received += received
            if self.space.cancelled.is_set():
                raise CancelledError
            if self.received > self.most:
                raise UnfetchableError("not fetched: larger than data.fetch.max_gigabytes")

        callback = Callback()
        callback.relative_update = check
        return callback


def open_filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, without a cache of listings, and the path in it.

    Raises:
        UserError: as of `filesystem_class`.
    """
    import fsspec

    scheme, _, rest = url.partition("://")
    url = f"{(scheme := scheme.lower())}://{rest}"
    kind, options = filesystem_class(url), dict[str, Any](use_listings_cache=False)
    protocols = (kind.protocol,) if isinstance(kind.protocol, str) else kind.protocol
    configured = ChainMap(*(fsspec.config.conf.get(name, {}) for name in protocols))
    if s3 := scheme in _S3:  # `fetch` retries, for all file systems alike
        options["max_concurrency"] = 1  # else s3fs holds up to ten parts of 50 MB of each large file in memory
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}} | configured.get("config_kwargs", {})
    elif scheme in _WEB:
        from aiohttp import ClientTimeout

        # `FetchLimits` bound the time, not aiohttp's five minutes in all; proxies come from the environment, as for S3.
        client = {"timeout": ClientTimeout(sock_connect=30, sock_read=SILENT_SECONDS), "trust_env": True}
        options["client_kwargs"] = client | configured.get("client_kwargs", {})
    # Not `fsspec.url_to_fs`: it takes what follows :: in a name for another URL.
    system, path = kind(**kind._get_kwargs_from_urls(url) | options), kind._strip_protocol(url)
    if s3:
        system.retries = 1
    return system, path


def filesystem_class(url: str) -> Any:
    """The class of a URL's file system.

    Raises:
        UserError: the scheme is unknown, or its package is not installed.
    """
    import fsspec

    scheme = url.partition("://")[0].lower()
    try:
        return fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        remedy = "Install it (pip install 'vidcls[s3]' for s3://, gcsfs for gs://), or correct the URL."
        raise UserError(f"a package that reads {scheme}://", redact(str(error)), remedy, "filesystem") from None


def version_of(info: dict[str, Any]) -> str:
    """A text that changes with a remote file: its size, and its ETag or time; "" if neither is known."""
    found = next((str(info[key]).strip('"') for key in _VERSIONS if info.get(key)), "")
    return f"{info.get('size')} {found}" if found else ""


def remote_version(url: str, limits: FetchLimits) -> str:
    """`version_of` a remote file as it is now; "" also if the server cannot be reached."""
    try:
        system, path = open_filesystem(url)
        return version_of(_call(system, limits.timeout_seconds, threading.Event(), "info", path))
    except Exception:  # fetching it will say why
        return ""


def with_retries(call: Callable[[], Result], attempts: int = 4) -> Result:
    """The result of ``call``, which is repeated after temporary failures."""
    for attempt in range(attempts - 1):
        try:
            return call()
        except Exception as error:
            if _is_final(error):
                raise
            time.sleep(BACKOFF_SECONDS * 2**attempt)
    return call()


def describe(error: BaseException, limits: FetchLimits) -> str:
    """An error in one line without credentials."""
    cause = _cause(error)
    if isinstance(cause, TimeoutError) and not str(cause):
        return f"timed out after {limits.timeout_seconds:g} s (data.fetch.timeout_seconds)"
    if (status := getattr(cause, "status", None)) is not None:
        return f"{status or type(cause).__name__} {getattr(cause, 'message', '')}".strip()
    if isinstance(cause, FileNotFoundError):
        return "not found"
    return redact(" ".join(str(cause).split()))[:200] or type(cause).__name__


def _is_final(error: BaseException) -> bool:
    """Whether another attempt would fail too."""
    cause = _cause(error)
    if (status := getattr(cause, "status", None)) is not None:
        return status not in _TEMPORARY_STATUSES
    return isinstance(cause, _FINAL) or "Credentials" in type(cause).__name__


def _retry_after(error: BaseException) -> int:
    """The seconds that a web server asks for before the next attempt; 0 if it does not."""
    text = (getattr(_cause(error), "headers", None) or {}).get("Retry-After", "")
    return int(text) if text.isdecimal() else 0


def _cause(error: BaseException) -> BaseException:
    """The cause of an error: fsspec raises FileNotFoundError for any failed request to a web server."""
    cause = error.__cause__
    known = isinstance(cause, TimeoutError) or type(cause).__module__.startswith("aiohttp")
    return cause if isinstance(error, FileNotFoundError) and cause is not None and known else error


def _call(
    system: Any, seconds: float | int, cancelled: threading.Event, method: str, *arguments: Any, **options: Any
) -> Any:
    """Calls a method of a file system, with a time limit, until all downloads are cancelled."""
    if not system.async_impl:
        return getattr(system, method)(*arguments, **options)
    timed = asyncio.wait_for(getattr(system, f"_{method}")(*arguments, **options), seconds)
    future = asyncio.run_coroutine_threadsafe(timed, system.loop)
    while not wait([future], timeout=0.5).done:
        if cancelled.is_set():
            future.cancel()
            raise CancelledError
    return future.result()


def _md5_of(info: dict[str, Any], path: str) -> str:
    """The MD5 of a remote file if its ETag is one, as for unencrypted objects in S3 uploaded in one part; else ""."""
    etag = str(info.get("ETag", "")).strip('"').lower()
    known = "VersionId" in info and path.partition("/")[0] not in _NOT_MD5  # as S3 describes files, but not web servers
    return etag if known and re.fullmatch("[0-9a-f]{32}", etag) else ""
