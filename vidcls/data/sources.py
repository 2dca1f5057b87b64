"""A folder, a .zip or a list becomes a table of labelled videos; reads names only, opens no video."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vidcls.data.listing import LIST_EXTENSIONS, VIDEO_EXTENSIONS, read_list, walk_folder
from vidcls.data.options import DataOptions, canonical_name, check_class_names
from vidcls.data.urls import extension, is_url, join, local_path, path_of, redact
from vidcls.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

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
        videos: one row per video, sorted by path, all str: ``path`` (with / and relative to the source's root, or as
            written in a list, without credentials), ``file`` (an absolute path, or the URL to fetch, which may hold
            credentials), ``label``, ``split`` (train, val, test, or "" if not given), ``creator`` ("" unknown) and
            ``version`` (of a remote file, see `vidcls.data.remote.version_of`; "" unknown).
        ignored: how many files, by kind, are in the source but not in ``videos``.
        note: a doubt about which folders are the classes; "" for none.
    """

    videos: pd.DataFrame
    ignored: dict[str, int]
    note: str = ""


class _Video(NamedTuple):
    path: str
    file: str
    label: str
    split: str
    creator: str
    version: str = ""


def list_videos(
    options: DataOptions, classes: Sequence[str] | None, refuse_others: bool = False, unpacked: Path | None = None
) -> Listing:
    """Lists the labelled videos of ``options.source``.

    Folders and zips: a folder named train, val or test (or training, valid, validation, testing; in any case) is a
    split, at any depth, and the folder in it is the class. Without split folders the class is the folder right below
    the deepest one that holds all the videos. The same holds for the paths in a .txt. A .csv or .parquet has the
    columns path, label[, split, creator], with paths relative to its own folder; where ``options.decisions`` may give
    labels, a label may be "".

    Args:
        options: of which the source and the pattern of creators matter.
        classes: the classes to keep; None keeps all.
        refuse_others: videos of other classes are an error rather than ignored, and a class may have no videos: for
            data that a trained network is evaluated on.
        unpacked: the folder of the files of a .zip, see `vidcls.data.archive.unpack`.

    Raises:
        UserError: the source cannot be read, classes differ in case alone, or a class has no videos.
    """
    source, lister = local_path(options.source), _Lister(options, classes)
    ignored = lister.ignored
    try:
        videos = lister.list_source(str(unpacked or source))
    except OSError as error:
        got = f"{error.strerror}: {error.filename or source}"
        raise UserError("a data.source that can be read", got, "Check its permissions.", "unreadable-source") from error
    kept = [video for video in videos if classes is None or video.label in ("", *classes)]
    others = Counter(video.label for video in videos) - Counter(video.label for video in kept)
    if refuse_others and others:
        raise UserError(
            f"videos of the classes {', '.join(classes or ())} alone in {source}",
            "also " + ", ".join(f"{label!r} ({count} videos)" for label, count in sorted(others.items())),
            "Rename or remove those folders, or list the videos in a .csv with the right labels.",
            "unknown-classes",
        )
    ignored.update({f"videos of class {label!r}, which is not in data.classes": n for label, n in others.items()})
    _check_found(source, kept, None if refuse_others else classes, ignored, fewest=1 if refuse_others else 2)
    import pandas as pd  # only here: predict.py finds its videos without it

    table = pd.DataFrame(sorted(kept), columns=list(_Video._fields), dtype=str)
    named = classes is not None or extension(options.source) in ("csv", "parquet")
    return Listing(table, dict(sorted(ignored.items())), "" if named else _doubt(kept))


def creator_of(stem: str, pattern: re.Pattern[str]) -> str:
    """The creator in a file name without extension; "" where the pattern does not match.

    >>> pattern = re.compile("(?P<creator>.+)_[^_]+")
    >>> creator_of("dr._no_7000", pattern), creator_of("holiday", pattern)
    ('dr._no', '')
    """
    match = pattern.fullmatch(stem)
    return (match["creator"] or "") if match else ""


