"""Lists videos one at a time: below a folder or in a list, local or remote. Opens no video."""

import csv
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vidcls.data.options import FetchLimits
from vidcls.data.remote import UnfetchableError, describe, fetch, open_filesystem, version_of, with_retries
from vidcls.data.urls import extension, is_url, redact
from vidcls.errors import UserError, one_line

VIDEO_EXTENSIONS = frozenset(("mp4", "mov", "m4v", "f4v", "3gp", "3g2", "mkv", "webm", "avi", "flv", "wmv", "asf"))
VIDEO_EXTENSIONS |= {"mpg", "mpeg", "m2v", "vob", "ts", "mts", "m2ts"}
LIST_EXTENSIONS = ("txt", "csv", "parquet")
_PARQUET_ROWS = 10_000  # read at once
S3_PAGE = 1000  # names that S3 lists at once


def walk_folder(folder: str, ignored: Counter[str]) -> Iterator[tuple[str, str, str]]:
    """The path (with /, relative to the folder), location and version of each video below a folder.

    The location is that of the folder, followed by the path, whatever it looks like: the key of an object may be
    ``https://host/a.mp4`` or ``/etc/a.mp4``, which must not be fetched or read from there. The version is that of
    `vidcls.data.remote.version_of`, "" for local files. Other files are counted in ``ignored``, by kind. Links to
    folders are followed, except to a folder that contains the link.
    """
    found = walk(folder) if is_url(folder) else ((path, "") for path in _walk_local(folder, ignored))
    root = folder.rstrip("/")
    return ((path, f"{root}/{path}", version) for path, version in found if is_video(path, ignored))


def _walk_local(root: str, ignored: Counter[str]) -> Iterator[str]:
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        prefix, above = pending.pop()
        folder = os.path.join(root, prefix)
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            ignored["symlink loops"] += 1
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    is_folder, is_file = entry.is_dir(), entry.is_file()
                except OSError:  # a link to itself
                    is_folder = is_file = False
                if is_folder:
                    pending.append((f"{prefix}{entry.name}/", above | {identity}))
                elif is_file:
                    yield f"{prefix}{entry.name}"
                else:
                    ignored["broken links or special files"] += 1


def is_folder(url: str) -> bool:
    """Whether a URL names a folder; on a web server, if it ends with /.

    Raises:
        UserError: the server cannot be reached.
    """
    if url.lower().startswith("http"):
        return url.endswith("/")
    with _reading(url):
        system, path = open_filesystem(url)
        try:
            return bool(with_retries(lambda: system.info(path))["type"] == "directory")
        except FileNotFoundError:
            return True  # an empty one


def walk(url: str) -> Iterator[tuple[str, str]]:
    """The relative path and `version_of` of each file below a remote folder, a page at a time.

    Raises:
        UserError: it cannot be listed.
    """
    with _reading(url):
        system, path = open_filesystem(url)
        root = path.rstrip("/")
        for page in _s3_pages(system, root) if hasattr(system, "call_s3") else _pages(system, root):
            for info in page:
                name = str(info["name"]).rstrip("/")
                if name.startswith(f"{root}/"):
                    yield name[len(root) + 1 :], version_of(info)


@contextmanager
def _reading(url: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        got = f"{redact(url)}: {describe(error, FetchLimits())}"
        remedy = "Check the URL, and the credentials in the environment or a profile."
        raise UserError("a folder that can be listed", got, remedy, "unreadable-source") from None


def _pages(system: Any, root: str) -> Iterator[list[dict[str, Any]]]:
    """The files of one folder after the other; of a web server, what its pages link to below ``root``, once."""
    pending, seen = [root], {root}
    while pending:
        page = with_retries(partial(system.ls, pending.pop(), detail=True))
        if root.lower().startswith("http"):
            page = [info | {"name": _linked(info["name"])} for info in page]
        new = [info for info in page if str(info["name"]).rstrip("/") not in seen]
        for name in (str(info["name"]).rstrip("/") for info in new if info["type"] == "directory"):
            seen.add(name)
            pending += [name] if name.startswith(f"{root}/") else []
        yield [info for info in new if info["type"] != "directory"]


def _linked(url: str) -> str:
    """A link of a web server's page, whose names may begin with ./ and which may go up, as a browser follows it."""
    scheme, _, path = url.replace("&amp;", "&").partition("://")
    return f"{scheme}://{posixpath.normpath(path) if {'.', '..'} & set(path.split('/')) else path}"


def _s3_pages(system: Any, root: str) -> Iterator[list[dict[str, Any]]]:
    bucket, prefix, _ = system.split_path(root)
    query = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else "", "MaxKeys": S3_PAGE}
    while True:
        page = with_retries(lambda: system.call_s3("list_objects_v2", **query))
        yield [
            {"name": f"{bucket}/{one['Key']}", "size": one["Size"], "ETag": one["ETag"]}
            for one in page.get("Contents", [])
            if not one["Key"].endswith("/")  # what consoles create for a folder
        ]
        if not page.get("IsTruncated"):
            return
        query["ContinuationToken"] = page["NextContinuationToken"]


