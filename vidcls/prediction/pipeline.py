"""From videos to rows: decoding in worker processes, the network meanwhile, and one result per video.

Short videos are judged whole, as in training; long ones in windows, from which `timeline` makes a score and
segments. What to do with a video is the policy's to say, and a person's where there is none.
"""

from __future__ import annotations

import base64
import io
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vidcls.data.decoding.frames import Reading
from vidcls.data.decoding.memory import return_freed_blocks
from vidcls.data.decoding.reader import Finished, Started, WindowRead, read_videos
from vidcls.data.decoding.windows import Window, WindowPlan, middle_clip
from vidcls.data.ingest import DecodeLimits
from vidcls.data.sampling import Clips
from vidcls.errors import check_choice, check_integer, check_number
from vidcls.moderation.policy import DECISIONS, REVIEW, Decision, Policy, decide, harmful_scores, load_policy
from vidcls.moderation.timeline import SCORES, segments, video_class, video_score
from vidcls.prediction.journal import PredictionFolder, Row
from vidcls.prediction.predictor import LoadedRun, Predictor

PEAKS = 8  # pictures kept per class and video, at most
NO_POLICY = "no policy: fit one with evaluate.py run=DIR policy.harmless=CLASS"


@dataclass(frozen=True)
class Settings:
    """All that turns a video into a result, beside the run; see conf/predict.yaml for the knobs."""

    plan: WindowPlan
    score: str
    top_k: int
    enter: float
    leave: float
    min_seconds: float


def choose_settings(knobs: DictConfig, trained: LoadedRun) -> Settings:
    """The settings of ``predict.*``, with what training saw where they are null.

    Raises:
        UserError: a setting is out of range.
    """
    store = trained.spec.store
    clips = Clips(store.clip_seconds, store.num_clips)
    usable = trained.manifest[trained.manifest["status"].isin(["ok", "partial"])]
    seconds = usable["seconds"].astype(float)
    window = clips.seconds if knobs.window_seconds is None else knobs.window_seconds
    if window is None:
        window = round(float(seconds[usable["split"] == "train"].median()), 3)
    stride = window / 2 if knobs.stride_seconds is None else knobs.stride_seconds
    # Half a second to spare, as containers disagree about when a video ends.
    whole = math.ceil(float(seconds.max()) + 0.5) if knobs.whole_seconds is None else knobs.whole_seconds
    return Settings(
        WindowPlan(
            num_frames=store.stored_frames,
            resolution=store.stored_resolution,
            sampling=store.sampling,
            window_seconds=check_number("predict.window_seconds", window),
            stride_seconds=check_number("predict.stride_seconds", stride),
            whole_seconds=check_number("predict.whole_seconds", whole),
            clips=clips,
        ),
        score=check_choice("predict.score", knobs.score, SCORES),
        top_k=check_integer("predict.top_k", knobs.top_k),
        enter=check_number("predict.enter", knobs.enter, maximum=1.0),
        leave=check_number("predict.leave", knobs.leave, maximum=knobs.enter),
        min_seconds=check_number("predict.min_seconds", knobs.min_seconds),
    )


def identity(trained: LoadedRun, settings: Settings, policy: Policy | None) -> dict[str, Any]:
    """All that a result depends on, beside the video: an output folder holds results of one identity."""
    return {
        "model": trained.identity,
        "policy": policy.identity if policy else None,
        "classes": trained.classes,
        **asdict(settings),
    }


def choose_policy(trained: LoadedRun, console: Console) -> Policy | None:
    """The run's policy.json; None, and a warning, where it has none."""
    if trained.policy_path.exists():
        return load_policy(trained.policy_path, trained.classes, trained.identity)
    console.print(f"[yellow]Every video will be for review[/yellow]: the run has {NO_POLICY}", soft_wrap=True)
    return None