def place_videos(folders: Sequence[Sequence[str]], classes: Sequence[str] | None) -> list[tuple[str, str] | str]:
    """Split ("" for none) and class of each video by its folders, or why it is in no class.

    Args:
        folders: per video, the names of the folders from the source's root down.
        classes: the classes that the user named. A folder of such a name is never a split, and without split folders
            the first one is the class, at any depth.

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

    def place(parts: Sequence[str], row: Sequence[str], depth: int | None) -> tuple[str, str] | str:
        if depth is not None and len(parts) == depth + 1:
            return "videos in a split folder, in no class folder"
        if depth is not None:
            return row[depth], parts[depth + 1]
        if has_splits:
            return "videos outside the train, val and test folders"
        candidates = [part for part in parts if part in named] or parts[shared:]
        return ("", candidates[0]) if candidates else "videos in no class folder"

    return [place(*video) for video in zip(folders, splits, depths, strict=True)]


class _Lister:
    """Lists the videos of a source, and counts what it leaves out in ``ignored``."""

    def __init__(self, options: DataOptions, classes: Sequence[str] | None) -> None:
        self.options, self.classes = options, classes
        self.ignored = Counter[str]()
        self._pattern = re.compile(options.creator_pattern)

    def list_source(self, source: str) -> list[_Video]:
        kind, remote = extension(source), is_url(source)
        if kind == "zip" and remote:
            expected = "a folder or list (.txt, .csv, .parquet) behind a URL in data.source"
            raise UserError(expected, f"a zip: {source}", "Download it first.", "source-type")
        if kind in LIST_EXTENSIONS and (remote or os.path.isfile(source)):
            return self._list_rows(source)
        if remote or os.path.isdir(source):
            return self._list_folder(source if remote else os.path.abspath(source))
        expected = "a folder, .zip, .csv, .parquet or .txt in data.source, or a URL"
        if os.path.exists(source):
            remedy = "Give the folder of the videos."
            raise UserError(expected, f"a file of another type: {source}", remedy, "source-type")
        raise UserError(expected, f"nothing at {source}", "Check data.source.", "missing-source")

    def _list_folder(self, root: str) -> list[_Video]:
        found = list(walk_folder(root, self.ignored))
        rows = [row for row in found if _in_utf8(row[0])]
        if len(rows) < len(found):  # no table could hold them
            self.ignored["videos with names that are not UTF-8"] += len(found) - len(rows)
        return self._place(rows)

    def _place(self, rows: Sequence[tuple[str, str, str]]) -> list[_Video]:
        """The videos (path, file, version) whose class their folders tell."""
        videos = []
        folders = [path_of(path).split("/")[:-1] for path, _, _ in rows]
        for (path, file, version), place in zip(rows, place_videos(folders, self.classes), strict=True):
            if isinstance(place, str):
                self.ignored[place] += 1
            else:
                split, label = place
                videos.append(_Video(path, file, label, split, creator_of(_stem(path), self._pattern), version))
        return videos

    def _list_rows(self, source: str) -> list[_Video]:
        base = os.path.dirname(source if is_url(source) else os.path.abspath(source))
        labelled = extension(source) != "txt"
        videos: dict[str, _Video] = {}
        names: dict[str, str] = {}
        wrong: dict[str, list[str]] = {}
        columns = ("path", "label") if labelled else ("path",)
        for line, row in read_list(source, self.options.fetch, columns, self.ignored):
            path, label = redact(row["path"]), row.get("label", "").strip()
            file = join(base, row["path"])
            file = file if is_url(file) else os.path.normpath(file)
            split = SPLIT_NAMES.get(row.get("split", "").strip().lower(), "")
            creator = row["creator"].strip() if "creator" in row else creator_of(_stem(path), self._pattern)
            video = _Video(path, file, label, split, creator)
            first = videos.setdefault(file, video)
            problem = ""
            if not path or (labelled and not label and not self.options.decisions):
                problem = "a path and a label in each row"
            elif not _in_utf8(path):
                problem = "names in UTF-8"
            elif row.get("split") and not split:
                problem = "each split to be train, val, test or empty"
            elif not is_url(file) and not os.path.isfile(file):
                problem = f"each path to be a file, relative to the folder of the .{extension(source)} or absolute"
            elif (first.label, first.split, first.creator) != (label, split, creator):
                problem = "one label, split and creator per path"
            elif first is not video:
                self.ignored["rows given twice"] += 1
            elif names.setdefault(path, file) != file:
                problem = "URLs that differ in more than credentials"
            if problem:
                text = redact(",".join(row.values())).encode("utf-8", "backslashreplace").decode()
                wrong.setdefault(problem, []).append(f"line {line}: {text}")
        for problem, rows in wrong.items():
            raise UserError(f"{problem} in {source}", _some(rows, "; "), "Correct the list.", "bad-csv")
        if labelled:
            return list(videos.values())
        return self._place([(video.path, video.file, "") for video in videos.values()])


def _check_found(
    source: str, videos: Sequence[_Video], classes: Sequence[str] | None, ignored: Counter[str], fewest: int
) -> None:
    found = sorted({video.label for video in videos} - {""})
    check_class_names(found)
    also = f" (ignored: {_counts(ignored)})" if ignored else ""
    if not videos and any(kind.endswith("class folder") for kind in ignored):
        expected = f"the videos of {source} in class folders: {LAYOUT}"
        raise UserError(expected, _counts(ignored), "Arrange them so, or give a .csv.", "no-class-folders")
    if not videos:
        expected = f"videos ({', '.join(sorted(VIDEO_EXTENSIONS))}) in {source}"
        remedy = f"Check data.source; a folder's layout is {LAYOUT}."
        raise UserError(expected, f"only {_counts(ignored)}" if ignored else "nothing in it", remedy, "empty-source")
    if classes is not None and (empty := [name for name in classes if name not in found]):
        expected = f"videos of each of data.classes in {source}"
        raise UserError(expected, f"none of {_some(empty)}{also}", "Correct data.classes.", "data.classes")
    spellings = Counter(map(canonical_name, found))
    if classes is None and (alike := [name for name in found if spellings[canonical_name(name)] > 1]):
        remedy = f"Rename them, or give data.classes=[{','.join(found)}] if they are different ones."
        raise UserError(f"classes in {source} that differ in more than case", _some(alike), remedy, "classes-alike")
    if len(found) < fewest:
        remedy = f"Check data.source; a folder's layout is {LAYOUT}."
        what = f"the one class {found[0]!r}" if found else "no label at all,"
        got = f"{what} with {len(videos)} videos{also}"
        raise UserError(f"two or more classes in {source}", got, remedy, "one-class")


def _doubt(videos: Sequence[_Video]) -> str:
    """Says so if each class folder holds the same folders, which may be the classes: {day1,day2}/{safe,harmful}/."""
    inner: dict[str, set[str]] = {}
    for video in videos:
        parts = path_of(video.path).split("/")[:-1]
        inner.setdefault(video.label, set()).add("".join(parts[parts.index(video.label) + 1 :][:1]))
    first, *others = inner.values()
    if any(other != first for other in others) or len(first) < 2 or "" in first:
        return ""
    names = ",".join([*sorted(first)[:_MOST_SHOWN], *["..."] * (len(first) > _MOST_SHOWN)])
    remedy = "list the videos in a .csv" if videos[0].split else f"give data.classes=[{names}]"
    return (
        f"The classes are the folders {_some(sorted(inner))}; the folders {_some(sorted(first))} in each of them are "
        f"not used. If those are the classes, {remedy}."
    )


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path_of(path)))[0]


def _in_utf8(text: str) -> bool:
    return text == text.encode(errors="ignore").decode()


def _counts(ignored: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items()))


def _some(items: Sequence[str], separator: str = ", ") -> str:
    more = [f"and {len(items) - _MOST_SHOWN} more"] if len(items) > _MOST_SHOWN else []
    return separator.join([*items[:_MOST_SHOWN], *more])
