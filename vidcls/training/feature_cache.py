"""Caches the features of frozen encoders, which are the same in each epoch and in each job of a sweep."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from rich.progress import track

from vidcls.data.dataset import FeatureDataset
from vidcls.data.store import FeatureStore
from vidcls.data.videos import Videos
from vidcls.models.heads import Standardise
from vidcls.training.inference import use_channels_last
from vidcls.training.module import VideoClassifier

VERSION = 3  # raise it when the same encoder and options come to give other features


class CacheFeatures(L.Callback):
    """Before training, computes the features of each video, which the loaders then serve instead of frames.

    Does nothing if the encoder trains or frames are augmented. Features are computed as in evaluation, so that
    evaluating the network on frames gives the same metrics to the last bit. Each encoder has a subfolder of ``folder``,
    named by a hash of its weights and of all options that matter.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        assert isinstance(module, VideoClassifier)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        # Before the optimiser asks how many batches the loaders have.
        if stage == "fit" and module.features_cacheable and not datamodule.options.temporal_jitter:
            trainer.precision_plugin.convert_module(module.to(trainer.strategy.root_device))
            use_channels_last(module.model, trainer.strategy.root_device)
            datamodule.features = FeatureStore(self.folder / _address(module, trainer, datamodule.store.folder.name))
            compute_features(trainer, module, datamodule, ("train", "val"))
            if isinstance(module.model.standardise, Standardise):
                clips = clip_vectors(trainer, module, datamodule, module.fitted_splits)  # [N, M, E]
                module.model.standardise.fit(clips.reshape(-1, clips.shape[2]))


@torch.inference_mode()
def compute_features(trainer: L.Trainer, module: VideoClassifier, videos: Videos, splits: Sequence[str]) -> None:
    """Fills ``videos.features`` for these splits; each rank computes a shard."""
    store = videos.features
    assert store is not None
    was_training = module.training
    module.to(trainer.strategy.root_device).eval()  # Lightning leaves it on the CPU after training
    for split in splits:
        dataset = videos.dataset(split)
        # Shard before checking the cache, as ranks that check later would see fewer missing rows and leave gaps.
        shard = range(trainer.global_rank, len(dataset), trainer.world_size)
        missing = [row for row in shard if not store.holds(dataset.sha256s[row])]
        size = videos.options.batch_size
        batches = [missing[i : i + size] for i in range(0, len(missing), size)]
        if trainer.precision != "32-true" and not batches:
            batches = [[0]]  # to find the dtype of features, below
        longest = torch.tensor(len(batches), device=module.device)
        batches += [[]] * (int(trainer.strategy.reduce(longest, reduce_op="max")) - len(batches))
        shown = trainer.is_global_zero and len(batches) > 1
        for rows in track(batches, f"Features of {split}", transient=True, disable=not shown):
            trainer.strategy.barrier()  # each time, as none waits for hours until a slower one is done
            if not rows:
                continue
            clips = []
            for clip in range(module.spec.clip.num_clips):
                frames = torch.stack([torch.from_numpy(dataset.frames(row, clip)) for row in rows]).to(module.device)
                with trainer.precision_plugin.forward_context():
                    features = module.encode(frames)
                module.features_dtype = features.dtype
                kept = torch.promote_types(features.dtype, torch.float32)  # NumPy has no bfloat16
                clips.append(features.to(kept).cpu().numpy())
            for row, *of_video in zip(rows, *clips, strict=True):
                store.write(dataset.sha256s[row], np.stack(of_video) if len(of_video) > 1 else of_video[0])
    trainer.strategy.barrier()
    module.train(was_training)


@torch.inference_mode()
def clip_vectors(
    trainer: L.Trainer, module: VideoClassifier, videos: Videos, splits: Sequence[str]
) -> Float[np.ndarray, "N M E"]:
    """The head's output for the cached features of these splits' videos, before it is standardised."""
    store, size, batches = videos.features, videos.options.batch_size, []
    assert store is not None
    datasets = [FeatureDataset(videos.dataset(split), store) for split in splits]
    rows = [(dataset, row) for dataset in datasets for row in range(len(dataset))]
    for start in range(0, len(rows), size):
        features = np.stack([dataset.stack(row) for dataset, row in rows[start : start + size]])  # [B, M, *features]
        clips = torch.from_numpy(features).to(module.device)
        with trainer.precision_plugin.forward_context():
            vectors = module.model.head(clips.flatten(0, 1).to(module.features_dtype))  # [B*M, E]
        batches.append(vectors.float().cpu().numpy().reshape(*clips.shape[:2], -1))
    return np.concatenate(batches)


@torch.inference_mode()
def sample_vectors(
    trainer: L.Trainer, module: VideoClassifier, videos: Videos, splits: Sequence[str], count: int
) -> tuple[Float[np.ndarray, "N E"], list[str]]:
    """The mean clip vectors of up to ``count`` random videos of these splits, and their hashes."""
    datasets = [videos.dataset(split) for split in splits]
    rows = [(dataset, row) for dataset in datasets for row in range(len(dataset))]
    chosen = [rows[index] for index in np.random.default_rng(0).permutation(len(rows))[:count]]
    module.to(trainer.strategy.root_device).eval()  # Lightning leaves it on the CPU after training
    vectors, num_clips, size = [], module.spec.clip.num_clips, videos.options.batch_size
    for start in range(0, len(chosen), size):
        batch, clips = chosen[start : start + size], []
        for clip in range(num_clips):
            with trainer.precision_plugin.forward_context():
                if videos.features is None:
                    frames = torch.stack([torch.from_numpy(dataset.frames(row, clip)) for dataset, row in batch])
                    features = module.encode(frames.to(module.device))
                else:
                    stored = [FeatureDataset(dataset, videos.features).stack(row)[clip] for dataset, row in batch]
                    features = torch.from_numpy(np.stack(stored)).to(module.device, module.features_dtype)
                clips.append(module.model.embed(features).float().cpu().numpy())
        vectors.append(np.mean(clips, axis=0))
    return np.concatenate(vectors), [dataset.sha256s[row] for dataset, row in chosen]


def _address(module: VideoClassifier, trainer: L.Trainer, frames: str) -> str:
    # A hash of the encoder's weights and of all else that its features depend on, except for the video.
    digest = hashlib.sha256()
    for name, tensor in module.model.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    spec = asdict(module.spec)
    others = ("head", "dropout", "standardise", "weights")
    model = {name: value for name, value in spec.pop("model").items() if name not in others}
    if isinstance(model.get("encoder"), dict):
        model["encoder"] = {name: value for name, value in model["encoder"].items() if name != "weights"}
    del spec["classes"]
    matters = [VERSION, model, spec, str(trainer.precision), module.device.type, frames]
    digest.update(json.dumps(matters, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