def facts(trained: LoadedRun, settings: Settings, policy: Policy | None) -> dict[str, str]:
    """What was run, in words, for the head of the report."""
    plan = settings.plan
    by = f"top-{settings.top_k} mean" if settings.score == "top-k mean" else settings.score
    return {
        "Run": trained.folder.name,
        "Model": trained.identity,
        "Policy": f"{policy.identity}, harmless: {policy.harmless}" if policy else "none",
        "Frames": f"{trained.spec.clip.num_frames} of {trained.spec.clip.resolution} pixels",
        "Judged whole": f"up to {plan.whole_seconds:g} s{_in_clips(plan)}",
        "Windows of longer videos": f"{plan.window_seconds:g} s each {plan.stride_seconds:g} s, scored by their {by}",
    }


def _in_clips(plan: WindowPlan) -> str:
    count, seconds = plan.clips.count, plan.clips.seconds
    if seconds is None:
        return ""
    return f" by the mean of {count} clips of {seconds:g} s" if count > 1 else f" by their middle {seconds:g} s"


def print_plan(settings: Settings, paths: Sequence[str], ignored: dict[str, int], console: Console) -> None:
    """What will be done."""
    others = ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items()))
    console.print(f"{len(paths)} videos{f' (ignored {others})' if others else ''}", markup=False, soft_wrap=True)
    plan = settings.plan
    console.print(
        f"Judged whole up to {plan.whole_seconds:g} s{_in_clips(plan)}, as in training; longer ones in windows of "
        f"{plan.window_seconds:g} s each {plan.stride_seconds:g} s",
        soft_wrap=True,
    )


