"""Lists the videos of ``input=``, and plans which of them are still to be classified. Imports no torch."""

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rich.console import Console

from vidcls.data.listing import LIST_EXTENSIONS, VIDEO_EXTENSIONS, is_folder, is_video, read_list, walk_folder
from vidcls.data.options import FetchLimits
from vidcls.data.remote import filesystem_class
from vidcls.data.urls import extension, is_url, join, local_path, path_of, redact, refuse_credentials
from vidcls.errors import UserError
from vidcls.prediction.catalogue import location_version
from vidcls.prediction.journal import Journal

CHUNK = 1000  # names that are looked up in the journal at once


class Input(NamedTuple):
    """A video: its name in the results, its path or URL, and the version of a remote file if the listing has it."""

    name: str
    location: str
    version: str = ""


class Inputs:
    """Iterates over the videos at a path or URL, below a folder, in a list, or matched by a glob.

    Names are relative to the folder, or as in the glob or list, without credentials. A single file may have any
    extension but that of a list. ``ignored`` counts skipped files so far, by kind.

    Raises:
        UserError: there are none, or ``text`` holds credentials.
    """

    def __init__(self, text: str, limits: FetchLimits) -> None:
        refuse_credentials("input", text)
        self.ignored: Counter[str] = Counter()
        found = _list(local_path(text), limits, self.ignored)
        first = next(found, None)
        if first is None:
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.ignored.items()))
            raise UserError(
                "a video, a folder or list of videos, or a glob that matches some in input=",
                f"{text}: {counts or 'nothing'}",
                "Check input=; quote glob patterns to prevent shell expansion.",
                "input",
            )
        self._found = itertools.chain([first], found)

    def __iter__(self) -> Iterator[Input]:
        return self._found


def _list(text: str, limits: FetchLimits, ignored: Counter[str]) -> Iterator[Input]:
    try:
        yield from _find(text, limits, ignored)
    except OSError as error:
        got, remedy = f"{error.strerror}: {error.filename}", "Check its permissions."
        raise UserError("an input whose folders can all be read", got, remedy, "input") from error


def _find(text: str, limits: FetchLimits, ignored: Counter[str]) -> Iterator[Input]:
    kind, remote = extension(text), is_url(text)
    if kind in LIST_EXTENSIONS and (remote or os.path.isfile(text)):
        base = os.path.dirname(path_of(text) if remote else os.path.abspath(text))
        schemes = set[str]()
        for _, row in read_list(text, limits, ("path",)):
            if not row["path"]:
                ignored["rows without a path"] += 1
                continue
            location = join(base, row["path"])
            if is_url(location) and (scheme := location.partition("://")[0]) not in schemes:
                filesystem_class(location)  # before anything is fetched: raises `UserError` if no package reads these
                schemes.add(scheme)
            yield Input(redact(row["path"]), location)
    elif kind == "zip" and (remote or os.path.isfile(text)):
        raise UserError("a video, a folder or a list in input=", f"a zip: {text}", "Unpack it first.", "input")
    elif remote and (kind in VIDEO_EXTENSIONS or not is_folder(text)):
        yield Input(os.path.basename(path_of(text)), text)
    elif remote or os.path.isdir(text):
        for video in walk_folder(text if remote else os.path.abspath(text), ignored):
            yield Input(*video)
    elif os.path.isfile(text):
        yield Input(os.path.basename(text), os.path.abspath(text))
    else:
        for path in glob.iglob(text, recursive=True):
            if os.path.isdir(path):
                if "**" not in text:  # it matches what is in them too
                    ignored["folders"] += 1
            elif not os.path.isfile(path):
                ignored["broken links or special files"] += 1
            elif is_video(os.path.basename(path), ignored):
                yield Input(path, os.path.abspath(path))


class Plan(NamedTuple):
    """The videos to classify."""

    videos: dict[str, str]  # paths or URLs by name
    num_listed: int
    num_again: int  # of ``videos``: those whose result is replaced


def plan_videos(inputs: Iterable[Input], journal: Journal, console: Console) -> Plan:
    """Lists all videos and keeps those without a final result in the journal, the largest first.

    A local file that has changed is classified again, as is a remote one if the listing has its version, and one whose
    URL was another one before. URLs in a list are not checked for changes.

    Raises:
        UserError: a folder cannot be read, or two URLs differ in their credentials alone.
    """
    found: dict[str, str] = {}
    sizes: dict[str, int] = {}
    count, stream = 0, iter(inputs)
    with console.status("Listing videos") as status:
        while listed := list(itertools.islice(stream, CHUNK)):
            chunk: dict[str, Input] = {}
            for one in listed:
                if chunk.setdefault(one.name, one).location != one.location:
                    raise _same_name(one.name)
            count += len(chunk)
            versions = {name: location_version(one.location, one.version) for name, one in chunk.items()}
            for name in journal.pending(versions):
                location = chunk[name].location
                if found.setdefault(name, location) != location:
                    raise _same_name(name)
                size = (chunk[name].version if is_url(location) else versions[name]).partition(" ")[0]
                sizes[name] = int(size) if size.isdecimal() else 0
            status.update(f"Listing videos: {count:,}, of which {len(found):,} are to be classified")
    # A large one at the end would keep the others waiting.
    names = sorted(found, key=lambda name: (-sizes[name], name))
    num_again = len(names) - journal.num_missing(names)
    return Plan({name: found[name] for name in names}, count, num_again)


def _same_name(name: str) -> UserError:
    return UserError("URLs that differ in more than credentials in input=", name, "List each once.", "same-name")
