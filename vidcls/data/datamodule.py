"""The videos of a run as a LightningDataModule."""

from __future__ import annotations

import time
from pathlib import Path

import lightning as L
from rich.console import Console
from torch.utils.data import DataLoader

from vidcls.data.dataset import FeatureBatch, VideoBatch
from vidcls.data.ingest import MANIFEST_COLUMNS, IngestStats, read_manifest
from vidcls.data.options import DataOptions
from vidcls.data.preparation import PreparedVideos, prepare_videos
from vidcls.data.videos import Videos
from vidcls.errors import UserError
from vidcls.files import csv_bytes, write_atomically

Loader = DataLoader[VideoBatch | FeatureBatch]


class VideoDataModule(Videos, L.LightningDataModule):
    """Prepares videos once, on the first process, and serves them on every process.

    Args:
        options: where the videos are and how they are read.
        manifest_path: where the first process writes the manifest and the others read it; None: one process only.
            If the file exists, its videos and splits are used.
        prepared: videos that are prepared already.
        wait_seconds: how long the other processes wait for the manifest.

    Example::

        datamodule = VideoDataModule(DataOptions("clips", cache_dir="cache"))
        trainer.fit(model, datamodule=datamodule)
    """

    def __init__(
        self,
        options: DataOptions,
        manifest_path: str | Path | None = None,
        prepared: PreparedVideos | None = None,
        wait_seconds: float = 3600.0,
    ) -> None:
        super().__init__(options)
        self.manifest_path = None if manifest_path is None else Path(manifest_path)
        self.wait_seconds = wait_seconds
        self.stats = IngestStats()
        if prepared is not None:
            self._take(prepared)

    def prepare_data(self) -> None:
        """Lists, decodes and splits the videos, and writes the manifest; called by Lightning on the first process only.

        Raises:
            UserError: see `vidcls.data.preparation.prepare_videos`.
        """
        if not self.classes:
            self._take(prepare_videos(self.options, Console(), self.manifest_path))

    def _take(self, prepared: PreparedVideos) -> None:
        self.load_manifest(prepared.manifest)
        self.stats = prepared.stats
        if self.manifest_path is not None and not self.manifest_path.exists():
            write_atomically(self.manifest_path, csv_bytes(self.manifest[MANIFEST_COLUMNS]))

    def setup(self, stage: str | None = None) -> None:
        """Reads the manifest on the processes that did not write it; called by Lightning on every process.

        Raises:
            UserError: it does not appear within ``wait_seconds``.
        """
        if self.classes:
            return
        assert self.manifest_path is not None, "prepare_data comes first"
        deadline = time.monotonic() + self.wait_seconds
        while not self.manifest_path.exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"the first process to write {self.manifest_path} within {self.wait_seconds:g} s",
                    "no such file",
                    "See what the first process prints: it lists and decodes the videos, or has failed.",
                    "manifest-timeout",
                )
            time.sleep(0.2)
        self.load_manifest(read_manifest(self.manifest_path))

    def rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> Loader:
        return self.loader("train", train=True)

    def val_dataloader(self) -> Loader:
        return self.loader("val")

    def test_dataloader(self) -> Loader:
        return self.loader("test")

    def predict_dataloader(self) -> Loader:
        return self.loader("test")
