"""What does each preset cost? Parameters, FLOPs per clip and clips per second, forward and in training.

Run it with ``python experiments/models/cost.py`` (a GPU is used where there is one); see README.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.models.settings import SMALL, STRONG
from experiments.tools import ROOT, compose_train, machine
from vidcls.models.classifiers import build_classifier

PRESETS: dict[str, tuple[str, ...]] = {
    "cnn_lstm": (),
    "cnn_mean": ("model=cnn_mean",),
    "encoder_head": ("model=encoder_head", "data.num_frames=16", "data.resolution=112"),
    "encoder_head, temporal shift": (
        "model=encoder_head",
        "model.encoder.temporal_shift=true",
        "data.num_frames=16",
        "data.resolution=112",
    ),
    "experiment=strong": STRONG,
    "experiment=strong, smaller": SMALL,
    **{
        name: (f"model={name}", "data.num_frames=16", "data.resolution=112")
        for name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t")
    },
}
SECONDS = 3.0
BATCH = 2
CLASSES = 3


def main() -> None:
    """Measures all and writes cost.csv."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for name, overrides in PRESETS.items():
        cfg = compose_train(ROOT / "runs" / "studies" / "cost", *overrides)
        data = {"num_frames": int(cfg.data.num_frames), "resolution": int(cfg.data.resolution)}
        options = OmegaConf.to_container(cfg.model, resolve=True)
        assert isinstance(options, dict)
        target = str(options.pop("_target_"))
        options.pop("_convert_")
        model = build_classifier(
            target, {str(k): v for k, v in options.items()}, CLASSES, data["resolution"], data["num_frames"]
        ).to(device)
        side = data["resolution"]
        clips = torch.rand(BATCH, data["num_frames"], 3, side, side, device=device)
        row = {"preset": name, "clip": f"{data['num_frames']}x{side}", **measure(model, clips)}
        rows.append(row)
        print(row, flush=True)
    pd.DataFrame(rows).to_csv(Path(__file__).parent / "cost.csv", index=False)
    print(machine())


def measure(model: torch.nn.Module, clips: torch.Tensor) -> dict[str, float]:
    """The costs of one network on a batch of normalised clips [B, T, 3, R, R]."""
    labels = torch.zeros(len(clips), dtype=torch.long, device=clips.device)

    def forward() -> None:
        with torch.inference_mode():
            model(clips)

    def train() -> None:
        F.cross_entropy(model(clips), labels).backward()

    model.eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(clips)
    forwards = _per_second(forward, clips.device)
    model.train()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "GFLOPs": round(counter.get_total_flops() / len(clips) / 1e9, 2),
        "clips_per_second": forwards,
        "training_clips_per_second": _per_second(train, clips.device),
    }


def _per_second(step: Callable[[], None], device: torch.device) -> float:
    """Clips per second, over at least `SECONDS` after one step to warm up."""
    step()
    steps, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < SECONDS:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        steps += 1
    return round(BATCH * steps / elapsed, 2)


if __name__ == "__main__":
    main()
