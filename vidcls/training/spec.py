"""The typed description of a run: all that is needed to rebuild its network and repeat its decoding."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vidcls.data.sampling import ClipSpec, StoreSpec

CHECKPOINT_FORMAT = 3

RENAMED_TARGETS = {  # in old run folders
    "vidcls.augment.Augment": "vidcls.training.transforms.Augment",
    "vidcls.data.datamodule.VideoDataModule": "vidcls.data.options.DataOptions",
    "vidcls.callbacks.EMA": "vidcls.training.callbacks.EMA",
    "vidcls.callbacks.History": "vidcls.training.callbacks.History",
    "vidcls.callbacks.Pruning": "vidcls.sweeps.pruning.Pruning",
    "vidcls.callbacks.StayStopped": "vidcls.training.callbacks.StayStopped",
    "vidcls.callbacks.Timing": "vidcls.training.callbacks.Timing",
    "vidcls.features.CacheFeatures": "vidcls.training.feature_cache.CacheFeatures",
    "vidcls.optim.AdamW": "torch.optim.AdamW",
}
RENAMED_OPTIONS = {"vidcls.models.classifiers.encoder_head": {"stream": "motion"}}
"""The options of a target (by its current name) that old runs have under another key."""


def upgrade(config: Any) -> Any:
    """Plain values of an old run with current names, at any depth.

    Example:
        >>> upgrade({"optim": {"_target_": "vidcls.optim.AdamW", "lr": 0.1}})
        {'optim': {'_target_': 'torch.optim.AdamW', 'lr': 0.1}}
    """
    if isinstance(config, list):
        return [upgrade(value) for value in config]
    if not isinstance(config, dict):
        return config
    target = config.get("_target_")
    target = RENAMED_TARGETS.get(target, target) if isinstance(target, str) else target
    renamed = RENAMED_OPTIONS.get(target, {}) if isinstance(target, str) else {}
    upgraded = {renamed.get(key, key): upgrade(value) for key, value in config.items()}
    return upgraded | {"_target_": target} if "_target_" in config else upgraded


def fitted_splits(refit: bool) -> tuple[str, ...]:
    """The splits that a network is fitted to, in the order of its out-of-fold predictions."""
    return ("train", "val") if refit else ("train",)


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel, on the 0..1 scale."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class RunSpec:
    """All that a network is built from; checkpoints hold it."""

    classes: tuple[str, ...]  # the K names, in the order of the logits
    model: dict[str, Any]  # `_target_` and the options of the model, as plain values
    clip: ClipSpec  # what the network sees of a video
    store: StoreSpec  # what is decoded and kept of a video
    normalisation: Normalisation  # of the frames
    batch_size: int  # B; evaluation always fills its batches up to it

    def to_dict(self) -> dict[str, Any]:
        return {"format": CHECKPOINT_FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunSpec:
        """The inverse of `to_dict`, also of format 2. Raises ValueError, LookupError or TypeError."""
        if values["format"] == 2:
            values = _from_format_2(values)
        elif values["format"] != CHECKPOINT_FORMAT:
            raise ValueError(f"format {values['format']}")
        return cls(
            classes=tuple(values["classes"]),
            model=upgrade(values["model"]),
            clip=ClipSpec(**values["clip"]),
            store=StoreSpec(**values["store"]),
            normalisation=Normalisation(*(tuple(values["normalisation"][name]) for name in ("mean", "std"))),
            batch_size=values["batch_size"],
        )


def _from_format_2(values: dict[str, Any]) -> dict[str, Any]:
    data = values["data"]
    shared = {
        "sampling": data["sampling"],
        "clip_seconds": data.get("clip_seconds"),
        "num_clips": data.get("num_clips", 1),
    }
    return {
        "classes": values["classes"],
        "model": values["model"],
        "clip": {"num_frames": data["num_frames"], "resolution": data["resolution"], **shared},
        "store": {"stored_frames": data["store_num_frames"], "stored_resolution": data["store_resolution"], **shared},
        "normalisation": values["normalise"],
        "batch_size": data["batch_size"],
    }
