"""Classifies the windows that decoding processes send, in batches, and collects them by video. Imports no torch."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from vidcls.data.decoding.plan import Window, WindowPlan, middle_clip
from vidcls.data.decoding.receiver import Event, Idle, VideoEvent, VideoFinished, VideoStarted, WindowRead
from vidcls.data.decoding.result import DecodeResult
from vidcls.prediction.peaks import Peaks
from vidcls.prediction.video_result import TimedOutputs

Outputs = Float[np.ndarray, "B Q"]
# Sends a batch of windows to a network; returns a function that waits for their probabilities and clip vectors.
Submit = Callable[[Sequence[UInt8[np.ndarray, "_ H W 3"]]], Callable[[], Outputs]]


@dataclass(frozen=True)
class WindowClassified:
    """A window of the video ``number``, with its probabilities followed by its clip vector."""

    number: int
    window: Window
    outputs: Float[np.ndarray, " Q"]


ClassifiedEvent = VideoStarted | WindowClassified | VideoFinished
VideoFound = tuple[DecodeResult, TimedOutputs, Peaks | None]  # of a finished video


def classify(events: Iterable[Event], submit: Submit, batch_size: int, in_flight: int = 0) -> Iterator[ClassifiedEvent]:
    """Classifies the windows among ``events`` in batches, and keeps the order of events.

    On `Idle` an incomplete batch is classified. Up to ``in_flight`` batches are classified while the next one is read.
    """
    waiting: list[VideoEvent] = []
    submitted: deque[tuple[list[VideoEvent], Callable[[], Iterable[Float[np.ndarray, " Q"]]]]] = deque()

    def send() -> None:
        windows = [event.window.frames for event in waiting if isinstance(event, WindowRead)]
        submitted.append((waiting.copy(), submit(windows) if windows else tuple))
        waiting.clear()

    def receive() -> Iterator[ClassifiedEvent]:
        batch, result = submitted.popleft()
        found = iter(result())
        for event in batch:
            if isinstance(event, WindowRead):
                yield WindowClassified(event.number, event.window, next(found))
            else:
                yield event

    for event in events:
        if isinstance(event, Idle):
            send()
        else:
            waiting.append(event)
            if sum(isinstance(one, WindowRead) for one in waiting) in (0, batch_size):
                send()
        while len(submitted) > (0 if isinstance(event, Idle) else in_flight):
            yield from receive()
    send()
    while submitted:
        yield from receive()


def collect(
    events: Iterable[ClassifiedEvent], plan: WindowPlan, classes: Sequence[str], exit_threshold: float | int
) -> Iterator[tuple[int, VideoFound]]:
    """Yields the number of each finished video, and its decode result, windows and peaks."""
    open_videos: dict[int, tuple[TimedOutputs, Peaks]] = {}
    for event in events:
        if isinstance(event, VideoStarted):
            open_videos[event.number] = [], Peaks(classes, exit_threshold)
        elif isinstance(event, WindowClassified):
            windows, peaks = open_videos[event.number]
            windows.append((event.window.start_seconds, event.window.end_seconds, event.outputs))
            peaks.add(middle_clip(event.window, plan), event.outputs[: len(classes)])
        else:
            yield event.number, (event.result, *open_videos.pop(event.number, ([], None)))
