"""Ingest with two workers, from nothing, beside a bare single-process decord loop on the same files; for bench.py.

Prints JSON. Everything is imported late, as in train.py: decoding processes import the script again.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROUNDS = 3
FRAMES, SIZE = 20, 64


def main() -> None:
    """Argument: the folder of videos."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import decord

    from vidcls.data.ingest import ingest
    from vidcls.data.options import DataOptions, DecodeLimits
    from vidcls.data.sampling import StoreSpec, frame_indices
    from vidcls.data.sources import list_videos
    from vidcls.data.store import FrameStore

    def bare(file: str, threads: int) -> None:
        reader = decord.VideoReader(file, width=SIZE, height=SIZE, num_threads=threads)
        shown = reader.get_frame_timestamp(range(len(reader))).astype(float)
        reader.get_batch(frame_indices(shown[:, 0], shown[-1, 1], FRAMES, "uniform"))

    ours: list[float] = []
    theirs: dict[int, list[float]] = {1: [], 0: []}  # 0: decord chooses its threads
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = list_videos(DataOptions(sys.argv[1], cache_dir=name), classes=None).videos
        for number in range(ROUNDS):
            store = FrameStore(folder / f"store{number}", StoreSpec(FRAMES, SIZE))
            _, stats = ingest(videos, store, DecodeLimits(workers=2), folder / f"hashes{number}.sqlite")
            ours.append(stats.seconds)
            for threads, seconds in theirs.items():
                started = time.perf_counter()
                for file in videos["file"]:
                    bare(file, threads)
                seconds.append(time.perf_counter() - started)
    result = {
        "videos": len(videos),
        "ingest_seconds": [round(s, 2) for s in ours],
        "bare_seconds_one_thread": [round(s, 2) for s in theirs[1]],
        "bare_seconds_decord_threads": [round(s, 2) for s in theirs[0]],
        "ratio": round(median(b / o for b, o in zip(theirs[1], ours, strict=True)), 2),
        "ratio_to_decord_threads": round(median(b / o for b, o in zip(theirs[0], ours, strict=True)), 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
