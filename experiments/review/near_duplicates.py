"""Copies of real clips made by ffmpeg: how many are found, how many other clips are taken for copies, at what cost.

python experiments/review/near_duplicates.py CACHE_DIR        near_duplicates.csv, near_duplicates_false.csv
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pandas as pd
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.review.clips import HERE, camera_weights, with_interval
from experiments.tools import machine, needed_clips
from vidcls.data.near_duplicates import find_clusters, hash_videos, pdq
from vidcls.data.options import DataOptions
from vidcls.data.preparation import frame_store, pool_videos
from vidcls.data.store import FrameStore

ORIGINALS, PER_CAMERA, SEED = 40, 2, 1  # the thresholds were chosen on the copies of other originals
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
SPECS = {"20 frames of 64 px": (20, 64), "8 frames of 112 px": (8, 112)}
LOGO = "drawbox=x=iw*0.78:y=ih*0.05:w=iw*0.17:h=ih*0.12:color=yellow:t=fill"
KINDS = {  # what goes before and behind the input
    "encoded again, crf 23": ([], ["-crf", "23"]),
    "crf 35": ([], ["-crf", "35"]),
    "crf 45": ([], ["-crf", "45"]),
    "scaled to a half": ([], ["-vf", "scale=trunc(iw/4)*2:trunc(ih/4)*2"]),
    "cropped by 5 %": ([], ["-vf", "crop=trunc(iw*0.475)*2:trunc(ih*0.475)*2"]),
    "logo": ([], ["-vf", LOGO]),
    "mirrored": ([], ["-vf", "hflip"]),
    "first second cut off": (["-ss", "1"], []),
    "first half second cut off": (["-ss", "0.5"], []),
    "12 frames a second": ([], ["-r", "12"]),
    "cropped by 10 %": ([], ["-vf", "crop=trunc(iw*0.45)*2:trunc(ih*0.45)*2"]),
    "cropped by 5 %, mirrored, logo, crf 35": (
        [],
        ["-vf", f"crop=trunc(iw*0.475)*2:trunc(ih*0.475)*2,hflip,{LOGO}", "-crf", "35"],
    ),
}


def main(cache: Path) -> None:
    """Cost first, as the peak of memory is that of the process."""
    print(machine(), cost(60_000), sep="\n")
    clips, folder = needed_clips(), cache / "near_duplicates"
    originals = choose(sorted(clips.rglob("*.mp4")))
    for kind, place in zip(KINDS, range(len(KINDS)), strict=True):
        for clip in originals:
            encode(clip, kind, folder / f"kind{place:02}" / clip.name)
    found, mistaken = [], []
    for name, (frames, pixels) in SPECS.items():
        given = (
            DataOptions(str(source), str(cache), num_frames=frames, resolution=pixels) for source in (clips, folder)
        )
        options = list(given)
        real, copies = (pool_videos(one, ("train", "val"), Console())[0] for one in options)
        here = compare(real, copies, frame_store(options[0]))
        found += [{"stored": name, **row} for row in here[0]]
        mistaken += [{"stored": name, **row} for row in here[1]]
    for rows, file in ((found, "near_duplicates.csv"), (mistaken, "near_duplicates_false.csv")):
        table = pd.DataFrame(rows)
        table.to_csv(HERE / file, index=False)
        print(table.to_string(index=False))


def cost(count: int) -> str:
    """Time and memory for the hashes of unrelated videos."""
    hashes = np.random.default_rng(SEED).integers(0, 256, (count, 129), np.uint8)
    hashes[:, -1] = 2
    before, started, cpu = peak(), time.monotonic(), time.process_time()
    find_clusters(hashes)
    spent = f"{time.monotonic() - started:.0f} s ({time.process_time() - cpu:.0f} s of CPU)"
    return f"{count} videos: {spent}, {peak() - before:.0f} MB beyond the {before:.0f} MB of before"


def peak() -> float:
    """The largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def choose(clips: list[Path]) -> list[Path]:
    """Originals, drawn at random, at most two of a camera."""
    chosen: list[Path] = []
    for place in np.random.default_rng(SEED).permutation(len(clips)):
        same = sum(camera(clips[place]) == camera(one) for one in chosen)
        if same < PER_CAMERA and len(chosen) < ORIGINALS:
            chosen.append(clips[place])
    return chosen


