"""Features of videos on disk: one safetensors file per video, beside the frames they were computed from."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch.utils.data import Dataset

from vidcls.data.dataset import Draw, FeatureBatch, VideoDataset, drawn_clip
from vidcls.data.store import BrokenEntryError
from vidcls.files import write_atomically


class FeatureStore:
    """What one frozen encoder says of videos, addressed by their content.

    Any number of runs and processes may share it.

    Args:
        folder: of this encoder and these settings alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        """Where the features of the video with this content lie, or would lie."""
        return self.folder / sha256[:2] / f"{sha256}.safetensors"

    def write(self, sha256: str, features: Float[np.ndarray, "*features"]) -> None:
        """Stores a video's features, atomically.

        Raises:
            UserError: the disk is full; nothing is left behind.
        """
        features = np.ascontiguousarray(features)
        content = save({"features": features}, {"checksum": str(zlib.crc32(features.data))})
        write_atomically(self.path(sha256), content)

    def read(self, sha256: str) -> Float[np.ndarray, "*features"]:
        """The features of a stored video.

        Raises:
            BrokenEntryError: they are missing, truncated or altered.
        """
        path = self.path(sha256)
        try:
            with safe_open(path, "numpy") as file:
                features, checksum = file.get_tensor("features"), int(file.metadata()["checksum"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BrokenEntryError(f"{path.name}: {error}") from error
        if zlib.crc32(features.data) != checksum:
            raise BrokenEntryError(f"{path.name} does not match its checksum")
        return features

    def holds(self, sha256: str) -> bool:
        """Whether the features of a video are stored, and whole."""
        try:
            self.read(sha256)
        except BrokenEntryError:
            return False
        return True


class FeatureDataset(Dataset[FeatureBatch]):
    """The videos of one split by their features.

    Args:
        videos: the split, which gives one clip of each video or all, as its own items would be.
        store: holds the features of each of them; of M > 1 clips those of all, [M, *features].
    """

    def __init__(self, videos: VideoDataset, store: FeatureStore) -> None:
        self.videos = videos
        self.store = store

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, draw: Draw) -> FeatureBatch:
        features, count = self.store.read(self.videos.sha256s[draw.row]), self.videos.store.clips.count
        if count > 1 and not self.videos.every_clip:
            features = features[drawn_clip(np.random.default_rng(draw.seed), count)]
        return FeatureBatch(
            torch.from_numpy(features), torch.tensor(self.videos.labels[draw.row]), torch.tensor(draw.row)
        )
