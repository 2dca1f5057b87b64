"""A zip of videos to a folder of videos, once, trusting nothing the zip says about itself."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from vidcls.errors import UserError, check_number
from vidcls.files import write_atomically

_CHUNK_BYTES = 1 << 20
_DAMAGE = (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError, ValueError)
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_UNPACK_BY_HAND = "Unpack it with a tool you trust and point data.source to the folder."
_NEW_COPY = "Make or download the zip again, or point data.source to a folder."


def extract(archive: Path, cache_dir: Path, max_gigabytes: float | int, max_ratio: float | int) -> Path:
    """The folder that holds the files of ``archive``: ``cache_dir/extracted/<first 16 of its sha256>``.

    Everything in the zip but empty folders is extracted, so that what is ignored later is counted alike for a zip and
    for its folder. A folder of that name is complete, because it is extracted under another name and renamed at the
    end: then nothing is done. Two processes that extract at once both do the work, and the second to finish keeps the
    first's result.

    Args:
        archive: a .zip file.
        cache_dir: nothing is written outside this folder.
        max_gigabytes: most bytes, in 1e9, that the members may declare together (``data.zip.max_gigabytes``).
        max_ratio: most of those bytes per byte of the archive on disk (``data.zip.max_ratio``). The size on disk, not
            the sum of compressed sizes, is the measure, so members that share the same compressed bytes gain nothing
            (D. Fifield, "A better zip bomb", WOOT 2019).

    Raises:
        UserError: it is not a zip, is damaged, encrypted or over a limit, names a place outside the folder, holds a
            link, or cannot be written. Nothing is left behind.
    """
    check_number("data.zip.max_gigabytes", max_gigabytes)
    check_number("data.zip.max_ratio", max_ratio)
    home = cache_dir / "extracted"
    try:
        seen = home / "seen" / _identity(archive)
        if seen.is_file() and (folder := home / seen.read_text(encoding="ascii")).is_dir():
            return folder
        with zipfile.ZipFile(archive) as zipped:
            members = check_members(archive, zipped.infolist(), max_gigabytes, max_ratio)
            folder = home / _sha256(archive)[:16]
            if not folder.is_dir():
                _write_folder(archive, zipped, members, folder)
        write_atomically(seen, folder.name.encode("ascii"))
        return folder
    except _DAMAGE as damage:
        raise UserError(
            "an intact zip", f"{archive}: {damage or type(damage).__name__}", _NEW_COPY, "damaged-zip"
        ) from damage
    except OSError as failure:
        raise _os_error(archive, cache_dir, failure) from failure


def check_members(
    archive: Path, infos: list[zipfile.ZipInfo], max_gigabytes: float | int, max_ratio: float | int
) -> list[tuple[zipfile.ZipInfo, str]]:
    """The files among ``infos``, each with its checked relative path; decides from the zip's table of contents alone.

    Raises:
        UserError: at the first member that is refused, or where the declared sizes are over a limit.
    """
    files: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        kind = stat.S_IFMT(info.external_attr >> 16)
        name = info.orig_filename  # zipfile cuts `filename` at a NUL
        if problem := _name_problem(name):
            raise UserError(
                "zip members named inside the zip's own folder",
                f"{problem}: {name!r} in {archive}",
                _UNPACK_BY_HAND,
                "zip-path",
            )
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(
                "a zip of plain files", f"a link or special file: {name!r} in {archive}", _UNPACK_BY_HAND, "zip-link"
            )
        if info.flag_bits & 0x1:
            raise UserError(
                "a zip without a password",
                f"an encrypted member: {name!r} in {archive}",
                _UNPACK_BY_HAND,
                "zip-password",
            )
        if info.compress_type not in _COMPRESSIONS:
            method = f"method {info.compress_type}: {name!r} in {archive}"
            raise UserError(
                "zip members stored or compressed by deflate, bzip2 or lzma", method, _UNPACK_BY_HAND, "zip-compression"
            )
        if info.is_dir():
            continue
        path = str(PurePosixPath(name))
        if path in files:
            raise UserError(
                "zip members with names of their own", f"{path!r} twice in {archive}", _UNPACK_BY_HAND, "zip-names"
            )
        files[path] = info
    for path in files:
        for parent in PurePosixPath(path).parents:
            if str(parent) in files:
                both = f"{str(parent)!r} as a file and as a folder in {archive}"
                raise UserError("zip members with names of their own", both, _UNPACK_BY_HAND, "zip-names")
    _check_sizes(archive, sum(info.file_size for info in files.values()), max_gigabytes, max_ratio)
    return [(info, path) for path, info in files.items()]


def _name_problem(name: str) -> str:
    """Why a member's name is refused, "" where it is not.

    >>> _name_problem("rtp/../../etc/passwd"), _name_problem("rtp/train/a..b.mp4")
    ('a path that climbs out', '')
    """
    if "\0" in name:
        return "a NUL in a name"
    if "\\" in name:
        return "a backslash in a name"
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "an absolute path"
    if ".." in name.split("/"):
        return "a path that climbs out"
    if not name.endswith("/") and not PurePosixPath(name).parts:
        return "an empty name"
    return ""


def _check_sizes(archive: Path, size: int, max_gigabytes: float | int, max_ratio: float | int) -> None:
    if size > max_gigabytes * 1e9:
        raise UserError(
            f"at most {max_gigabytes:g} GB of files in a zip",
            f"{size / 1e9:.3g} GB in {archive}",
            "If you trust the zip, raise data.zip.max_gigabytes.",
            "data.zip.max_gigabytes",
        )
    ratio = size / archive.stat().st_size
    if ratio > max_ratio:
        raise UserError(
            f"a zip that grows at most {max_ratio:g} times",
            f"{ratio:.4g} times in {archive}",
            "Videos hardly compress, so this may be a zip bomb; if you trust it, raise data.zip.max_ratio.",
            "data.zip.max_ratio",
        )


def _write_folder(
    archive: Path, zipped: zipfile.ZipFile, members: list[tuple[zipfile.ZipInfo, str]], folder: Path
) -> None:
    """Writes ``members`` to a folder beside ``folder``, then renames it: ``folder`` is whole or not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch, _progress() as progress:
        partial = Path(scratch, "files")  # with the rights that other new folders have, unlike those of tempfile
        partial.mkdir()
        task = progress.add_task(f"Extracting {archive.name}", total=sum(info.file_size for info, _ in members))
        for info, path in members:
            target = partial / path
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_member(zipped, info, target, progress, task)
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.is_dir():  # there: another process finished the same archive first
                raise