def camera(clip: Path | str) -> str:
    """<camera>_<number>.mp4 is the name of a clip."""
    return Path(clip).name.partition("_")[0]


def encode(clip: Path, kind: str, copy: Path) -> None:
    """Makes a copy, unless it is there."""
    if not copy.exists():
        before, behind = KINDS[kind]
        copy.parent.mkdir(parents=True, exist_ok=True)
        ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *before, "-i", str(clip), *behind]
        codec = ["-an", "-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p"]
        subprocess.run([*ffmpeg, *codec, str(copy)], check=True)


def compare(real: pd.DataFrame, copies: pd.DataFrame, store: FrameStore) -> tuple[list[dict], list[dict]]:
    """Recall per rule and kind; pairs of different real clips that each rule takes for copies."""
    names, cameras = [Path(path).name for path in real["path"]], np.array([camera(path) for path in real["path"]])
    original = [names.index(Path(path).name) for path in copies["path"]]
    kinds = np.array([list(KINDS)[int(path[4:6])] for path in copies["path"]])
    of_real, of_copies = hash_videos(list(real["sha256"]), store), hash_videos(list(copies["sha256"]), store)
    near = dict(zip(("between", "among"), (distances(of_copies, of_real), distances(of_real, of_real)), strict=True))
    frames = {key: frame_hashes(list(rows["sha256"]), store) for key, rows in (("real", real), ("copies", copies))}
    shares = {"between": matches(frames["copies"], frames["real"]), "among": matches(frames["real"], frames["real"])}
    rules: dict[str, dict[str, np.ndarray]] = {
        f"picture and motion <= {limit}": {
            key: np.any(np.all(one <= limit, axis=1), axis=0) for key, one in near.items()
        }
        for limit in (48, 56, 64, 72, 80)
    }
    rules["picture <= 64"] = {key: np.any(one[:, 0] <= 64, axis=0) for key, one in near.items()}
    rules["vPDQ: 80 % of frames <= 31"] = {key: share >= 0.8 for key, share in shares.items()}
    upper, same = np.triu_indices(len(real), 1), np.array([cameras == one for one in cameras])
    found, mistaken = [], []
    for rule, holds in rules.items():
        hit = holds["between"][np.arange(len(copies)), original]
        for kind in KINDS:
            mine = kinds == kind
            weights = camera_weights(cameras[np.array(original)[mine]])
            draws = weights @ hit[mine] / np.maximum(weights.sum(axis=1), 1)
            recall = with_interval(hit[mine].mean(), draws)
            found.append({"rule": rule, "kind": kind, "n": int(mine.sum()), "recall": recall})
        pairs = (holds["among"] | holds["among"].T)[upper]
        counts = {"same camera": (pairs & same[upper]).sum(), "of": same[upper].sum()}
        counts |= {"other cameras": (pairs & ~same[upper]).sum(), "of these": (~same[upper]).sum()}
        mistaken.append({"rule": rule, **counts})
    return found, mistaken


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[turn, side, A, B]: of the picture (side 0) and the motion, with the second as it is and mirrored."""
    one, other = (hashes[:, :-1].reshape(-1, 2, 2, 32) for hashes in (first, second))
    return np.array([[hamming(one[:, 0, side], other[:, turn, side]) for side in (0, 1)] for turn in (0, 1)])


def hamming(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The number of bits in which each hash differs from each other one."""
    signs = [np.unpackbits(side, axis=-1).astype(np.float32) * 2 - 1 for side in (one, other)]
    return 128 - signs[0] @ signs[1].T / 2


def frame_hashes(sha256s: list[str], store: FrameStore) -> np.ndarray:
    """[N, F, turn, 32], of each frame by itself."""
    every = np.arange(store.spec.frames_per_video)
    return np.array([[pdq(luma)[0] for luma in store.read(sha256, every) @ LUMA] for sha256 in sha256s])


def matches(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[A, B]: the share of the first's frames that are near one of the second's, as it is or mirrored."""
    shape = (len(first), first.shape[1], len(second), second.shape[1])
    flat = first[:, :, 0].reshape(-1, 32)
    shares = [
        (hamming(flat, second[:, :, turn].reshape(-1, 32)).reshape(shape).min(axis=3) <= 31).mean(axis=1)
        for turn in (0, 1)
    ]
    return np.maximum(*shares)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
