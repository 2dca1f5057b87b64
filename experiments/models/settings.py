"""The settings that are compared, as overrides of ``python train.py``, and one training of each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate

from experiments.tools import ROOT, compose_train, needed_clips
from vidcls.training import loop as run
from vidcls.training.callbacks import History

STUDY = ROOT / "runs" / "studies" / "models"
STRONG = (  # as it was when these were measured: differences of consecutive frames, one size, 15 epochs of AdamW
    "experiment=strong",
    "optim=adamw",
    "refit=false",
    "model.motion=difference",
    "model.sizes=1",
    "model.standardise=false",
    "model.dropout=0.5",
    "trainer.max_epochs=15",
)
SMALL = (*STRONG, "data.resolution=112", "data.num_frames=16")
TUNED = (*SMALL, "model.encoder.trainable_from=blocks.5", "optim.encoder_lr_factor=0.03")

FROZEN: dict[str, tuple[str, ...]] = {
    "strong": STRONG,
    "mean": (*STRONG, "model.head.pooling=mean"),
    "max": (*STRONG, "model.head.pooling=max"),
    "attention": (*STRONG, "model.head.pooling=attention"),
    "LSTM": (*STRONG, "model/head=lstm", "model.head.pooling=last"),
    "BiLSTM, attention": (*STRONG, "model/head=bilstm", "model.head.pooling=attention"),
    "GRU": (*STRONG, "model/head=gru", "model.head.pooling=last"),
    "transformer": (*STRONG, "model/head=transformer", "model.head.pooling=mean"),
    "RGB, statistics": (*STRONG, "model.motion=rgb"),
    "RGB, mean": (*STRONG, "model.motion=rgb", "model.head.pooling=mean"),
    "RGB, BiLSTM, attention": (
        *STRONG,
        "model.motion=rgb",
        "model/head=bilstm",
        "model.head.pooling=attention",
    ),
}
"""Different heads over a frozen encoder; with cached features a training takes seconds."""

TRAINED: dict[str, tuple[str, ...]] = {
    "notebook": ("model=cnn_lstm",),
    "notebook on differences": (
        "model=encoder_head",
        "model/encoder=cnn",
        "model/head=lstm",
        "model.motion=difference",
    ),
    "strong at 16x112": SMALL,
    "strong at 16x112, last blocks fine-tuned": TUNED,
    "strong at 16x112, last blocks fine-tuned, norm_eval": (*TUNED, "model.encoder.norm_eval=true"),
}
"""Networks that train on frames, which takes minutes."""


def begin() -> Path:
    """Prepares this process; gives the folder of real clips."""
    clips = needed_clips()
    run.silence_lightning()
    torch.set_num_threads(1)  # heads are so small that a second thread costs more than it gives
    return clips


def weights() -> str:
    """The state dict of EfficientNet-Lite0 that VIDCLS_REAL_DATA holds."""
    return str(Path(os.environ["VIDCLS_REAL_DATA"], "weights", "tf_efficientnet_lite0.pth"))


def last_epoch(name: str, overrides: tuple[str, ...], source: Path, folder: Path, seed: int) -> dict[str, float]:
    """Trains once and gives val accuracy and loss after the last epoch, which needs no val to choose it.

    Args:
        name: of the setting, in `FROZEN` or `TRAINED`.
        overrides: of the setting.
        source: a folder or .csv of videos.
        folder: of this training; one that is finished is not run again.
        seed: of this training.
    """
    kept = folder / "last_epoch.json"
    if not kept.exists():
        pretrained = [f"model.encoder.weights={weights()}"] if "experiment=strong" in overrides else []
        cfg = compose_train(folder, *overrides, "data=folder", f"data.source={source}", f"seed={seed}", *pretrained)
        L.seed_everything(seed, verbose=False)
        datamodule = run.build_datamodule(cfg)
        module = run.build_module(cfg, datamodule)
        history = History(folder / "history.csv")
        trainer = instantiate(
            cfg.trainer,
            logger=False,  # neither dashboards nor checkpoints: there are hundreds of trainings
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[history, instantiate(cfg.callbacks.features)],
        )
        trainer.fit(module, datamodule=datamodule)
        found = {f"val_{name}": history.curves[f"val/{name}"][-1][1] for name in ("accuracy", "loss")}
        losses = [loss for _, loss in history.curves["val/loss"]]
        found["best_epoch_accuracy"] = history.curves["val/accuracy"][losses.index(min(losses))][1]
        kept.write_text(json.dumps(found))
    return {"name": name, "seed": seed, **json.loads(kept.read_text())}
