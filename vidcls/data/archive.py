"""Extracts a zip of videos into the cache, once, and trusts nothing that the zip says about itself."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from contextlib import suppress
from lzma import LZMAError
from pathlib import Path, PurePosixPath

import rich.progress
from rich.markup import escape

from vidcls.data.file_hashes import FileState
from vidcls.data.options import DataOptions
from vidcls.data.urls import extension, local_path
from vidcls.errors import FULL_DISK, UserError
from vidcls.files import write_json

_CHUNK_BYTES = 1 << 20
_DAMAGE = (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError, ValueError)
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_UNPACK_BY_HAND = "Unpack it with a tool you trust and point data.source to the folder."
_NEW_COPY = "Make or download the zip again, or point data.source to a folder."


def is_archive(source: str) -> bool:
    """Whether a source is a .zip, which must be extracted before it can be listed."""
    return extension(source) == "zip" and os.path.isfile(local_path(source))


def unpack(options: DataOptions) -> Path | None:
    """`extract` for a .zip in ``options.source``; None for other sources."""
    if not is_archive(options.source):
        return None
    archive, limits = Path(local_path(options.source)), options.zip
    return extract(archive, Path(options.cache_dir), limits.max_gigabytes, limits.max_ratio)


def extract(archive: Path, cache_dir: Path, max_gigabytes: float | int, max_ratio: float | int) -> Path:
    """Extracts into ``cache_dir/extracted/<first 16 of its sha256>`` what is not there already; returns that folder.

    Files are extracted under another name and renamed at the end, so that the folder is never incomplete. Of two
    processes that extract at once, the second to finish keeps the first's result.

    Args:
        archive: a .zip file.
        cache_dir: nothing is written outside this folder.
        max_gigabytes: limit on the sum of the declared sizes, in 1e9 bytes.
        max_ratio: limit on that sum per byte of the archive on disk; not per compressed byte, as members may share
            compressed bytes (D. Fifield, "A better zip bomb", WOOT 2019).

    Raises:
        UserError: it is not a zip, is damaged, encrypted or over a limit, names a path outside the folder, holds a
            link, or cannot be written. Nothing is left behind.
    """
    home = cache_dir / "extracted"
    try:
        with archive.open("rb") as file:
            state = FileState.of(file.fileno())
        assert state is not None
        seen = home / "seen" / f"{_identity(archive, state)}.json"
        if seen.is_file():
            known = json.loads(seen.read_text(encoding="utf-8"))
            if not _missing(home / known["folder"], known["sizes"]):
                return home / known["folder"]
        with zipfile.ZipFile(archive) as zipped:
            members = check_members(archive, zipped.infolist(), max_gigabytes, max_ratio)
            folder = home / _sha256(archive)[:16]
            sizes = {path: info.file_size for path, info in members.items()}
            missing = _missing(folder, sizes)
            if missing or not folder.is_dir():
                _write_files(archive, zipped, {path: members[path] for path in missing}, folder)
        if state.is_settled:
            write_json(seen, {"folder": folder.name, "sizes": sizes})
        return folder
    except _DAMAGE as damage:
        got = f"{archive}: {damage or type(damage).__name__}"
        raise UserError("an intact zip", got, _NEW_COPY, "damaged-zip") from damage
    except OSError as failure:
        raise _os_error(archive, cache_dir, failure) from failure


def check_members(
    archive: Path, infos: list[zipfile.ZipInfo], max_gigabytes: float | int, max_ratio: float | int
) -> dict[str, zipfile.ZipInfo]:
    """The files among ``infos`` by relative path, checked by the zip's table of contents alone; see `extract`."""
    files: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = _member_name(info)
        path = str(PurePosixPath(name))
        problem, code = _name_problem(name), "zip-path"
        if not problem and stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem, code = "a link or special file", "zip-link"
        elif not problem and info.flag_bits & 0x1:
            problem, code = "an encrypted member", "zip-password"
        elif not problem and info.compress_type not in _COMPRESSIONS:
            problem, code = f"compression method {info.compress_type}", "zip-compression"
        elif not problem and path in files:
            problem, code = "two members of one name", "zip-names"
        if problem:
            expected = "a zip of regular files, without a password, with unique paths that stay inside the archive"
            raise UserError(expected, f"{problem}: {name!r} in {archive}", _UNPACK_BY_HAND, code)
        if not info.is_dir():
            files[path] = info
    for path in files:
        for parent in PurePosixPath(path).parents:
            if str(parent) in files:
                both = f"{str(parent)!r} as a file and as a folder in {archive}"
                raise UserError("unique member names in a zip", both, _UNPACK_BY_HAND, "zip-names")
    _check_sizes(archive, sum(info.file_size for info in files.values()), max_gigabytes, max_ratio)
    return files