class Peaks:
    """The pictures at the peaks of one video's timeline: per class the best window of each run of p >= ``leave``.

    Where there is no such run it is the best window of all. Memory does not grow with the video: at most `PEAKS`
    pictures are kept per class.
    """

    def __init__(self, classes: Sequence[str], leave: float) -> None:
        self._classes, self._leave = classes, leave
        self._ended: list[list[_Peak]] = [[] for _ in classes]
        self._running: list[_Peak | None] = [None for _ in classes]
        self._best: list[_Peak | None] = [None for _ in classes]

    def add(self, window: Window, probabilities: Float[np.ndarray, " K"]) -> None:
        """Looks at the next window."""
        seconds = (window.start_seconds + window.end_seconds) / 2
        picture = window.frames[len(window.frames) // 2].copy()  # a view would keep all frames of the window
        for k, p in enumerate(probabilities.tolist()):
            peak, running = _Peak(p, seconds, picture), self._running[k]
            self._best[k] = _higher(self._best[k], peak)
            if p >= self._leave:
                self._running[k] = _higher(running, peak)
            elif running is not None:
                self._ended[k] = sorted([*self._ended[k], running], key=lambda one: -one.probability)[:PEAKS]
                self._running[k] = None

    def pictures(self, skip: str | None) -> list[dict[str, Any]]:
        """In order of class and time; the class ``skip`` is left out."""
        found = []
        for k, name in enumerate(self._classes):
            peaks = [peak for peak in (*self._ended[k], self._running[k]) if peak] or [p for p in [self._best[k]] if p]
            if name != skip:
                for peak in sorted(peaks, key=lambda one: one.seconds):
                    jpeg = io.BytesIO()
                    Image.fromarray(peak.picture).save(jpeg, "JPEG", quality=85)
                    found.append(
                        {
                            "class": name,
                            "seconds": peak.seconds,
                            "probability": peak.probability,
                            "jpeg": base64.b64encode(jpeg.getvalue()).decode(),
                        }
                    )
        return found


@dataclass(frozen=True)
class _Peak:
    probability: float
    seconds: float
    picture: UInt8[np.ndarray, "R R 3"]


def _higher(one: _Peak | None, other: _Peak) -> _Peak:
    return other if one is None or other.probability > one.probability else one


class _Video:
    """A video of which windows are still to come or to be judged."""

    def __init__(self, started: Started, peaks: Peaks) -> None:
        self.windows = started.windows
        self.peaks = peaks
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.probabilities: list[np.ndarray] = []
        self.unjudged = 0
        self.finished: Finished | None = None


class Prediction:
    """Judges videos and writes them into a folder.

    Args:
        trained: the run.
        judge: its network.
        settings: how to look at a video.
        policy: what to do with it; None leaves that to a person.
        folder: where results go.
    """

    def __init__(
        self, trained: LoadedRun, judge: Predictor, settings: Settings, policy: Policy | None, folder: PredictionFolder
    ) -> None:
        self.trained, self.judge, self.settings, self.policy, self.folder = trained, judge, settings, policy, folder
        self.classes = trained.classes
        self.seconds = 0.0  # of video that were decoded
        self._lock = threading.Lock()  # `_wanted` is called from the threads that read
        self._open: dict[int, _Video] = {}
        self._pending: list[tuple[int, Window]] = []
        self._first: dict[str, int] = {}  # the video that speaks for all of the same content, by hash
        self._copies: list[tuple[int, str]] = []
        self._finished = 0

    def run(self, paths: Sequence[str], files: Sequence[Path], limits: DecodeLimits, console: Console) -> None:
        """Judges each video that the folder does not hold yet; a row is written as soon as its last batch is judged."""
        return_freed_blocks(2**20)
        self._paths = paths
        self._done = {row["sha256"]: row for row in self.folder.rows.values() if row["sha256"]}
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            task, started = progress.add_task("Predicting", total=len(files), note=""), time.monotonic()

            def show() -> None:
                speed = self.seconds / (time.monotonic() - started)
                done = self._finished + sum(len(video.starts) / video.windows for video in self._open.values())
                note = f"{self._finished}/{len(files)} videos, {speed:.0f} s of video per second"
                progress.update(task, completed=done, note=note)

            events = read_videos(
                files, self.settings.plan, limits, self._wanted, ahead=2 * self.trained.spec.batch_size
            )
            try:
                for event in events:
                    self._take(event)
                    if len(self._pending) == self.trained.spec.batch_size:
                        self._judge()
                    self._write_copies()
                    show()
                self._judge()
                self._write_copies()
                show()
            finally:
                events.close()

    def _wanted(self, number: int, sha256: str) -> bool:
        """Whether a video is to be judged: not if the same content has been, or is being."""
        with self._lock:
            if sha256 in self._done or sha256 in self._first:
                self._copies.append((number, sha256))
                return False
            self._first[sha256] = number
            return True

    def _take(self, event: Started | WindowRead | Finished) -> None:
        if isinstance(event, Started):
            self._open[event.number] = _Video(event, Peaks(self.classes, self.settings.leave))
        elif isinstance(event, WindowRead):
            self._open[event.number].unjudged += 1
            self._pending.append((event.number, event.window))
        elif event.number in self._open:
            self._open[event.number].finished = event
            self._write_if_done(event.number)
        else:  # not one frame
            self._write(event, None)

    def _judge(self) -> None:
        """Judges the windows that wait, and writes the videos that are then complete."""
        if not self._pending:
            return
        found = self.judge([window.frames for _, window in self._pending])
        for (number, window), probabilities in zip(self._pending, found, strict=True):
            video = self._open[number]
            video.starts.append(window.start_seconds)
            video.ends.append(window.end_seconds)
            video.probabilities.append(probabilities)
            video.peaks.add(middle_clip(window, self.settings.plan), probabilities)
            video.unjudged -= 1
            self.seconds += window.end_seconds - max([window.start_seconds, *video.ends[-2:-1]])
        numbers = dict.fromkeys(number for number, _ in self._pending)
        self._pending.clear()
        for number in numbers:
            self._write_if_done(number)

    def _write_if_done(self, number: int) -> None:
        video = self._open[number]
        if video.finished is not None and not video.unjudged:
            del self._open[number]
            self._write(video.finished, video)

    def _write(self, event: Finished, video: _Video | None) -> None:
        reading, path = event.reading, self._paths[event.number]
        row = dict.fromkeys(self.folder.columns, "") | {
            "path": path,
            "sha256": event.sha256,
            "coverage": f"{reading.coverage:.6g}",
            "status": reading.status,
            "decoder": reading.decoder,
            "seconds": f"{reading.seconds:.6f}",
            "windows": "0",
            "model": self.trained.identity,
            "policy": self.policy.identity if self.policy else "",
        }
        found: list[Row] = []
        details = None
        windows = np.full((1, len(self.classes)), np.nan, np.float32)
        if video is not None and reading.status != "undecodable":  # which may have windows of stand-ins alone
            windows = np.stack(video.probabilities)  # [W, K]
            row |= self._scores(windows)
            found = self._segments(path, windows, video)
            harmless = self.policy.harmless if self.policy else None
            details = {
                "sha256": event.sha256,
                "starts": video.starts,
                "ends": video.ends,
                "probabilities": windows.tolist(),
                "peaks": video.peaks.pictures(skip=harmless),
            }
        row["decision"], row["reason"] = self._decide(windows, reading)
        self.folder.write(row, found, details)
        self._finished += 1
        with self._lock:
            if event.sha256:
                self._done[event.sha256] = row

    def _scores(self, windows: Float[np.ndarray, "W K"]) -> Row:
        """The cells of a row that say what was seen."""
        how, k = self.settings.score, self.settings.top_k
        scores = video_score(windows, how, k)
        best, score = int(scores.argmax()), ""
        if self.policy is not None:
            best = video_class(windows, self.classes.index(self.policy.harmless), how, k)
            score = f"{max(harmful_scores(self.policy, windows, how, k).values()):.9g}"
        cells = {name: f"{p:.9g}" for name, p in zip(self.classes, scores.tolist(), strict=True)}
        return {"predicted": self.classes[best], **cells, "score": score, "windows": str(len(windows))}

    def _segments(self, path: str, windows: Float[np.ndarray, "W K"], video: _Video) -> list[Row]:
        """When each class was seen, but for the harmless one."""
        rows = []
        length = video.ends[0] - video.starts[0]
        for k, name in enumerate(self.classes):
            if self.policy is None or name != self.policy.harmless:
                knobs = (self.settings.enter, self.settings.leave, self.settings.min_seconds)
                for one in segments(np.array(video.starts), length, video.ends[-1], windows[:, k], *knobs):
                    rows.append(
                        {
                            "path": path,
                            "class": name,
                            "start_seconds": f"{one.start_seconds:.3f}",
                            "end_seconds": f"{one.end_seconds:.3f}",
                            "peak": f"{one.peak:.9g}",
                            "peak_seconds": f"{one.peak_seconds:.3f}",
                        }
                    )
        return rows

    def _decide(self, windows: Float[np.ndarray, "W K"], reading: Reading) -> Decision:
        if self.policy is not None:
            return decide(
                self.policy, windows, reading.status, reading.reason, self.settings.score, self.settings.top_k
            )
        reason = f"{reading.status}: {reading.reason}" if reading.status != "ok" else NO_POLICY
        return Decision(REVIEW, reason)

    def _write_copies(self) -> None:
        """Writes the videos whose content has been judged under another path."""
        with self._lock:
            ready = [(number, sha256) for number, sha256 in self._copies if sha256 in self._done]
            self._copies = [(number, sha256) for number, sha256 in self._copies if sha256 not in self._done]
        for number, sha256 in ready:
            path = self._paths[number]
            if path not in self.folder.rows or self.folder.rows[path]["sha256"] != sha256:
                self.folder.copy(self._done[sha256], path)
            self._finished += 1


def print_summary(folder: PredictionFolder, paths: Sequence[str], console: Console) -> None:
    """How many videos of ``paths`` got which decision, by status; and how many are still to do."""
    rows = [folder.rows[path] for path in paths if path in folder.rows]
    table = Table(title=f"{len(rows)} of {len(paths)} videos", title_justify="left")
    table.add_column("status")
    for decision in (*DECISIONS, "all"):
        table.add_column(decision, justify="right")
    for status in ("ok", "partial", "undecodable", "all"):
        of = [row["decision"] for row in rows if status in (row["status"], "all")]
        table.add_row(status, *(str(of.count(decision)) for decision in DECISIONS), str(len(of)))
    console.print(table)
    if len(rows) < len(paths):
        console.print("The same command goes on with the others.")
    console.print(f"Results: {folder.folder}", soft_wrap=True)
    console.print("  predictions.csv  segments.csv  timelines.parquet  report.html")
