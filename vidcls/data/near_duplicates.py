"""Finds copies with other bytes: re-encoded, scaled, cropped a little, mirrored, trimmed, or with a logo.

A video has two 256-bit hashes of its stored frames: of its mean frame (the picture) and of the deviation of its pixels
over time (the motion). Copies agree in both; videos of one camera agree in the picture alone. The hash is PDQ, see
https://github.com/facebook/ThreatExchange/blob/main/hashing/hashing.pdf, whose own rule for videos (frames at a
distance of 31 or less) takes videos of one camera for copies: see experiments/review.
"""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8
from rich.progress import track

from vidcls.data.decoding.result import USABLE
from vidcls.data.splits import number_components
from vidcls.data.store import FeatureStore, FrameStore, StoreEntryError

HASH_VERSION = 1  # raised whenever the hash of the same frames changes
MAX_DISTANCE = 64  # of 256 bits, in the picture and in the motion; unrelated videos differ in about 128
STILL_DISTANCE = 31  # PDQ's own threshold, for videos without motion
MIN_QUALITY = 50  # PDQ's own: hashes of pictures with less detail are meaningless
NOISE_LEVEL = 4.0  # what compression adds, in grey levels
STILL_LEVEL = 8.0  # nothing moves in a video whose pixels deviate less over time
BLOCK = 1024  # videos compared with as many others at a time: at most 200 MB
_UNUSABLE, _STILL, _MOVING = range(3)

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_FREQUENCIES = np.arange(1, 17)  # without the mean
_COSINES = np.sqrt(2 / 64) * np.cos(np.pi / 128 * _FREQUENCIES[:, None] * (2 * np.arange(64) + 1))
_MIRROR = np.where(_FREQUENCIES % 2, -1, 1)  # odd cosines change their sign in a mirror