def _member_name(info: zipfile.ZipInfo) -> str:
    name: str = info.orig_filename  # zipfile cuts `filename` at a NUL
    if not info.flag_bits & 0x800:  # zip(1) and macOS write UTF-8 without saying so, which zipfile reads as cp437
        with suppress(UnicodeError):
            return name.encode("cp437").decode("utf-8")
    return name


def _name_problem(name: str) -> str:
    """Why a member's name is refused, "" where it is not.

    >>> _name_problem("rtp/../../etc/passwd"), _name_problem("rtp/train/a..b.mp4")
    ("a path that leaves the archive ('..')", '')
    """
    problems = {
        "a NUL in a name": "\0" in name,
        "a backslash in a name": "\\" in name,
        "an absolute path": name.startswith("/") or re.match("[A-Za-z]:", name),
        "a path that leaves the archive ('..')": ".." in name.split("/"),
        "an empty name": not name.endswith("/") and not PurePosixPath(name).parts,
    }
    return next((problem for problem, found in problems.items() if found), "")


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
            f"a zip with a compression ratio of at most {max_ratio:g}:1",
            f"{ratio:.4g}:1 in {archive}",
            "Videos hardly compress, so this may be a zip bomb; if you trust it, raise data.zip.max_ratio.",
            "data.zip.max_ratio",
        )


def _missing(folder: Path, sizes: dict[str, int]) -> list[str]:
    """The files that are missing or of another size than when they were extracted."""

    def size(path: str) -> int | None:
        try:
            return (folder / path).stat().st_size
        except OSError:
            return None

    return [path for path, expected in sizes.items() if size(path) != expected]


def _write_files(archive: Path, zipped: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], folder: Path) -> None:
    """Extracts into a temporary folder and renames it, or each of its files where ``folder`` exists."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        partial = Path(scratch, "files")  # with the rights that other new folders have, unlike those of tempfile
        partial.mkdir()
        for path, info in rich.progress.track(members.items(), f"Extracting {escape(archive.name)}"):
            target = partial / path
            target.parent.mkdir(parents=True, exist_ok=True)
            # "x": on a file system that ignores case, a name must not overwrite another that differs in case alone.
            with zipped.open(info) as source, target.open("xb") as sink:  # zipfile reads no more than it declares
                shutil.copyfileobj(source, sink, _CHUNK_BYTES)
            if target.stat().st_size != info.file_size:
                raise zipfile.BadZipFile(f"{info.filename!r} does not hold the {info.file_size} bytes it declares")
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.is_dir():
                raise
            # Not those that another process has extracted meanwhile: whoever decodes them would see them change.
            for path in _missing(folder, {path: info.file_size for path, info in members.items()}):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial / path, folder / path)


def _identity(archive: Path, state: FileState) -> str:
    """A name for a state of the file, so that a huge archive is hashed once.

    Any write updates a file's change time, which, unlike its modification time, cannot be set.
    """
    return hashlib.sha256(os.fsencode("\n".join(map(str, (archive.resolve(), *state))))).hexdigest()[:32]


def _sha256(archive: Path) -> str:
    with rich.progress.open(archive, "rb", description=f"Reading {escape(archive.name)}") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _os_error(archive: Path, cache_dir: Path, failure: OSError) -> UserError:
    """``failure`` for the user; its file name tells whether reading or writing failed."""
    got = f"{failure.strerror or failure} ({failure.filename or archive})"
    if failure.errno in FULL_DISK:
        expected, remedy = f"room for the zip's files under {cache_dir}", "Free some space, or move the cache."
        return UserError(expected, got, remedy, "disk-full")
    if failure.errno is None:  # bz2's way of saying that the data are damaged
        return UserError("an intact zip", got, _NEW_COPY, "damaged-zip")
    if failure.errno == errno.ENAMETOOLONG:
        return UserError("zip members with names that this disk can hold", got, _UNPACK_BY_HAND, "zip-names")
    if failure.filename is not None and os.fspath(failure.filename) == os.fspath(archive):
        return UserError("a zip that can be read", got, "Check data.source and its permissions.", "unreadable-zip")
    return UserError(f"a cache_dir that can be written: {cache_dir}", got, _UNPACK_BY_HAND, "zip-cache")
