"""A folder, a .zip or a .csv to a table of labelled videos; reads names only, opens no video."""

from __future__ import annotations

import csv
import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vidcls.data.archive import extract
from vidcls.data.options import check_class_names, check_classes, check_creator_pattern
from vidcls.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

VIDEO_EXTENSIONS = frozenset(("mp4", "mov", "m4v", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "3gp", "flv", "wmv"))
SPLIT_NAMES = {
    **{name: "train" for name in ("train", "training")},
    **{name: "val" for name in ("val", "valid", "validation")},
    **{name: "test" for name in ("test", "testing")},
}
LAYOUT = "FOLDER/{train,val,test}/CLASS/*.mp4, or FOLDER/CLASS/*.mp4 to have the splits made"
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        videos: one row per video, sorted by path, all str: ``path`` (as the source names it: with / and relative to the
            source's root, or as written in a .csv), ``file`` (absolute), ``label``, ``split`` (train, val, test, or ""
            where the source says nothing) and ``creator`` ("" unknown).
        ignored: how many files, by kind, are in the source but not in ``videos``.
    """

    videos: pd.DataFrame
    ignored: dict[str, int]


class _Video(NamedTuple):
    path: str
    file: str
    label: str
    split: str
    creator: str


def list_videos(
    source: Path,
    *,
    classes: Sequence[str] | None,
    creator_pattern: str,
    cache_dir: Path,
    max_gigabytes: float | int,
    max_ratio: float | int,
    refuse_others: bool = False,
) -> Listing:
    """Lists the labelled videos of ``source``.

    Folders and zips: a folder named train, val or test (or training, valid, validation, testing; in any case) is a
    split, at any depth, and the folder in it is the class. Without split folders the class is the folder right below
    the deepest one that holds all the videos. A .csv has the columns path, label[, split, creator], its paths being
    relative to its own folder.

    Args:
        source: a folder, .zip or .csv (``data.source``).
        classes: the classes to keep (``data.classes``), None for all there are.
        creator_pattern: a regular expression for a file's whole name without its extension, whose group ``creator`` is
            the creator; where it does not match the creator is unknown (``data.creator_pattern``).
        cache_dir: where a zip is extracted to, see `vidcls.data.archive.extract`.
        max_gigabytes: as in `vidcls.data.archive.extract`.
        max_ratio: as in `vidcls.data.archive.extract`.
        refuse_others: for data that a trained network meets: videos of classes other than ``classes`` are an error
            rather than ignored, and not every class must have videos.

    Raises:
        UserError: the source, the pattern or the classes cannot be used, or classes lack videos that must have some.
    """
    pattern = check_creator_pattern(creator_pattern)
    check_classes(classes)
    ignored: Counter[str] = Counter()
    try:
        if source.is_dir():
            videos = _list_folder(source, classes, pattern, ignored)
        elif not source.exists():
            raise UserError(
                "a folder, .zip or .csv in data.source", f"nothing at {source}", "Check data.source.", "missing-source"
            )
        elif source.suffix.lower() == ".zip":
            folder = extract(source, cache_dir, max_gigabytes, max_ratio)
            videos = _list_folder(folder, classes, pattern, ignored)
        elif source.suffix.lower() == ".csv":
            videos = _list_csv(source, pattern, ignored)
        else:
            raise UserError(
                "a folder, .zip or .csv in data.source",
                f"a file of another type: {source}",
                "Give the folder of the videos.",
                "source-type",
            )
    except OSError as error:
        raise UserError(
            "a data.source that can be read",
            f"{error.strerror}: {error.filename or source}",
            "Check its permissions.",
            "unreadable-source",
        ) from error
    kept, others = [], Counter[str]()
    for video in videos:
        if classes is None or video.label in classes:
            kept.append(video)
        else:
            others[video.label] += 1
    if refuse_others and others:
        found = ", ".join(f"{label!r} ({count} videos)" for label, count in sorted(others.items()))
        raise UserError(
            f"videos of the classes {', '.join(classes or ())} alone in {source}",
            f"also {found}",
            "Rename or remove those folders, or list the videos in a .csv with the right labels.",
            "unknown-classes",
        )
    for label, count in others.items():
        ignored[f"videos of class {label!r}, which is not in data.classes"] += count
    _check_found(source, kept, None if refuse_others else classes, ignored, fewest=1 if refuse_others else 2)
    import pandas as pd  # only here: predict.py finds its videos without it

    table = pd.DataFrame(sorted(kept), columns=list(_Video._fields), dtype=str)
    return Listing(table, dict(sorted(ignored.items())))


def find_videos(pattern: str) -> tuple[list[str], list[Path], dict[str, int]]:
    """The videos at a file's path, below a folder, or matched by a glob (``**`` goes through folders).

    Returns:
        Their names, sorted (below the folder, or as the pattern gives them), their files, and what was ignored, by
        kind. A file that is named itself is taken whatever its extension.

    Raises:
        UserError: there are none.
    """
    ignored: Counter[str] = Counter()
    if os.path.isdir(pattern):
        absolute = os.path.abspath(pattern)
        try:
            names = sorted(path for path in _walk(absolute, ignored) if _is_video(path, ignored))
        except OSError as error:
            raise UserError(
                "an input whose folders can all be read",
                f"{error.strerror}: {error.filename}",
                "Check its permissions.",
                "input",
            ) from error
        files = [Path(absolute, name) for name in names]
    elif os.path.isfile(pattern):
        names, files = [os.path.basename(pattern)], [Path(pattern).absolute()]
    else:
        matched = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
        names = [path for path in matched if _is_video(os.path.basename(path), ignored)]
        files = [Path(name).absolute() for name in names]
    if not names:
        what = f"only {_counts(ignored)}" if ignored else "nothing"
        raise UserError(
            "a video, a folder of videos or a glob that matches some in input=",
            f"{pattern}: {what}",
            "Check input=; quote a glob, so that the shell leaves it alone.",
            "input",
        )
    return names, files, dict(ignored)


def class_order(labels: Sequence[str], classes: Sequence[str] | None) -> list[str]:
    """The one order of classes of a run: as the user gave them, else by name, over all splits together.

    >>> class_order(["safe", "adult", "safe"], None), class_order(["safe", "adult"], ["safe", "adult"])
    (['adult', 'safe'], ['safe', 'adult'])
    """
    return list(classes) if classes is not None else sorted(set(labels))


def creator_of(stem: str, pattern: re.Pattern[str]) -> str:
    """Who made the video, by its file name without extension; "" where the name does not tell.

    >>> pattern = re.compile("(?P<creator>.+)_[^_]+")
    >>> creator_of("dr._no_7000", pattern), creator_of("holiday", pattern)
    ('dr._no', '')
    """
    match = pattern.fullmatch(stem)
    return (match["creator"] or "") if match else ""


def place_videos(folders: Sequence[Sequence[str]], classes: Sequence[str] | None) -> list[tuple[str, str] | str]:
    """Split and class of each video by the folders it lies in.

    Args:
        folders: per video, the names of the folders from the source's root down.
        classes: the classes that the user named; these names are then no splits, and without split folders the first
            folder so named is the class, wherever it lies.

    Returns:
        Per video (split or "", class), or a text that says what kind of stray it is.

    >>> place_videos([["rtp", "train", "safe"], ["rtp", "Validation", "safe", "day 1"]], None)
    [('train', 'safe'), ('val', 'safe')]
    >>> place_videos([["clips", "safe"], ["clips", "adult", "day 1"], ["clips"]], None)
    [('', 'safe'), ('', 'adult'), 'videos in no class folder']
    """
    named = frozenset(classes or ())
    splits = [["" if part in named else SPLIT_NAMES.get(part.lower(), "") for part in parts] for parts in folders]
    levels = enumerate(zip(*folders, strict=False))
    shared = next((level for level, parts in levels if len(set(parts)) > 1), min(map(len, folders), default=0))
    # Above the deepest common folder nothing tells two classes apart: a "test" up there is a wrapper's name. So is the
    # common folder's own name if splits lie right below it: training/{train,val}/...
    below = {row[shared] for row in splits if len(row) > shared}
    start = shared if {"train"} < below - {""} else max(shared - 1, 0)
    depths = [next((depth for depth in range(start, len(row)) if row[depth]), None) for row in splits]
    has_splits = any(depth is not None for depth in depths)
    placed: list[tuple[str, str] | str] = []
    for parts, row, depth in zip(folders, splits, depths, strict=True):
        if depth is not None:
            has_class = len(parts) > depth + 1
            placed.append(
                (row[depth], parts[depth + 1]) if has_class else "videos in a split folder, in no class folder"
            )
        elif has_splits:
            placed.append("videos outside the train, val and test folders")
        elif inside_named := [part for part in parts if part in named]:
            placed.append(("", inside_named[0]))
        elif len(parts) > shared:
            placed.append(("", parts[shared]))
        else:
            placed.append("videos in no class folder")
    return placed


def _list_folder(
    root: Path, classes: Sequence[str] | None, pattern: re.Pattern[str], ignored: Counter[str]
) -> list[_Video]:
    absolute = os.path.abspath(root)
    paths = [path for path in _walk(absolute, ignored) if _is_video(path, ignored)]
    videos = []
    for path, place in zip(paths, place_videos([path.split("/")[:-1] for path in paths], classes), strict=True):
        if isinstance(place, str):
            ignored[place] += 1
        else:
            split, label = place
            creator = creator_of(_stem(path), pattern)
            videos.append(_Video(path, os.path.join(absolute, path), label, split, creator))
    return videos


def _walk(root: str, ignored: Counter[str]) -> Iterator[str]:
    """The paths, with / and relative to ``root``, of the regular files below it; links to folders are followed.

    A link to a folder that it lies in is not: it would have no end.
    """
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        prefix, above = pending.pop()
        folder = os.path.join(root, prefix)
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            ignored["links back to a folder that they lie in"] += 1
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


def _is_video(path: str, ignored: Counter[str]) -> bool:
    """Whether a file's name says so; counts it in ``ignored`` otherwise."""
    parts = path.split("/")
    if "__MACOSX" in parts or parts[-1].startswith("._"):
        ignored["macOS leftovers (__MACOSX, ._*)"] += 1
    elif any(part.startswith(".") for part in parts):
        ignored["hidden files (.DS_Store and the like)"] += 1
    elif os.path.splitext(path)[1][1:].lower() not in VIDEO_EXTENSIONS:
        ignored["files that are not videos"] += 1
    elif path != path.encode(errors="ignore").decode():
        ignored["videos with names that are not UTF-8"] += 1  # no table could hold them
    else:
        return True
    return False


