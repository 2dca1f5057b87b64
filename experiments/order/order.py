"""Does the order of the frames matter? An LSTM on ordered and on shuffled frames, against mean pooling.

Run it with ``python experiments/order/order.py``; see README.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning as L
import pandas as pd
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.tools import ROOT, compose_train, mean_over_seeds, real_clips
from vidcls.training import loop as run
from vidcls.training.callbacks import History, find_callback

SEEDS = 5
VARIANTS = {"lstm_ordered": "cnn_lstm", "lstm_shuffled": "cnn_lstm", "mean": "cnn_mean"}


class Shuffled(nn.Module):
    """A head that sees each clip's frames in an order drawn anew each time, in training and after it.

    Frames are encoded one by one, so shuffling their features [B, T, D] is shuffling the frames.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """[B, T, D] to [B, E]."""
        order = torch.rand(features.shape[:2], device=features.device).argsort(dim=1)  # [B, T]
        return self.head(features.gather(1, order.unsqueeze(-1).expand_as(features)))


def accuracy(folder: Path, variant: str, seed: int, *overrides: str) -> dict[str, float | int | str]:
    """Trains once; accuracy on val after the last epoch, and of the best epoch on the test split where there is one."""
    kept = folder / "order.json"
    if not kept.exists():
        cfg = compose_train(folder, f"model={VARIANTS[variant]}", f"seed={seed}", *overrides)
        L.seed_everything(seed, verbose=False)
        datamodule = run.build_datamodule(cfg)
        module = run.build_module(cfg, datamodule)
        if variant == "lstm_shuffled":
            module.model.head = Shuffled(module.model.head)
        trainer, _ = run.fit(cfg, module, datamodule)
        predictions = run.test(trainer, module, datamodule, ("val", "test"))
        found = {f"{split}_accuracy": p.summary(datamodule.classes)["accuracy"] for split, p in predictions.items()}
        found["last_val_accuracy"] = find_callback(trainer, History).curves["val/accuracy"][-1][1]
        kept.write_text(json.dumps({"variant": variant, "seed": seed, **found}))
    return json.loads(kept.read_text())


def main() -> None:
    """Runs all and writes results.csv and summary.csv."""
    run.silence_lightning()
    torch.set_num_threads(2)
    rows = []
    studies = {"demo": ["data.num_frames=10", "data.resolution=32"]}
    clips = real_clips()
    if clips is not None:
        studies["fights"] = ["data=folder", f"data.source={clips}", "data.num_frames=8"]
    for data, overrides in studies.items():
        for variant in VARIANTS:
            for seed in range(SEEDS):
                folder = ROOT / "runs" / "studies" / "order" / f"{data}_{variant}_seed{seed}"
                rows.append({"data": data, **accuracy(folder, variant, seed, *overrides)})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(Path(__file__).parent / "results.csv", index=False)
    summary = table.groupby(["data", "variant"], sort=False)[["test_accuracy", "last_val_accuracy"]].agg(
        mean_over_seeds
    )
    summary.to_csv(Path(__file__).parent / "summary.csv")
    print(summary.to_string())


if __name__ == "__main__":
    main()
