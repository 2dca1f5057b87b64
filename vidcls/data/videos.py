"""The videos of a run, from its manifest and its store: rows, datasets and loaders of each split."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch.utils.data import DataLoader

from vidcls.data.dataset import FeatureBatch, FeatureDataset, VideoBatch, VideoDataset, VideoSampler
from vidcls.data.manifest import MANIFEST_COLUMNS, count_training_videos, usable_rows
from vidcls.data.options import DataOptions, class_order
from vidcls.data.preparation import frame_store
from vidcls.data.store import FeatureStore


class Videos:
    """Serves stored videos.

    Attributes:
        manifest: one row per video, see `vidcls.data.manifest`; empty until `load_manifest`.
        classes: the K names, in the order of the probabilities.
        features: of a frozen encoder, which loaders then serve instead of frames.
        first_epoch: with which training goes on: loaders may fetch ahead before Lightning tells them the epoch.
    """

    def __init__(self, options: DataOptions) -> None:
        super().__init__()
        self.options = options
        self.store = frame_store(options)
        self.manifest = pd.DataFrame(columns=MANIFEST_COLUMNS)
        self.classes: list[str] = []
        self.features: FeatureStore | None = None
        self.first_epoch = 0

    def load_manifest(self, manifest: pd.DataFrame) -> None:
        self.manifest = manifest
        self.classes = class_order(list(manifest["label"]), self.options.classes)

    def rows(self, split: str) -> pd.DataFrame:
        """The manifest's usable rows of one split, in the order of the split's dataset."""
        return usable_rows(self.manifest, split)

    def dataset(self, split: str, *, train: bool = False) -> VideoDataset:
        """The videos of one split: with jitter and one random clip each for training, else all clips."""
        rows, options = self.rows(split), self.options
        labels = [self.classes.index(label) for label in rows["label"]]
        jitter = options.temporal_jitter and train
        return VideoDataset(self.store, list(rows["sha256"]), labels, options.num_frames, jitter, all_clips=not train)

    def rank_and_world_size(self) -> tuple[int, int]:
        return 0, 1

    def loader(self, split: str, *, train: bool = False) -> DataLoader[VideoBatch | FeatureBatch]:
        """Batches: shuffled and jittered for training, else in order, each video once over all ranks."""
        rank, world_size = self.rank_and_world_size()
        videos, options = self.dataset(split, train=train), self.options
        return DataLoader(
            videos if self.features is None else FeatureDataset(videos, self.features),
            batch_size=options.batch_size,
            sampler=VideoSampler(
                length=len(videos),
                shuffle=train,
                seed=options.seed,
                rank=rank,
                world_size=world_size,
                balance=videos.labels if train and options.sampler == "balanced" else None,
                epoch=self.first_epoch,
            ),
            num_workers=options.num_workers,
            pin_memory=options.pin_memory,
            persistent_workers=options.num_workers > 0,
            # Its own: creating a loader draws from the global one, and a resumed run creates it at another time.
            generator=torch.Generator(),
        )

    def balanced_class_weights(self, splits: Sequence[str]) -> list[float]:
        """N / (K n_k) for each class k of the ``splits`` that are trained on, so that each class weighs the same.

        Raises:
            UserError: a class has no training videos.
        """
        counts = count_training_videos(self.manifest, self.classes, "loss.class_weights", splits)
        return [sum(counts) / (len(counts) * count) for count in counts]
