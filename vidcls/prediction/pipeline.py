"""From videos to results: hash, skip what the journal has, decode in worker processes, classify, write.

Short videos are classified whole, as in training; longer ones in windows, see `vidcls.data.decoding.windows`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vidcls.data.decoding.plan import Window, WindowPlan, middle_clip
from vidcls.data.decoding.pool import read_windows
from vidcls.data.decoding.receiver import VideoFinished, VideoStarted, WindowRead
from vidcls.data.decoding.result import DecodeResult, undecodable
from vidcls.data.decoding.worker import CHANGED
from vidcls.data.hashing import FileState, HashCache, hash_files
from vidcls.data.options import DecodeLimits
from vidcls.moderation.policy import Policy
from vidcls.prediction.journal import Journal
from vidcls.prediction.options import PredictOptions
from vidcls.prediction.peaks import Peaks
from vidcls.prediction.predictor import Predictor
from vidcls.prediction.video_result import TimedProbabilities, build_result

MAX_READS = 3  # of a file that changes meanwhile


@dataclass(frozen=True)
class WindowClassified:
    """A window of the video ``number``, with the probabilities of the K classes in it."""

    number: int
    window: Window
    probabilities: Float[np.ndarray, " K"]


Event = VideoStarted | WindowClassified | VideoFinished


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
    """Writes a result into the journal for each video, as soon as its last window is classified.

    Each content is decoded once, and not at all if it is in the journal. ``paths`` are the names of the ``files``. A
    file that has changed since it was hashed is read again; if it keeps changing, it is for review.
    """
    run, plan = predictor.run, options.plan(predictor.run.spec.store)
    describe = partial(build_result, model=run.identity, classes=run.classes, policy=policy, options=options)
    pending = dict(zip(paths, files, strict=True))
    for _ in range(MAX_READS):
        if not pending:
            return
        with closing(HashCache(journal.folder / "hashes.sqlite")) as cache:
            hashes = dict(zip(pending, hash_files(list(pending.values()), cache, console), strict=True))
        missing = journal.assign({path: hashed.sha256 for path, hashed in hashes.items()})
        copies: dict[str, list[str]] = {}  # the paths with each content
        for path, hashed in hashes.items():
            if not hashed.sha256:
                journal.write([path], "", *describe(undecodable(hashed.error), [], None))
            elif hashed.sha256 in missing:
                copies.setdefault(hashed.sha256, []).append(path)
        contents = list(copies.items())
        distinct = [pending[same[0]] for same in copies.values()]
        states = [hashes[same[0]].state for same in copies.values()]
        changed: dict[str, Path] = {}
        with closing(read_windows(distinct, states, plan, limits, ahead=2 * run.spec.batch_size)) as events:
            shown = show_progress(classify(events, predictor), len(distinct), console)
            for place, decoded, windows, peaks in collect(shown, plan, run.classes, options.exit_threshold):
                sha256, same = contents[place]
                if states[place] is not None and FileState.of(distinct[place]) == states[place]:
                    journal.write(same, sha256, *describe(decoded, windows, peaks))
                else:
                    changed |= {path: pending[path] for path in same}
        pending = changed
    for path in pending:
        journal.write([path], "", *describe(undecodable(CHANGED), [], None))


def classify(events: Iterable[VideoStarted | WindowRead | VideoFinished], predictor: Predictor) -> Iterator[Event]:
    """Classifies the windows among ``events``, a batch at a time; the order of events stays."""
    waiting: list[VideoStarted | WindowRead | VideoFinished] = []

    def flush() -> Iterator[Event]:
        windows = [event.window.frames for event in waiting if isinstance(event, WindowRead)]
        found = iter(predictor(windows) if windows else ())
        for event in waiting:
            if isinstance(event, WindowRead):
                yield WindowClassified(event.number, event.window, next(found))
            else:
                yield event
        waiting.clear()

    for event in events:
        waiting.append(event)
        if sum(isinstance(one, WindowRead) for one in waiting) in (0, predictor.run.spec.batch_size):
            yield from flush()
    yield from flush()


def collect(
    events: Iterable[Event], plan: WindowPlan, classes: Sequence[str], exit_threshold: float | int
) -> Iterator[tuple[int, DecodeResult, TimedProbabilities, Peaks | None]]:
    """Yields the number, decode result, windows and peaks of each video once it has finished."""
    open_videos: dict[int, tuple[TimedProbabilities, Peaks]] = {}
    for event in events:
        if isinstance(event, VideoStarted):
            open_videos[event.number] = [], Peaks(classes, exit_threshold)
        elif isinstance(event, WindowClassified):
            windows, peaks = open_videos[event.number]
            windows.append((event.window.start_seconds, event.window.end_seconds, event.probabilities))
            peaks.add(middle_clip(event.window, plan), event.probabilities)
        else:
            yield event.number, event.result, *open_videos.pop(event.number, ([], None))


def show_progress(events: Iterable[Event], num_videos: int, console: Console) -> Iterator[Event]:
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
