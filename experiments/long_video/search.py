"""What does a coarse search of long videos find, and for how much? Short passages in minutes of something else.

Run it with ``python experiments/long_video/search.py``; see README.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.long_video.long_video import SCRATCH, Span, call, train
from experiments.tools import join, needed_clips
from vidcls.data.decoding.result import DecodeResult
from vidcls.moderation.policy import load_policy
from vidcls.prediction.coarse_search import CoarseSearch
from vidcls.prediction.loading import load_run
from vidcls.prediction.options import PredictOptions

VIDEOS, PASSAGES, SECONDS, WINDOW, STRIDE = 6, 4, 240.0, 2.0, 1.0
WINDOWS = [f"predict.window_seconds={WINDOW:g}", f"predict.stride_seconds={STRIDE:g}", "predict.max_whole_seconds=5"]
FOUND = 0.5  # the probability that finds a passage, where at least a second of it is in the window
STRIDES, THRESHOLDS = (5, 10, 20), (0.05, 0.1, 0.2, 0.4)
DECODED = DecodeResult("ok", "", "pyav", SECONDS, 1.0)


def make(clips: Path, target: Path, seed: int) -> list[Span]:
    """A video of shuffled clips without fights and, at random times, pairs of clips with one; gives when they are."""
    draw = np.random.default_rng(seed)
    calm, fights = (sorted((clips / "val" / name).glob("*.mp4")) for name in ("nofight", "fight"))
    order: list[Path] = []
    while len(order) < SECONDS / 2:  # clips take 2 s, or a little less
        order += [calm[n] for n in draw.permutation(len(calm))]
    places = np.sort(draw.choice(len(order) // 4, PASSAGES, replace=False)) * 4  # never next to each other
    for place in places[::-1]:
        order[place:place] = [fights[n] for n in draw.choice(len(fights), 2, replace=False)]
    spans = join(order, target, 320, 240)
    starts = places + 2 * np.arange(PASSAGES)
    return [(spans[n][0], spans[n + 1][1]) for n in starts]


def found(timeline: pd.DataFrame, passages: Sequence[Span]) -> int:
    """How many passages have a window that finds them."""
    hits = timeline[timeline["fight"] >= FOUND]
    begins, ends = hits["start_seconds"], hits["end_seconds"]
    inside = [np.minimum(ends, end) - np.maximum(begins, begin) for begin, end in passages]
    return sum(bool((overlap >= 1).any()) for overlap in inside)


def simulate(timeline: pd.DataFrame, search: CoarseSearch) -> pd.DataFrame:
    """The windows that a coarse search classifies, of those of a full one."""
    step = int(float(search.options.coarse_stride_seconds or 0) / STRIDE)
    first = np.append(np.arange(0, len(timeline) - 1, step), len(timeline) - 1)
    columns = [name for name in timeline if name not in ("path", "start_seconds", "end_seconds", "sha256")]
    rows = timeline.iloc[first]
    windows = [
        (row["start_seconds"], row["end_seconds"], row[columns].to_numpy(np.float32)) for _, row in rows.iterrows()
    ]
    chosen = np.isin(np.arange(len(timeline)), first)
    for begin, end in search.spans((DECODED, windows, None)) or ():
        chosen |= (timeline["start_seconds"] < end) & (timeline["end_seconds"] > begin)
    return timeline[chosen]


def main() -> None:
    """Trains, makes the videos, classifies all their windows, and counts what searches would have found."""
    clips = needed_clips()
    weights = clips.parent / "weights" / "tf_efficientnet_lite0.pth"
    given = ["experiment=fast", "refit=false", "data=folder", f"data.source={clips}"]
    run = train("fast", "nofight", *given, f"model.encoder.weights={weights}")
    passages = {f"{seed}.mp4": make(clips, SCRATCH / "search" / f"{seed}.mp4", seed) for seed in range(VIDEOS)}
    seconds = {}
    for name, more in (("full", []), ("coarse", ["predict.search=coarse"])):
        started = time.perf_counter()
        output = SCRATCH / f"search_{name}"
        call("predict.py", f"run={run}", f"input={SCRATCH / 'search'}", f"output={output}", *WINDOWS, *more)
        seconds[name] = time.perf_counter() - started
    timelines = dict(list(pd.read_parquet(SCRATCH / "search_full" / "timelines.parquet").groupby("path")))
    loaded = load_run(run)
    policy = load_policy(run / "policy.json", loaded.classes, loaded.identity)
    options = PredictOptions(search="coarse", window_seconds=WINDOW, stride_seconds=STRIDE)
    rows = []
    for stride in STRIDES:
        for threshold in THRESHOLDS:
            search = CoarseSearch(replace(options, coarse_stride_seconds=stride, coarse_threshold=threshold), policy)
            seen = {name: simulate(timeline, search) for name, timeline in timelines.items()}
            rows.append(
                {
                    "coarse_stride_seconds": stride,
                    "coarse_threshold": threshold,
                    "windows": sum(map(len, seen.values())) / sum(map(len, timelines.values())),
                    "found": sum(found(seen[name], passages[name]) for name in seen),
                    "found_by_full": sum(found(timelines[name], passages[name]) for name in seen),
                    "passages": VIDEOS * PASSAGES,
                }
            )
    table = pd.DataFrame(rows).round(3)
    table.to_csv(Path(__file__).with_name("search.csv"), index=False)
    print(table.to_markdown(index=False))
    print({name: round(value, 1) for name, value in seconds.items()})


if __name__ == "__main__":
    main()
