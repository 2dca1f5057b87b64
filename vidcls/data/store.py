"""Decoded frames on disk: one safetensors file per video, addressed by content and decode settings.

A file holds the frames, a checksum of each, and what the decoder said. It appears under its name whole or not at all,
so a killed process leaves nothing that is trusted later; and what the disk altered afterwards fails its checksum.
Any number of runs and processes may share one store.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vidcls.data.decoding.frames import Frames, Reading
from vidcls.data.sampling import SAMPLINGS, WHOLE, Clips
from vidcls.errors import check_choice, check_integer
from vidcls.files import write_atomically

# Raised whenever decoding changes what it gives for the same video and settings: old entries are then not found.
DECODE_VERSION = 2


class BrokenEntryError(Exception):
    """A store entry that is truncated, altered or of another shape: build it again."""


class Store:
    """The decoded videos of one choice of decode settings, as uint8 stacks [F, R, R, 3], or [M F, R, R, 3] of M clips.

    Args:
        root: the folder that all settings share.
        num_frames: F, frames kept per clip.
        resolution: R, in pixels.
        sampling: how the frames are chosen, see `vidcls.data.sampling.frame_indices`.
        clips: what stands for a video.
    """

    def __init__(self, root: Path, num_frames: int, resolution: int, sampling: str, clips: Clips = WHOLE) -> None:
        self.num_frames = check_integer("data.num_frames", num_frames)
        self.resolution = check_integer("data.resolution", resolution)
        self.sampling = check_choice("data.sampling", sampling, SAMPLINGS)
        self.clips = clips
        of = "" if clips.seconds is None else f"_{clips.count}x{float(clips.seconds)}s"
        self.folder = root / f"{sampling}_{num_frames}x{resolution}px{of}_v{DECODE_VERSION}"

    @property
    def frames_per_video(self) -> int:
        """M F."""
        return self.clips.count * self.num_frames

    def path(self, sha256: str) -> Path:
        """Where the entry of the video with this content lies, or would lie."""
        return self.folder / sha256[:2] / f"{sha256}.safetensors"

    def write(self, sha256: str, frames: Frames, reading: Reading) -> None:
        """Stores a decoded video, atomically.

        Raises:
            UserError: the disk is full; nothing is left behind.
        """
        text = json.dumps(asdict(reading))
        checksums = np.array([zlib.crc32(part) for part in [*frames, text.encode()]], np.uint32)
        content = save({"frames": frames, "checksums": checksums}, {"reading": text})
        write_atomically(self.path(sha256), content)

    def find(self, sha256: str) -> Reading | None:
        """What is known of a stored video, checked to the last byte; None where it is not stored or broken."""
        try:
            self.read(sha256, np.arange(self.frames_per_video))
            with safe_open(self.path(sha256), "numpy") as file:
                text = file.metadata()["reading"]
                if zlib.crc32(text.encode()) != file.get_tensor("checksums")[self.frames_per_video]:
                    return None
                return Reading(**json.loads(text))
        except (BrokenEntryError, KeyError, IndexError, TypeError, ValueError):
            return None

    def read(self, sha256: str, indices: Int[np.ndarray, " T"]) -> UInt8[np.ndarray, "T R R 3"]:
        """The frames ``indices`` of a stored video, read from the memory-mapped file and checked.

        Raises:
            BrokenEntryError: the entry is missing, truncated, altered or of another shape.
        """
        path = self.path(sha256)
        try:
            with safe_open(path, "numpy") as file:
                frames, checksums = file.get_slice("frames"), file.get_tensor("checksums")
                if frames.get_shape() != [self.frames_per_video, self.resolution, self.resolution, 3]:
                    raise BrokenEntryError(f"{path.name} has shape {frames.get_shape()}")
                if len(indices) == self.frames_per_video and (np.diff(indices) == 1).all():
                    stack = frames[:]  # one copy instead of T
                else:
                    stack = np.stack([frames[int(i)] for i in indices])
        except (OSError, SafetensorError) as error:
            raise BrokenEntryError(f"{path.name}: {error}") from error
        if any(zlib.crc32(frame) != checksums[i] for frame, i in zip(stack, indices, strict=True)):
            raise BrokenEntryError(f"{path.name} does not match its checksums")
        return stack
