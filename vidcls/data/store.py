"""Decoded frames and cached features on disk: one safetensors file per video, addressed by content.

Files are written atomically and have checksums. Any number of runs and processes may share one store.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vidcls.data.decoding.result import DecodeResult, Frames, decoder_versions
from vidcls.data.sampling import StoreSpec
from vidcls.errors import UserError
from vidcls.files import write_atomically

# Raised whenever decoding gives other frames for the same video and options, so that old entries are not found.
DECODE_VERSION = 8


def decoding_versions() -> dict[str, str | int]:
    """The versions of decoders and decoding: results on frames of other versions cannot be compared."""
    return decoder_versions() | {"version": DECODE_VERSION}


class StoreEntryError(UserError):
    """A store entry that is missing, truncated, altered or of another shape."""

    def __init__(self, problem: str) -> None:
        remedy = "Has the cache been cleared? Run the command again, or resume the run: what is missing is built again."
        super().__init__("an intact entry in the store", problem.strip().rpartition("\n")[2], remedy, "store-entry")

    def __reduce__(self) -> tuple[type[StoreEntryError], tuple[str]]:
        return type(self), (self.args[1],)


class _Store:
    """Entries of one folder, by the SHA-256 of a video's content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / f"{sha256}.safetensors"

    @contextmanager
    def _open(self, sha256: str) -> Iterator[Any]:
        path = self.path(sha256)
        try:
            with safe_open(path, "numpy") as file:
                yield file
        except (OSError, SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
            raise StoreEntryError(f"{path.name}: {error}") from error


class FrameStore(_Store):
    """Decoded videos of one `StoreSpec`, as uint8 stacks [M * F, R, R, 3], in a subfolder of ``root``."""

    def __init__(self, root: Path, spec: StoreSpec) -> None:
        self.spec = spec
        clips = "" if spec.clip_seconds is None else f"_{spec.num_clips}x{float(spec.clip_seconds)}s"
        address = f"{spec.sampling}_{spec.stored_frames}x{spec.stored_resolution}px{clips}_v{DECODE_VERSION}"
        versions = "_".join(f"{name}{version}" for name, version in decoder_versions().items())
        super().__init__(root / f"{address}_{versions}")

    def write(self, sha256: str, frames: Frames, result: DecodeResult) -> None:
        """Stores a decoded video; raises `UserError` if the disk is full."""
        text = json.dumps(asdict(result))
        checksums = np.array([zlib.crc32(part) for part in [*frames, text.encode()]], np.uint32)
        content = save({"frames": frames, "checksums": checksums}, {"reading": text})
        write_atomically(self.path(sha256), content)

    def find(self, sha256: str) -> DecodeResult | None:
        """The decode result of a stored video, all of which is checked; None if it is not stored, or is damaged."""
        try:
            self.read(sha256, np.arange(self.spec.frames_per_video))
            with self._open(sha256) as file:
                text = file.metadata()["reading"]
                if zlib.crc32(text.encode()) != file.get_tensor("checksums")[self.spec.frames_per_video]:
                    return None
                return DecodeResult(**json.loads(text))
        except StoreEntryError:
            return None

    def read(self, sha256: str, indices: Int[np.ndarray, " T"]) -> UInt8[np.ndarray, "T R R 3"]:
        """The frames ``indices`` of a stored video, from the memory-mapped file, checked.

        Raises:
            StoreEntryError: the entry is missing, truncated, altered or of another shape.
        """
        count, side = self.spec.frames_per_video, self.spec.stored_resolution
        with self._open(sha256) as file:
            frames, checksums = file.get_slice("frames"), file.get_tensor("checksums")
            if frames.get_shape() != [count, side, side, 3]:
                raise StoreEntryError(f"{sha256} has shape {frames.get_shape()}")
            if len(indices) == count and (np.diff(indices) == 1).all():
                stack = frames[:]  # one copy instead of T
            else:
                stack = np.stack([frames[int(i)] for i in indices])
        if any(zlib.crc32(frame) != checksums[i] for frame, i in zip(stack, indices, strict=True)):
            raise StoreEntryError(f"{sha256} does not match its checksums")
        return stack


class FeatureStore(_Store):
    """Features of videos from one frozen encoder, which has the folder to itself."""

    def write(self, sha256: str, features: Shaped[np.ndarray, "*features"]) -> None:
        """Stores a video's features; raises `UserError` if the disk is full."""
        features = np.ascontiguousarray(features)
        content = save({"features": features}, {"checksum": str(zlib.crc32(features.data))})
        write_atomically(self.path(sha256), content)

    def read(self, sha256: str) -> Shaped[np.ndarray, "*features"]:
        """The features of a stored video; raises `StoreEntryError` if they are missing or damaged."""
        with self._open(sha256) as file:
            features, checksum = file.get_tensor("features"), int(file.metadata()["checksum"])
        if zlib.crc32(features.data) != checksum:
            raise StoreEntryError(f"{sha256} does not match its checksum")
        return features

    def holds(self, sha256: str) -> bool:
        """Whether the features of a video are stored and undamaged."""
        try:
            self.read(sha256)
        except StoreEntryError:
            return False
        return True
