"""What a clip costs, in seconds of CPU, at each step of a prediction, and what that makes of a day's clips.

    PYTHONPATH=. python experiments/scale/costs.py RUN --videos 200

RUN is a run folder. Time is that of the process on all cores, not of the clock: a busy machine counts less. The last
lines are reckoned from it, not measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.tools import machine, needed_clips
from vidcls.data.decoding.plan import Window
from vidcls.data.decoding.result import DECODERS, DecodeResult
from vidcls.data.decoding.windows import stream_windows
from vidcls.data.file_hashes import hash_files
from vidcls.data.options import FetchLimits
from vidcls.data.remote import fetch
from vidcls.prediction.journal import Journal
from vidcls.prediction.loading import load_run
from vidcls.prediction.options import PredictOptions
from vidcls.prediction.peaks import Peaks
from vidcls.prediction.result_files import write_result_files
from vidcls.prediction.video_result import build_result

HERE = Path(__file__).parent
DAY = 86_400
LINK_BYTES = 1.25e9  # per second: 10 Gbit/s


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--videos", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run, files = load_run(arguments.run, ()), sorted(needed_clips().rglob("*.mp4"))[: arguments.videos]
    options = PredictOptions().complete(run.spec.clip.clip_seconds, run.manifest)
    plan, predictor, batch_size = options.plan(run.spec.store), run.make_predictor("cpu"), run.spec.batch_size
    seconds: dict[str, float] = {}

    @contextmanager
    def measured(step: str) -> Iterator[None]:
        started = time.process_time()
        yield
        seconds[step] = (time.process_time() - started) / len(files)

    def read(file: Path) -> tuple[list[Window], DecodeResult]:
        stream = stream_windows(file, plan, DECODERS)
        windows = list(stream)
        assert stream.result is not None
        return windows, stream.result

    def each(step: str, function: Callable[..., Any], *columns: Any) -> list[Any]:
        function(*(column[0] for column in columns))  # what only the first one pays
        with measured(step):
            return [function(*row) for row in zip(*columns, strict=True)]

    with tempfile.TemporaryDirectory() as folder:
        each("fetch", lambda file: fetch(file.as_uri(), Path(folder), FetchLimits()).remove(), files)
        with measured("hash"):
            hashes = hash_files(files, None)
        decoded = each("decode", read, files)
        windows = [window for found, _ in decoded for window in found]
        batches = [windows[first : first + batch_size] for first in range(0, len(windows), batch_size)]
        found = each("network", lambda batch: predictor([window.frames for window in batch]), batches)
        probabilities = iter([row for batch in found for row in batch])
        describe = partial(build_result, model=run.identity, classes=run.classes, policy=None, options=options)

        def write(video: tuple[list[Window], DecodeResult], sha256: str) -> None:
            peaks, timed = Peaks(run.classes, options.exit_threshold), []
            for window, row in zip(video[0], rows[sha256], strict=True):
                peaks.add(window, row)
                timed.append((window.start_seconds, window.end_seconds, row))
            journal.write({sha256: ""}, sha256, *describe(video[1], timed, peaks))

        rows = {
            hashed.sha256: [next(probabilities) for _ in video[0]]
            for hashed, video in zip(hashes, decoded, strict=True)
        }
        journal = Journal(Path(folder, "out"), {})
        each("write", write, decoded, [hashed.sha256 for hashed in hashes])
        with measured("files"):
            write_result_files(journal, run.classes)
        journal_bytes = sum(file.stat().st_size for file in Path(folder, "out").glob("journal.sqlite*")) / len(files)
        journal.close()
    result: dict[str, Any] = {
        "machine": machine(),
        "videos": len(files),
        "windows": len(windows),
        "batch_size": batch_size,
        "network": str(run.spec.model.get("_target_", "")),
        "cpu_seconds_per_video": {step: round(value, 6) for step, value in seconds.items()},
        "bytes_per_video": {
            "file": sum(file.stat().st_size for file in files) // len(files),
            "sent to the network": windows[0].frames.nbytes * len(windows) // len(files),
            "journal": round(journal_bytes),
        },
    }
    result["reckoned"] = {f"{clips:,} a day": reckon(clips, result) for clips in (100_000, 10_000_000)}
    text = json.dumps(result, indent=2)
    print(text)
    (HERE / "costs.json").write_text(text + "\n")


def reckon(clips: int, result: dict[str, Any]) -> dict[str, float]:
    """Cores and shares of one machine that a number of clips per day keeps busy on average."""
    cpu, size = result["cpu_seconds_per_video"], result["bytes_per_video"]
    rate = clips / DAY
    return {
        "clips per second": round(rate, 2),
        "cores that fetch, hash and decode": round(rate * (cpu["fetch"] + cpu["decode"]), 2),
        "cores that run the network": round(rate * cpu["network"], 2),
        "share of predict.py's one core": round(rate * (cpu["write"] + cpu["files"]), 4),
        "share of a 10 Gbit/s link": round(rate * (size["file"] + size["sent to the network"]) / LINK_BYTES, 4),
        "GB of journal": round(clips * size["journal"] / 1e9, 2),
    }


if __name__ == "__main__":
    main()