def _list_csv(source: Path, pattern: re.Pattern[str], ignored: Counter[str]) -> list[_Video]:
    base = os.path.abspath(source.parent)
    videos: dict[str, _Video] = {}
    wrong: dict[str, list[str]] = {}
    for line, row in _read_csv(source):
        path, label = row["path"], row["label"]
        file = os.path.normpath(os.path.join(base, path))
        split = SPLIT_NAMES.get(row.get("split", "").lower(), "")
        creator = row["creator"] if "creator" in row else creator_of(_stem(path), pattern)
        video = _Video(path, file, label, split, creator)
        first = videos.setdefault(file, video)
        problem = ""
        if not path or not label:
            problem = "a path and a label in each row"
        elif row.get("split") and not split:
            problem = "each split to be train, val, test or empty"
        elif not os.path.isfile(file):
            problem = "each path to be a file, relative to the .csv's folder or absolute"
        elif (first.label, first.split) != (label, split):
            problem = "one label and one split per path"
        elif first is not video:
            ignored["rows given twice"] += 1
        if problem:
            wrong.setdefault(problem, []).append(f"line {line}: {','.join(row.values())}")
    for problem, rows in wrong.items():
        raise UserError(f"{problem} in {source}", _some(rows, "; "), "Correct the .csv.", "bad-csv")
    return list(videos.values())