def is_video(path: str, ignored: Counter[str]) -> bool:
    """Whether a file has the name of a video; counts it in ``ignored`` otherwise."""
    parts = path.split("/")
    if "__MACOSX" in parts or parts[-1].startswith("._"):
        ignored["macOS leftovers (__MACOSX, ._*)"] += 1
    elif any(part.startswith(".") for part in parts):
        ignored["hidden files (.DS_Store and the like)"] += 1
    elif os.path.splitext(path)[1][1:].lower() not in VIDEO_EXTENSIONS:
        ignored["files that are not videos"] += 1
    else:
        return True
    return False


def read_list(
    location: str, limits: FetchLimits, columns: tuple[str, ...], ignored: Counter[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """The line number and the cells (by column name in lower case) of each row of a local or remote list.

    A .txt has a path or URL per line, which becomes the column ``path``. A .csv or .parquet has at least ``columns``;
    ``url`` is another name of ``path``. Empty rows are skipped, and other columns counted in ``ignored``.

    Raises:
        UserError: it cannot be read, is not such a list, or lacks a column.
    """
    if not is_url(location):
        yield from _read_local(Path(location), location, columns, ignored)
        return
    with TemporaryDirectory(prefix="vidcls-") as folder:
        try:
            fetched = fetch(location, Path(folder), limits)
        except UnfetchableError as error:
            got, remedy = f"{redact(location)}: it {error}", "Check the URL, and the credentials in the environment."
            raise UserError("a list of videos that can be read", got, remedy, "unreadable-source") from None
        yield from _read_local(fetched.path, redact(location), columns, ignored)


def _read_local(
    file: Path, shown: str, columns: tuple[str, ...], ignored: Counter[str] | None
) -> Iterator[tuple[int, dict[str, str]]]:
    kind = extension(file.name)
    if kind == "txt":
        with open(file, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if "\0" in line:  # as of UTF-16
                    got, remedy = f"a zero byte in line {number}", "Save it again as text in UTF-8."
                    raise UserError(f"paths or URLs as text in {shown}", got, remedy, "bad-txt")
                if path := line.removesuffix("\n").removesuffix("\r").removeprefix("\ufeff"):
                    yield number, {"path": path}
    else:
        yield from (_read_csv if kind == "csv" else _read_parquet)(file, shown, columns, ignored)


def _read_csv(
    file: Path, shown: str, columns: tuple[str, ...], ignored: Counter[str] | None
) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True, skipinitialspace=True)
            header = _check_header([name.strip().lower() for name in next(reader, [])], shown, columns, ignored)
            for cells in reader:
                if len(cells) not in (0, len(header)):
                    expected, got = f"{len(header)} cells in each row", f"{len(cells)} in line {reader.line_num}"
                    raise UserError(f"{expected} of {shown}", got, "Quote cells that hold commas.", "bad-csv")
                if any(cells):
                    yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"a UTF-8 .csv in {shown}", str(error), "Save it again as CSV in UTF-8.", "bad-csv") from error


def _read_parquet(
    file: Path, shown: str, columns: tuple[str, ...], ignored: Counter[str] | None
) -> Iterator[tuple[int, dict[str, str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            header = _check_header([name.strip().lower() for name in table.schema_arrow.names], shown, columns, ignored)
            wanted = set(header) & set(_used(columns))
            originals = [table.schema_arrow.names[header.index(name)] for name in sorted(wanted)]
            number = 0
            for batch in table.iter_batches(_PARQUET_ROWS, columns=originals):
                texts = (batch.column(name).cast(pa.string()).to_pylist() for name in originals)
                cells = zip(*texts, strict=True)
                for number, row in enumerate(cells, number + 1):  # noqa: B020
                    if any(value is not None for value in row):
                        yield number, dict(zip(sorted(wanted), (value or "" for value in row), strict=True))
    except pa.ArrowException as error:
        raise UserError(f"a .parquet in {shown}", one_line(error), "Write it again.", "bad-parquet") from error


def _check_header(header: list[str], shown: str, columns: tuple[str, ...], ignored: Counter[str] | None) -> list[str]:
    """The names of the columns, with ``url`` renamed to ``path`` unless there is a ``path`` too."""
    if "path" not in header:
        header = ["path" if name == "url" else name for name in header]
    if not set(columns) <= set(header):
        wanted = "path,label[,split,creator]" if "label" in columns else "path or url"
        expected, remedy = f"the columns {wanted} in {shown}", "Name them in its first line."
        got = redact(",".join(header))[:200]  # without a header, the first line may hold anything
        raise UserError(expected, f"the columns {got}", remedy, "csv-columns")
    if repeated := sorted(name for name in _used(columns) if header.count(name) > 1):
        expected, remedy = f"each column once in {shown}", "Remove or rename all but one."
        raise UserError(expected, f"{', '.join(repeated)} more than once", remedy, "csv-columns")
    if ignored is not None and (others := sorted({*header} - {*_used(columns), ""})):
        ignored[f"other columns: {redact(', '.join(others))}"] = len(others)
    return header


def _used(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that are read: labelled videos may have a split and a creator too."""
    return (*columns, "split", "creator") if "label" in columns else columns
