"""A frozen encoder says the same of a video in each epoch and in each job of a sweep: ask it once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch
from rich.progress import track

from vidcls.data.datamodule import VideoDataModule
from vidcls.data.features import FeatureStore
from vidcls.training.module import VideoModule


class CacheFeatures(L.Callback):
    """Before training, computes what a frozen encoder says of each video, and lets the loaders serve that.

    It does nothing where the encoder trains or frames change from epoch to epoch. Features are computed in
    batches of the shape that evaluation has, so the network over the frames gives the same figures to the last digit.

    Args:
        folder: for all encoders; each has a folder in it, named by its weights and all settings that matter.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Computes what is missing of train and val, before the optimiser asks how many batches the loaders have."""
        assert isinstance(module, VideoModule)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and module.is_repeatable and not datamodule.temporal_jitter:
            module.to(trainer.strategy.root_device)
            datamodule.features = FeatureStore(self.folder / _identity(module, trainer))
            compute_features(trainer, module, datamodule, ("train", "val"))


@torch.inference_mode()
def compute_features(
    trainer: L.Trainer, module: VideoModule, datamodule: VideoDataModule, splits: Sequence[str]
) -> None:
    """Fills ``datamodule.features`` for these splits; each device does its share of the work."""
    store = datamodule.features
    assert store is not None
    was_training = module.training
    module.eval()
    for split in splits:
        dataset = datamodule.dataset(split)
        # Dealt out before looking what is there, or those who look late would deal out less, and leave gaps.
        share = range(trainer.global_rank, len(dataset), trainer.world_size)
        missing = [row for row in share if not store.holds(dataset.sha256s[row])]
        batches = [missing[i : i + datamodule.batch_size] for i in range(0, len(missing), datamodule.batch_size)]
        shown = trainer.is_global_zero and len(batches) > 1
        for rows in track(batches, f"Features of {split}", transient=True, disable=not shown):
            clips = []
            for clip in range(dataset.store.clips.count):
                frames = torch.stack([torch.from_numpy(dataset.frames(row, clip)) for row in rows]).to(module.device)
                with trainer.precision_plugin.forward_context():
                    clips.append(module.encode(frames).float().cpu().numpy())
            for row, *features in zip(rows, *clips, strict=True):
                store.write(dataset.sha256s[row], np.stack(features) if len(features) > 1 else features[0])
    trainer.strategy.barrier()
    module.train(was_training)


def _identity(module: VideoModule, trainer: L.Trainer) -> str:
    """Of the encoder's weights and of all that its features depend on beside the video."""
    digest = hashlib.sha256()
    for name, tensor in module.model.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    others = ("head", "dropout", "weights")
    model = {name: knob for name, knob in module.settings["model"].items() if name not in others}
    model["encoder"] = {name: knob for name, knob in dict(model.get("encoder", {})).items() if name not in others}
    matters = [model, module.settings["normalise"], module.settings["data"], str(trainer.precision)]
    digest.update(json.dumps([*matters, module.device.type], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
