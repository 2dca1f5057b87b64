"""Are short passages found in a long video? Three passages in minutes of something else, at known times.

Run it with ``python experiments/long_video/long_video.py``; see README.md.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.tools import ROOT, join, machine, real_clips
from vidcls.plots.style import BLUE, INK, VERMILION, new_figure, save_figure, soften

HERE, SCRATCH = Path(__file__).parent, ROOT / "runs" / "long_video"
Span = tuple[float, float]


@dataclass(frozen=True)
class Case:
    """A long video to be made: ``background`` clips, repeated to fill ``seconds``, and three passages among them."""

    name: str
    run: Path
    background: list[Path]
    passages: list[list[Path]]
    harmful: str
    seconds: float
    size: tuple[int, int]


def train(name: str, safe_class: str, *overrides: str) -> Path:
    """A run with a policy, trained unless it is there."""
    run = SCRATCH / name
    if not (run / "metrics.json").exists():
        call("train.py", f"run_dir={run}", *overrides)
    if not (run / "policy.json").exists():
        call("evaluate.py", f"run={run}", "split=val", f"policy.safe_class={safe_class}")
    return run


def call(*arguments: str) -> None:
    """One command of the project."""
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT)


def demo() -> Case:
    """Drawn videos of the demo's test split."""
    run = train("demo", "safe", "model=cnn_lstm")
    clips = {name: sorted((ROOT / "data/demo/rtp/test" / name).glob("*.mp4")) for name in ("safe", "harmful")}
    passages = [clips["harmful"][i : i + 3] for i in (0, 3, 6)]
    return Case("demo", run, clips["safe"], passages, "harmful", 120, (96, 160))


def fights(data: Path) -> list[Case]:
    """Surveillance clips: of the cameras that the network was trained on, and of others."""
    run = train("fights", "nofight", "data=folder", f"data.source={data}")
    cases = []
    for split in ("train", "val"):
        clips = {name: sorted((data / split / name).glob("*.mp4")) for name in ("nofight", "fight")}
        passages = [clips["fight"][i : i + 3] for i in (0, 8, 16)]
        cases.append(Case(f"fights_{split}", run, clips["nofight"], passages, "fight", 480, (640, 360)))
    return cases


def measure(case: Case) -> pd.DataFrame:
    """Makes the video, predicts it, draws its timeline; one row per passage, and one for what was found elsewhere."""
    video, output = SCRATCH / f"{case.name}.mp4", SCRATCH / f"{case.name}_predicted"
    shutil.rmtree(output, ignore_errors=True)
    shown = make(case, video)
    call("predict.py", f"run={case.run}", f"input={video}", f"output={output}")
    segments = pd.read_csv(output / "segments.csv")
    segments = segments[segments["class"] == case.harmful]
    found = list(zip(segments["start_seconds"], segments["end_seconds"], strict=True))
    timeline = pd.read_parquet(output / "timelines.parquet")
    stride = float(timeline["start_seconds"].diff().median())
    title = f"{case.name}: probability of {case.harmful}, windows each {stride:.2f} s"
    draw_timeline(timeline, case.harmful, shown, found, title, HERE / f"{case.name}.png")
    middles = (timeline["start_seconds"] + timeline["end_seconds"]) / 2
    rows = []
    for start, end in shown:
        hits = [one for one in found if one[0] < end and one[1] > start]
        row: dict[str, object] = {"video": case.name, "start": start, "end": end, "found": bool(hits)}
        if hits:
            windows = timeline[(middles > hits[0][0]) & (middles < hits[-1][1])]
            row |= {"segment_start_error": hits[0][0] - start, "segment_end_error": hits[-1][1] - end}
            row["first_window_error"] = windows["start_seconds"].iloc[0] - start
            row["last_window_error"] = windows["end_seconds"].iloc[-1] - end
        rows.append(row | {"segments": len(hits)})
    false = [one for one in found if not any(one[0] < end and one[1] > start for start, end in shown)]
    seconds = sum(end - start for start, end in false)
    rows.append(
        {"video": case.name, "found": f"elsewhere: {len(false)} segments, {seconds:.0f} s", "segments": len(false)}
    )
    return pd.DataFrame(rows).assign(stride=stride)


def draw_timeline(
    timeline: pd.DataFrame, name: str, truth: list[Span], detected: list[Span], title: str, path: Path
) -> None:
    """The probability of one class, each window a step around its middle; truth shaded, detected segments on top."""
    figure = new_figure(3.4, title)
    axes, starts, ends = figure.subplots(), timeline["start_seconds"], timeline["end_seconds"]
    for number, (start, end) in enumerate(truth):
        axes.axvspan(start, end, color=VERMILION, alpha=0.3, linewidth=0, label=None if number else "truth")
    axes.step((starts + ends) / 2, timeline[name], where="mid", color=BLUE, linewidth=1.2, label="probability")
    for number, span in enumerate(detected):
        label = None if number else "detected"
        axes.plot(span, [1.06, 1.06], color=INK, linewidth=5, solid_capstyle="butt", label=label)
    axes.set(xlabel="minutes:seconds", xlim=(0, float(ends.max())), ylim=(-0.03, 1.12), ylabel="probability")
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{int(seconds // 60)}:{int(seconds % 60):02}")
    axes.legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.16))
    soften(axes)
    save_figure(figure, path)


def make(case: Case, video: Path) -> list[Span]:
    """Joins the clips; the passages start at a quarter, a half and three quarters of the video. Gives their times."""
    parts: list[tuple[Path, int | None]] = []
    background = itertools.cycle(case.background)
    length = case.seconds / (len(case.passages) + 1) / 2  # in clips of about two seconds
    for number, passage in enumerate(case.passages):
        parts += [(next(background), None) for _ in range(round(length))]
        parts += [(clip, number) for clip in passage]
    parts += [(next(background), None) for _ in range(round(length))]
    spans = join([clip for clip, _ in parts], video, *case.size)
    shown = []
    for number in range(len(case.passages)):
        of_it = [span for span, (_, which) in zip(spans, parts, strict=True) if which == number]
        shown.append((of_it[0][0], of_it[-1][1]))
    return shown


def main() -> None:
    """Runs all and writes passages.csv and the figures."""
    data = real_clips()
    cases = [demo(), *(fights(data) if data else [])]
    table = pd.concat([measure(case) for case in cases], ignore_index=True).round(2)
    table.to_csv(HERE / "passages.csv", index=False)
    print(machine(), table.to_string(index=False), sep="\n")


if __name__ == "__main__":
    main()
