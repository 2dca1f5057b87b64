"""The clip vectors of settings of train.py, over all real clips: computed once and kept in runs/studies/features."""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L
import numpy as np
from hydra.utils import instantiate

from experiments.models.settings import weights
from experiments.tools import ROOT, compose_train, needed_clips
from vidcls.training import loop as run
from vidcls.training.feature_cache import clip_vectors

STUDY = ROOT / "runs" / "studies" / "features"
LITE0 = ("experiment=strong", "model.sizes=1")
CHEAP = ("experiment=fast",)

SETTINGS: dict[str, tuple[str, ...]] = {
    "rgb": (*LITE0, "model.motion=rgb"),
    "difference": (*LITE0, "model.motion=difference"),
    "multiscale_difference": LITE0,
    "multiscale_difference, two sizes": ("experiment=strong",),
    "difference, 16x112": (*LITE0, "model.motion=difference", "data.resolution=112", "data.num_frames=16"),
    "multiscale_difference, 32x112": CHEAP,
    "i3d": ("experiment=kinetics", "model.motion_crop=null", "data.resolution=224"),
    "i3d, cropped": ("experiment=kinetics",),
}


@dataclass(frozen=True)
class Vectors:
    """Of N clips: what the head gives, before it is standardised; labels; cameras."""

    vectors: np.ndarray  # [N, E]
    labels: np.ndarray  # [N]
    cameras: np.ndarray  # [N]


def vectors_of(name: str) -> Vectors:
    """Those of one of `SETTINGS`."""
    kept = STUDY / f"{name.replace(', ', '_')}.npz"
    if not kept.exists():
        found = _compute(name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, **vars(found))
    with np.load(kept) as arrays:
        return Vectors(**arrays)


def _compute(name: str) -> Vectors:
    overrides = [*SETTINGS[name], "data=folder", f"data.source={needed_clips()}"]
    # Any optimiser will do: one epoch over cached features takes seconds.
    overrides += ["optim=adamw", "model.standardise=false"]
    if "experiment=kinetics" not in overrides:
        overrides.append(f"model.encoder.weights={weights()}")
    cfg = compose_train(STUDY / "run", *overrides)
    L.seed_everything(0, verbose=False)
    datamodule = run.build_datamodule(cfg)
    module = run.build_module(cfg, datamodule)
    callbacks = [instantiate(cfg.callbacks.features)]
    trainer = instantiate(
        cfg.trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=callbacks
    )
    trainer.fit(module, datamodule=datamodule)
    vectors = clip_vectors(trainer, module, datamodule, ("train", "val"))[:, 0]
    rows = [datamodule.rows(split) for split in ("train", "val")]
    labels = np.concatenate([datamodule.dataset(split).labels for split in ("train", "val")])
    return Vectors(vectors, labels, np.concatenate([row["creator"].to_numpy(str) for row in rows]))