def _write_member(
    zipped: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, progress: Progress, task: TaskID
) -> None:
    written = 0
    # "x": on a file system that ignores case, a name that differs in case alone must not overwrite another member.
    with zipped.open(info) as source, open(target, "xb") as sink:
        while chunk := source.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > info.file_size:
                break
            sink.write(chunk)
            progress.advance(task, len(chunk))
    if written != info.file_size:
        raise zipfile.BadZipFile(f"{info.filename!r} does not hold the {info.file_size} bytes it declares")


def _identity(archive: Path) -> str:
    """A name for this state of this file, so that a huge archive is hashed once.

    Any write to a file moves its change time, which, unlike its modification time, cannot be set back.
    """
    state = archive.stat()
    fields = (archive.resolve(), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return hashlib.sha256("\n".join(map(str, fields)).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _sha256(archive: Path) -> str:
    with _progress() as progress, progress.open(archive, "rb", description=f"Reading {archive.name}") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns)


def _os_error(archive: Path, cache_dir: Path, failure: OSError) -> UserError:
    """``failure`` in the user's words; which side failed shows in its file name, or in there being none."""
    what = f"{failure.strerror or failure} ({archive})"
    if failure.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            f"room for the zip's files under {cache_dir}", what, "Free some space, or move the cache.", "disk-full"
        )
    if failure.errno is None:  # bz2's way of saying that the data are damaged
        return UserError("an intact zip", what, _NEW_COPY, "damaged-zip")
    if failure.errno == errno.ENAMETOOLONG:
        return UserError("zip members with names that this disk can hold", what, _UNPACK_BY_HAND, "zip-names")
    if failure.filename is not None and os.fspath(failure.filename) == os.fspath(archive):
        return UserError("a zip that can be read", what, "Check data.source and its permissions.", "unreadable-zip")
    return UserError(
        f"to write the zip's files under {cache_dir}",
        f"{failure.strerror}: {failure.filename}",
        _UNPACK_BY_HAND,
        "zip-cache",
    )
