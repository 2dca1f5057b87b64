"""The videos of a run as a LightningDataModule."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from vidcls.data.dataset import FeatureBatch, FeatureDataset, VideoBatch, VideoDataset
from vidcls.data.device_cache import DeviceDataset, DeviceLoader, fits_on_device, stack_videos
from vidcls.data.ingest import IngestStats
from vidcls.data.manifest import read_manifest, write_manifest
from vidcls.data.options import DataOptions
from vidcls.data.preparation import PreparedVideos, prepare_videos
from vidcls.data.videos import Videos

Loader = DataLoader[VideoBatch | FeatureBatch]


class VideoDataModule(Videos, L.LightningDataModule):
    """Prepares videos once, on rank 0, and serves them on every rank.

    Args:
        options: where the videos are and how they are read.
        manifest_path: where rank 0 writes the manifest and the others read it; None for a single process. If the file
            exists, its videos and splits are used.
        prepared: videos that are prepared already.

    Example::

        datamodule = VideoDataModule(DataOptions("clips", cache_dir="cache"))
        trainer.fit(model, datamodule=datamodule)
    """

    def __init__(
        self,
        options: DataOptions,
        manifest_path: str | Path | None = None,
        prepared: PreparedVideos | None = None,
    ) -> None:
        super().__init__(options)
        self.manifest_path = None if manifest_path is None else Path(manifest_path)
        self.prepare_data_per_node = False  # an attribute of Lightning: on one rank, not on one of each machine
        self.stats = IngestStats()
        self._stacks: dict[tuple[str, type], Tensor | None] = {}  # of splits and datasets; None: they do not fit
        self._copies: torch.cuda.Stream | None = None
        if prepared is not None:
            self._take(prepared)

    def prepare_data(self) -> None:
        """Lists, decodes and splits the videos, and writes the manifest; called by Lightning on rank 0 only.

        Raises:
            UserError: see `vidcls.data.preparation.prepare_videos`.
        """
        if not self.classes:
            self._take(prepare_videos(self.options, Console(), self.manifest_path))

    def _take(self, prepared: PreparedVideos) -> None:
        self.load_manifest(prepared.manifest)
        self.stats = prepared.stats
        if self.manifest_path is not None and not self.manifest_path.exists():
            write_manifest(self.manifest_path, self.manifest)

    def setup(self, stage: str | None = None) -> None:
        """Reads the manifest on the ranks that did not write it; called by Lightning on every rank."""
        if self.classes:
            return
        assert self.manifest_path is not None, "prepare_data comes first"
        self.load_manifest(read_manifest(self.manifest_path))

    def rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def loader(self, split: str, *, train: bool = False) -> Loader:
        """`Videos.loader`, or batches from GPU memory where train and val fit there: see ``data.device_cache``."""
        loader = super().loader(split, train=train)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        dataset = loader.dataset
        assert isinstance(dataset, VideoDataset | FeatureDataset)
        stacks = self._stacked(split, dataset, device) if device.type == "cuda" and len(dataset) else None
        if stacks is None:
            return loader
        options: Any = {name: getattr(loader, name) for name in ("batch_size", "sampler", "generator")}
        return DeviceLoader(DeviceDataset(dataset, stacks), **options)

    def _stacked(self, split: str, dataset: VideoDataset | FeatureDataset, device: torch.device) -> Tensor | None:
        if split == "test":  # it is read only once
            return None
        key = split, type(dataset)
        if key not in self._stacks:
            needed = dataset.stack(0).nbytes * (len(self.rows("train")) + len(self.rows("val")))
            fits = fits_on_device(needed, self.options.device_cache, torch.cuda.mem_get_info(device)[0])
            self._stacks[key] = stack_videos(dataset, device) if fits else None
        return self._stacks[key]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copies to a GPU while it still computes: on a separate stream, from pinned memory."""
        if device.type != "cuda" or batch.label.is_cuda:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        if self._copies is None:
            self._copies = torch.cuda.Stream(device)
        with torch.cuda.stream(self._copies):
            batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(self._copies)
        for tensor in batch:
            tensor.record_stream(computing)  # so that its memory is not reused before that stream is done with it
        return batch

    def train_dataloader(self) -> Loader:
        return self.loader("train", train=True)

    def val_dataloader(self) -> Loader:
        return self.loader("val")

    def test_dataloader(self) -> Loader:
        return self.loader("test")

    def predict_dataloader(self) -> Loader:
        return self.loader("test")
