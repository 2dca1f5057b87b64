"""From videos to results: hash, skip what the journal has, decode in worker processes, classify, write.

Short videos are classified whole, as in training; longer ones in windows, see `vidcls.data.decoding.windows`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vidcls.data.decoding.pool import read_windows
from vidcls.data.decoding.receiver import DEFERRED, VideoStarted
from vidcls.data.hashing import HashCache, hash_files
from vidcls.data.options import DecodeLimits
from vidcls.moderation.policy import Policy
from vidcls.prediction.catalogue import LONG_WINDOWS, Catalogue, Content
from vidcls.prediction.journal import Journal
from vidcls.prediction.options import PredictOptions
from vidcls.prediction.predictor import Predictor
from vidcls.prediction.video_result import build_result
from vidcls.prediction.video_stream import ClassifiedEvent, WindowClassified, classify, collect


def predict_videos(
    paths: Sequence[str],
    files: Sequence[Path],
    predictor: Predictor,
    options: PredictOptions,
    policy: Policy | None,
    journal: Journal,
    limits: DecodeLimits,
    console: Console,
) -> None:
    """Writes a result into the journal for each video, as soon as its last window is classified, long videos last.

    Each content is decoded once, and not at all if it is in the journal. ``paths`` are the names of the ``files``. A
    file that has changed since it was hashed is read again; if it keeps changing, it is for review.
    """
    run, plan = predictor.run, options.plan(predictor.run.spec.store)
    describe = partial(build_result, model=run.identity, classes=run.classes, policy=policy, options=options)
    catalogue, batch_size = Catalogue(dict(zip(paths, files, strict=True)), journal, describe), run.spec.batch_size

    def submit(windows: Sequence[np.ndarray]) -> Callable[[], Float[np.ndarray, "B K"]]:
        return partial(np.asarray, predictor(windows))

    pending = list(paths)
    while pending:
        with closing(HashCache(journal.folder / "hashes.sqlite")) as cache:
            hashes = hash_files([catalogue.videos[path] for path in pending], cache, console)
        contents = catalogue.assign(dict(zip(pending, hashes, strict=True)))
        pending, deferred = [], list[Content]()
        for max_windows in (LONG_WINDOWS if len(contents) > 1 else math.inf, math.inf):
            files, states = [content.file for content in contents], [content.state for content in contents]
            ahead = 2 * batch_size
            with closing(read_windows(files, states, plan, limits, ahead, max_windows=max_windows)) as events:
                shown = show_progress(classify(events, submit, batch_size), len(contents), console)
                for place, decoded, windows, peaks in collect(shown, plan, run.classes, options.exit_threshold):
                    if decoded is DEFERRED:
                        deferred.append(contents[place])
                    else:
                        result = None if contents[place].changed else describe(decoded, windows, peaks)
                        pending += catalogue.finish(contents[place], result)
            if not deferred:
                break
            contents, deferred = deferred, []


def show_progress(events: Iterable[ClassifiedEvent], num_videos: int, console: Console) -> Iterator[ClassifiedEvent]:
    """Yields ``events`` unchanged while updating a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    started, finished, seconds = time.monotonic(), 0, 0.0
    videos: dict[int, VideoStarted] = {}
    fractions: dict[int, float] = {}  # how much of each open video is classified
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("Predicting", total=num_videos, note="")
        for event in events:
            if isinstance(event, VideoStarted):
                videos[event.number], fractions[event.number] = event, 0.0
            elif isinstance(event, WindowClassified):
                video = videos[event.number]
                fractions[event.number] += 1 / video.num_windows
                seconds += video.seconds / video.num_windows
            else:
                fractions.pop(event.number, None)
                finished += 1
            speed = seconds / (time.monotonic() - started)
            note = f"{finished}/{num_videos} videos, {speed:.0f} s of video per second"
            progress.update(task, completed=finished + sum(fractions.values()), note=note)
            yield event