def pdq(luma: Float[np.ndarray, "H W"]) -> tuple[UInt8[np.ndarray, "2 32"], int]:
    """The PDQ hashes of a grey picture (0..255) and of its mirror image, and its quality, 0..100."""
    small = _shrink(_shrink(luma.astype(np.float64)).T).T
    steps = [np.abs(np.trunc(np.diff(small, axis=axis) * (100 / 255))).sum() for axis in (0, 1)]
    coefficients = _COSINES @ small @ _COSINES.T
    both = np.stack([coefficients, coefficients * _MIRROR]).reshape(2, 256)
    bits = both > np.partition(both, 127, axis=1)[:, 127:128]
    return np.packbits(bits, axis=1), min(int(sum(steps) // 90), 100)


def _shrink(picture: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H 64"]:
    """Shrinks rows to 64 pixels: two passes of PDQ's box filter, then the nearest pixels."""
    width = picture.shape[1]
    window = (width + 127) // 128
    ends = np.arange(width) + (window + 2) // 2
    left, right = np.maximum(ends - window, 0), np.minimum(ends, width)
    for _ in range(2 if window > 1 else 0):
        sums = np.pad(picture.cumsum(axis=1), ((0, 0), (1, 0)))
        picture = (sums[:, right] - sums[:, left]) / (right - left)
    return picture[:, ((np.arange(64) + 0.5) * width / 64).astype(int)]


def hash_frames(frames: UInt8[np.ndarray, "F H W 3"]) -> UInt8[np.ndarray, " 129"]:
    """The hashes of picture and motion, each also mirrored, and in the last byte whether they can be used."""
    luma = frames @ _LUMA
    deviation = luma.std(axis=0)
    picture, quality = pdq(luma.mean(axis=0))
    motion, _ = pdq(np.log1p(deviation / NOISE_LEVEL))
    kind = _UNUSABLE if quality < MIN_QUALITY else _STILL if deviation.max() < STILL_LEVEL else _MOVING
    return np.append(np.stack([picture, motion], axis=1).ravel(), np.uint8(kind))


def find_clusters(hashes: UInt8[np.ndarray, "N 129"]) -> Int[np.ndarray, " N"]:
    """The cluster of each video: connected components of near-duplicates. Memory does not grow with N²."""
    clusters, usable = np.arange(len(hashes)), np.flatnonzero(hashes[:, -1] != _UNUSABLE)
    blocks = [usable[start : start + BLOCK] for start in range(0, len(usable), BLOCK)]
    for index, first in enumerate(blocks):
        for second in blocks[index:]:
            for one, other in _near(hashes[first], hashes[second]):
                ends = clusters[first[one]], clusters[second[other]]
                if (ends[0] != ends[1]).any():
                    clusters = number_components(*ends, count=len(clusters))[clusters]
    return clusters


def _near(
    first: UInt8[np.ndarray, "A 129"], second: UInt8[np.ndarray, "B 129"]
) -> Iterator[tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]]:
    """The pairs of near-duplicates between two sets of videos: first as they are, then with one side mirrored."""
    mine, theirs = (side[:, :-1].reshape(-1, 2, 2, 32) for side in (first, second))
    signs = _signs(mine[:, 0, 0])
    for turn in (0, 1):
        distance = 128 - signs @ _signs(theirs[:, turn, 0]).T / 2
        one, other = np.nonzero(distance <= MAX_DISTANCE)
        moved = np.bitwise_count(mine[one, 0, 1] ^ theirs[other, turn, 1]).sum(axis=1) <= MAX_DISTANCE
        still = (first[one, -1] == _STILL) & (second[other, -1] == _STILL)
        near = np.where(still, distance[one, other] <= STILL_DISTANCE, moved)
        yield one[near], other[near]


def _signs(hashes: UInt8[np.ndarray, "A 32"]) -> Float[np.ndarray, "A 256"]:
    """Bits as -1 and 1: the dot product of two hashes is then 256 minus twice their Hamming distance."""
    return np.unpackbits(hashes, axis=1) * np.float32(2) - np.float32(1)


def hash_folder(store: FrameStore) -> Path:
    return store.folder.parents[1] / "near_duplicates" / f"{store.folder.name}_hash{HASH_VERSION}"


def hash_videos(sha256s: Sequence[str], store: FrameStore) -> UInt8[np.ndarray, "N 129"]:
    """The hashes of stored videos, cached on disk; a video that is not stored gets one that matches nothing."""
    kept, lost = FeatureStore(hash_folder(store)), list[str]()
    every = np.arange(store.spec.frames_per_video)

    def hashed(sha256: str) -> UInt8[np.ndarray, " 129"]:
        with suppress(StoreEntryError):
            return kept.read(sha256)
        try:
            found = hash_frames(store.read(sha256, every))
        except StoreEntryError:
            lost.append(sha256)
            return np.full(129, _UNUSABLE, np.uint8)
        with suppress(OSError):  # a cache that can only be read
            kept.write(sha256, found)
        return found

    with ThreadPoolExecutor() as pool:  # reading and checksums release the interpreter
        found = track(pool.map(hashed, sha256s), "Comparing", len(sha256s), transient=True, disable=len(sha256s) < 100)
        hashes = np.array(list(found), np.uint8).reshape(-1, 129)
    if lost:
        what = f"Near-duplicates of {len(lost)} of {len(sha256s)} videos"
        warnings.warn(f"{what} are not found, as their frames are not in {store.folder}", stacklevel=2)
    return hashes


def name_clusters(manifest: pd.DataFrame, store: FrameStore) -> list[str]:
    """The cluster of each row of a manifest, named after its first path; "" without near-duplicates.

    Videos with the same bytes count as one. Of one stored frame none are found, as it does not show motion.
    """
    if store.spec.frames_per_video == 1:
        what = "Near-duplicates are not looked for: in one stored frame, videos of one camera look like copies"
        warnings.warn(f"{what}. Give data.store.num_frames=2 or more.", stacklevel=2)
        return [""] * len(manifest)
    usable = manifest[manifest["status"].isin(USABLE)].drop_duplicates("sha256")
    clusters = find_clusters(hash_videos(list(usable["sha256"]), store))
    paths = usable.groupby(clusters)["path"]
    named = paths.transform("first").where(paths.transform("size") > 1, "")
    names = dict(zip(usable["sha256"], named, strict=True))
    return [names.get(sha256, "") for sha256 in manifest["sha256"]]
