"""From videos to results: hash or fetch, skip what the journal has, decode in worker processes, classify, write."""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vidcls.data.decoding.pool import read_windows
from vidcls.data.decoding.receiver import DEFERRED, VideoStarted
from vidcls.data.decoding.result import unfetchable
from vidcls.data.decoding.worker import Source
from vidcls.data.file_hashes import HashResult, hash_video
from vidcls.data.options import DecodeLimits, FetchLimits
from vidcls.data.parallel_fetch import FetchSpace, fetching
from vidcls.data.remote import FetchedFile, UnfetchableError, try_fetch
from vidcls.data.urls import is_url
from vidcls.moderation.policy import Policy
from vidcls.prediction.catalogue import LONG_WINDOWS, Catalogue, Content
from vidcls.prediction.coarse_search import CoarseSearch
from vidcls.prediction.journal import Journal
from vidcls.prediction.options import PredictOptions
from vidcls.prediction.run import BaseRun
from vidcls.prediction.video_result import build_result
from vidcls.prediction.video_stream import ClassifiedEvent, VideoFound, WindowClassified, classify, collect

# The name of a video, and the hash of a local file, the copy of a remote one, or why there is none.
Obtained = tuple[str, HashResult | FetchedFile | UnfetchableError]


def predict_videos(
    videos: Mapping[str, str],
    run: BaseRun,
    accelerator: str | None,
    options: PredictOptions,
    policy: Policy | None,
    journal: Journal,
    limits: DecodeLimits,
    fetch_limits: FetchLimits,
    console: Console,
) -> None:
    """Writes a result into the journal for each video, as soon as its last window is classified, long videos last.

    Each content is decoded once, and not at all if it is in the journal. ``videos`` are paths or URLs by name; remote
    ones are fetched, a few ahead, and removed after use. A file that has changed since it was hashed is read again; one
    that keeps changing is marked for review.
    """
    predictor, plan = run.make_predictor(accelerator), options.plan(run.spec.store)
    describe = partial(build_result, model=run.identity, classes=run.classes, policy=policy, options=options)
    catalogue, batch_size = Catalogue(videos, journal, describe), run.spec.batch_size
    folder = journal.folder / "fetched"
    search = CoarseSearch(options, policy)
    # What is being read, by number, with the result of its first pass; and what needs a second pass.
    contents: dict[int, tuple[Content, FetchedFile | None, VideoFound | None]] = {}
    again: deque[tuple[Source, tuple[Content, FetchedFile | None, VideoFound]]] = deque()

    def obtain(name: str, space: FetchSpace) -> Obtained:
        location = videos[name]
        if is_url(location):
            return name, try_fetch(location, folder, fetch_limits, space)
        return name, hash_video(Path(location))

    def take(found: Iterable[Obtained | None]) -> Iterator[Source | None]:
        numbers = itertools.count()

        def repeated() -> Iterator[Source]:
            while again:
                source, contents[next(numbers)] = again.popleft()
                yield source

        for one in found:
            yield from repeated()
            if one is None:
                yield None
                continue
            name, got = one
            if isinstance(got, UnfetchableError):
                catalogue.lose(name, unfetchable(str(got)))
                continue
            fetched = got if isinstance(got, FetchedFile) else None
            hashed = got if isinstance(got, HashResult) else got.hashed()
            new = catalogue.assign({name: hashed}, {name: fetched.path} if fetched else None)
            if fetched and not new:
                fetched.remove()
            for content in new:
                contents[next(numbers)] = content, fetched, None
                yield Source(content.file, content.state)
        while contents or again:  # some may need a second pass
            yield from repeated()
            yield None

    def submit(windows: Sequence[np.ndarray]) -> Callable[[], Float[np.ndarray, "B Q"]]:
        return partial(np.asarray, predictor.outputs(windows))

    pending, long = list(videos), list[str]()
    while pending or long:
        max_windows = LONG_WINDOWS if pending and len(videos) > 1 else math.inf
        names, pending = pending or long, []
        long = [] if names is long else long
        with fetching(obtain, names, folder, fetch_limits) as found:
            sources = take(found)
            read = read_windows(sources, len(names), plan, limits, 2 * batch_size, max_windows=max_windows)
            with closing(read) as events:
                classified = classify(events, submit, batch_size)
                shown = show_progress(classified, len(videos), lambda: catalogue.num_done, console)
                for number, seen in collect(shown, plan, run.classes, options.exit_threshold):
                    content, fetched, first = contents[number]
                    spans = search.spans(seen) if first is None and not content.changed else None
                    if spans:
                        again.append((Source(content.file, content.state, spans), (content, fetched, seen)))
                    elif seen[0] is DEFERRED:
                        long += catalogue.postpone(content)
                    else:
                        both = search.join(first, seen) if first else seen
                        pending += catalogue.finish(content, None if content.changed else describe(*both))
                    del contents[number]  # only now, as `take` ends when this is empty
                    if fetched and not spans:
                        fetched.remove()


def show_progress(
    events: Iterable[ClassifiedEvent], num_videos: int, num_done: Callable[[], int], console: Console
) -> Iterator[ClassifiedEvent]:
    """Passes ``events`` through, with a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    started, seconds = time.monotonic(), 0.0
    videos: dict[int, VideoStarted] = {}
    fractions: dict[int, float] = {}  # the classified fraction of each open video
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("Predicting", total=num_videos, note="")

        def update() -> None:
            finished, speed = num_done(), seconds / (time.monotonic() - started)
            note = f"{finished}/{num_videos} videos, {speed:.0f} s of video per second"
            progress.update(task, completed=finished + sum(fractions.values()), note=note)

        for event in events:
            if isinstance(event, VideoStarted):
                videos[event.number], fractions[event.number] = event, 0.0
            elif isinstance(event, WindowClassified):
                video = videos[event.number]
                fractions[event.number] += 1 / video.num_windows
                seconds += video.seconds / video.num_windows
            else:
                fractions.pop(event.number, None)
            update()
            yield event
        update()
