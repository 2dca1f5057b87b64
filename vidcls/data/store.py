"""Decoded frames and cached features on disk: one safetensors file per video, addressed by content.

Files are written atomically and have checksums. Any number of runs and processes may share one store, whose entries may
be moved into packs (see `vidcls.data.packs`).
"""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from safetensors.numpy import save

from vidcls.data.decoding.result import DecodeResult, Frames, decoder_versions
from vidcls.data.packs import Packs
from vidcls.data.sampling import StoreSpec
from vidcls.errors import UserError
from vidcls.files import write_atomically
from vidcls.tensor_file import TENSOR_FILE_ERRORS, TensorFile

T = TypeVar("T")

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
        self.packs = Packs(folder)

    def path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / f"{sha256}.safetensors"

    def _read(self, sha256: str, read: Callable[[Any], T]) -> T:
        """What ``read`` gives for a video's entry, with the methods of `TensorFile`; it may raise `StoreEntryError`."""
        known = len(self.packs)
        for packed in self.packs.find(sha256):
            with suppress(*TENSOR_FILE_ERRORS):  # a damaged one is written again as a file of its own
                return read(packed)
        path = self.path(sha256)
        try:
            try:
                with path.open("rb") as file:
                    return read(TensorFile(file))
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                with path.open("rb") as file:  # by which another machine has replaced it
                    return read(TensorFile(file))
        except TENSOR_FILE_ERRORS as error:
            if isinstance(error, FileNotFoundError) and self.packs.refresh() > known:  # it may have been packed
                return self._read(sha256, read)
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
            return self._read(sha256, self._checked_result)
        except StoreEntryError:
            return None

    def _checked_result(self, entry: Any) -> DecodeResult:
        self._checked_frames(entry, np.arange(self.spec.frames_per_video))
        text = entry.metadata()["reading"]
        if zlib.crc32(text.encode()) != entry.get_tensor("checksums")[self.spec.frames_per_video]:
            raise ValueError("its decode result does not match its checksum")
        return DecodeResult(**json.loads(text))

    def read(self, sha256: str, indices: Int[np.ndarray, " T"]) -> UInt8[np.ndarray, "T R R 3"]:
        """The frames ``indices`` of a stored video, of which only those are read, checked.

        Raises:
            StoreEntryError: the entry is missing, truncated, altered or of another shape.
        """
        return self._read(sha256, partial(self._checked_frames, indices=indices))

    def _checked_frames(self, entry: Any, indices: Int[np.ndarray, " T"]) -> UInt8[np.ndarray, "T R R 3"]:
        count, side = self.spec.frames_per_video, self.spec.stored_resolution
        checksums = entry.get_tensor("checksums")
        if len(indices) == count and (np.diff(indices) == 1).all():
            stack = entry.get_tensor("frames")  # one read instead of T
        else:
            stack = entry.get_rows("frames", indices)
        if len(checksums) != count + 1 or stack.shape != (len(indices), side, side, 3):
            raise ValueError(f"{len(checksums) - 1} frames of shape {list(stack.shape[1:])}")
        if any(zlib.crc32(frame) != checksums[i] for frame, i in zip(stack, indices, strict=True)):
            raise ValueError("its frames do not match their checksums")
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
        return self._read(sha256, _checked_features)

    def holds(self, sha256: str) -> bool:
        """Whether the features of a video are stored and undamaged."""
        try:
            self.read(sha256)
        except StoreEntryError:
            return False
        return True


def _checked_features(entry: Any) -> Shaped[np.ndarray, "*features"]:
    features: np.ndarray = entry.get_tensor("features")
    if zlib.crc32(features.data) != int(entry.metadata()["checksum"]):
        raise ValueError("its features do not match their checksum")
    return features