def _read_csv(source: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column name of each row that is not empty."""
    try:
        with open(source, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, skipinitialspace=True)
            header = [name.strip().lower() for name in next(reader, [])]
            if missing := [name for name in ("path", "label") if name not in header]:
                raise UserError(
                    f"the columns path,label[,split,creator] in {source}",
                    f"no {' and no '.join(missing)}, but the columns {header}",
                    "Name them in its first line, separated by commas.",
                    "csv-columns",
                )
            for cells in reader:
                if len(cells) not in (0, len(header)):
                    where = f"{len(cells)} in line {reader.line_num}"
                    raise UserError(
                        f"{len(header)} cells in each row of {source}",
                        where,
                        "Quote cells that hold commas.",
                        "bad-csv",
                    )
                if any(cells):
                    yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"a UTF-8 .csv in {source}", str(error), "Save it again as CSV in UTF-8.", "bad-csv") from error


def _check_found(
    source: Path, videos: Sequence[_Video], classes: Sequence[str] | None, ignored: Counter[str], fewest: int
) -> None:
    found = sorted({video.label for video in videos})
    check_class_names(found)
    strays = {kind: count for kind, count in ignored.items() if kind.endswith("class folder")}
    if not videos and strays:
        raise UserError(
            f"the videos in class folders: {LAYOUT}",
            f"{_counts(strays)} in {source}",
            "Arrange them so, or give a .csv.",
            "no-class-folders",
        )
    if not videos:
        what = f"only {_counts(ignored)}" if ignored else "nothing in it"
        known = ", ".join(sorted(VIDEO_EXTENSIONS))
        raise UserError(
            f"videos ({known}) in {source}", what, f"Check data.source; a folder's layout is {LAYOUT}.", "empty-source"
        )
    if classes is not None and (empty := [name for name in classes if name not in found]):
        others = f" (ignored: {_counts(ignored)})" if ignored else ""
        raise UserError(
            f"videos of each of data.classes in {source}",
            f"none of {_some(empty)}{others}",
            "Correct data.classes.",
            "data.classes",
        )
    if len(found) < fewest:
        others = f" (ignored: {_counts(ignored)})" if ignored else ""
        raise UserError(
            f"two or more classes in {source}",
            f"the one class {found[0]!r} with {len(videos)} videos{others}",
            f"Check data.source; a folder's layout is {LAYOUT}.",
            "one-class",
        )


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _counts(ignored: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items()))


def _some(items: Sequence[str], separator: str = ", ") -> str:
    more = [f"and {len(items) - _MOST_SHOWN} more"] if len(items) > _MOST_SHOWN else []
    return separator.join([*items[:_MOST_SHOWN], *more])
