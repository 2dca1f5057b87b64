"""A run whose network calls what is bright harmful, and videos for it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from helpers.runs import CLASSES
from vidcls.moderation.policy import Policy, save_policy
from vidcls.prediction.loading import load_run
from vidcls.training.checkpoint import build_model, load_checkpoint


def plain_policy(run: Path) -> Policy:
    policy = Policy(
        model=load_run(run).identity,
        classes=tuple(CLASSES),
        safe_class="safe",
        temperature=1.0,
        review={"adult": 0.4, "harmful": 0.4},
        block={"adult": 0.8, "harmful": 0.8},
        targets={},
        support=dict.fromkeys(CLASSES, 1),
        calibration_error={"before": 0.0, "after": 0.0},
    )
    save_policy(policy, run / "policy.json")
    return policy


def make_bright(finished: Path, folder: Path) -> None:
    """Makes ``folder`` a run with a policy; what is bright is harmful to its network, and what is dark safe."""
    shutil.copytree(finished, folder)
    checkpoint = load_checkpoint(folder / "checkpoints" / "best.ckpt")
    mean = {"_target_": "vidcls.models.classifiers.cnn_mean", "encoder": {"channels": [1]}, "dropout": 0.0}
    spec = replace(checkpoint.spec, model=mean)
    model = build_model(spec)
    weights = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    weights["encoder.layers.0.weight"][0, :, 1, 1] = 1 / 3
    weights["output.weight"][CLASSES.index("harmful")] = 16 / weights["output.weight"].shape[1]
    weights["output.bias"][:] = torch.tensor([-50.0, -8.0, 0.0])  # adult never; harmful from a mean of 0.5
    state_dict = {f"model.{name}": value for name, value in weights.items()}
    torch.save(
        checkpoint.raw | {"vidcls": spec.to_dict(), "state_dict": state_dict}, folder / "checkpoints" / "best.ckpt"
    )
    plain_policy(folder)


def lit(seconds: float, *passages: tuple[float, float], fps: int = 25) -> np.ndarray:
    """Dark frames, bright in the passages (start, end)."""
    times = np.arange(round(seconds * fps)) / fps
    on = np.any([(times >= start) & (times < end) for start, end in passages], axis=0) if passages else times < 0
    return np.broadcast_to(np.where(on, 230, 20).astype(np.uint8)[:, None, None, None], (len(times), 32, 32, 3))
