"""Pretrains the notebook's network, on differences between frames, to tell six kinds of drawn motion apart.

``pretrain`` writes the weights; `pretrained_cnn_lstm` is the network that starts from them, for model=custom.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidcls.models.classifiers import Classifier, encoder_head

NUM_FRAMES, RESOLUTION = 20, 64
MOTIONS = ("still", "passing", "turning", "jerky", "two_meet", "two_struggle")
GRID = np.stack(np.meshgrid(np.arange(RESOLUTION), np.arange(RESOLUTION), indexing="xy")) / RESOLUTION  # [2, R, R]


def pretrained_cnn_lstm(num_classes: int, resolution: int, num_frames: int, weights: str | None = None) -> Classifier:
    """The notebook's network on differences; with ``weights``, all but the output layer is read from that file."""
    encoder = {"name": "cnn", "channels": [32, 64, 128]}
    head = {"name": "lstm", "hidden_size": 64, "num_layers": 1, "bidirectional": False, "pooling": "last"}
    model = encoder_head(num_classes, resolution, num_frames, encoder, head, motion="difference", dropout=0.5)
    if weights is not None:
        state = torch.load(weights, weights_only=True)
        kept = {name: value for name, value in state.items() if not name.startswith("output.")}
        unexpected = model.load_state_dict(kept, strict=False).unexpected_keys
        assert not unexpected, unexpected
    return model


def texture(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size 3"]:
    """Random colours at three scales, in 0..1."""
    layers = [
        np.kron(rng.random((cells, cells, 3)), np.ones((size // cells, size // cells, 1))) for cells in (4, 8, 32)
    ]
    return np.mean(layers, axis=0)


def path_of(motion: str, rng: np.random.Generator) -> Float[np.ndarray, "bodies T 2"]:
    """Where the bodies of a motion are, in 0..1 of the frame."""
    steps = np.arange(NUM_FRAMES)[:, None]
    start, angle = rng.uniform(0.2, 0.8, 2), rng.uniform(0, 2 * np.pi)
    heading = np.array([np.cos(angle), np.sin(angle)])
    if motion == "still":
        return (start + rng.uniform(0, 0.01) * np.sin(steps * rng.uniform(0.2, 0.6)) * heading)[None]
    if motion == "passing":
        return (start + (steps - NUM_FRAMES / 2) * rng.uniform(0.01, 0.05) * heading)[None]
    if motion == "turning":
        turns = angle + steps * rng.choice([-1, 1]) * rng.uniform(0.2, 0.6)
        return (start + rng.uniform(0.05, 0.2) * np.concatenate([np.cos(turns), np.sin(turns)], axis=1))[None]
    shaking = rng.normal(0, rng.uniform(0.02, 0.05), (2, NUM_FRAMES, 2))
    if motion == "jerky":
        return start + shaking[:1]
    meeting = rng.integers(NUM_FRAMES // 4, NUM_FRAMES // 2)
    apart = np.maximum(rng.uniform(0.04, 0.08), rng.uniform(0.02, 0.05) * (meeting - steps)) * heading
    both = np.stack([start + apart, start - apart])
    return both + shaking * (steps >= meeting) if motion == "two_struggle" else both


def draw(motion: str, rng: np.random.Generator) -> Float[np.ndarray, "T 3 R R"]:
    """A clip of one motion, beside up to two bodies that stand or pass, before a textured, noisy background."""
    frames = np.repeat(texture(rng, RESOLUTION)[None], NUM_FRAMES, axis=0) * rng.uniform(0.3, 1)
    others = [path_of(rng.choice(["still", "passing"]), rng) for _ in range(rng.integers(0, 3))]
    for places in np.concatenate([path_of(motion, rng), *others]):
        radii, look = rng.uniform(0.06, 0.12) * rng.uniform(0.7, 1.8, 2), texture(rng, RESOLUTION) * rng.random(3)
        offsets = (GRID[None] - places[:, :, None, None]) / radii[None, :, None, None]  # [T, 2, R, R]
        mask = np.clip(3 * (1 - (offsets**2).sum(1)), 0, 1)[..., None]  # [T, R, R, 1]
        frames = frames * (1 - mask) + look * mask
    flicker = 1 + rng.uniform(0, 0.03) * np.sin(np.arange(NUM_FRAMES) * rng.uniform(0.3, 3))[:, None, None, None]
    frames = frames * flicker + rng.normal(0, rng.uniform(0, 0.02), frames.shape)
    return np.clip(frames, 0, 1).transpose(0, 3, 1, 2)


def batches(seed: int, size: int) -> Iterator[tuple[Float[Tensor, "B T 3 R R"], Tensor]]:
    """Endless batches that never repeat."""
    rng = np.random.default_rng(seed)
    while True:
        labels = rng.integers(0, len(MOTIONS), size)
        clips = np.stack([draw(MOTIONS[label], rng) for label in labels])
        yield torch.from_numpy(clips).float(), torch.from_numpy(labels)


def pretrain(weights: Path, steps: int, seed: int) -> None:
    """Trains on ``steps`` batches of 16 drawn clips, prints the accuracy on others, and writes the weights."""
    torch.manual_seed(seed)
    model = pretrained_cnn_lstm(len(MOTIONS), RESOLUTION, NUM_FRAMES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step, (clips, labels) in zip(range(steps), batches(seed, 16), strict=False):
        loss = nn.functional.cross_entropy(model(clips), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.eval()
    with torch.inference_mode():
        right = [
            (model(clips).argmax(1) == labels).float().mean().item()
            for _, (clips, labels) in zip(range(20), batches(seed + 1, 16), strict=False)
        ]
    print(f"accuracy on 320 other drawn clips: {np.mean(right):.3f}")
    torch.save(model.state_dict(), weights)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path, help="the file to write")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    pretrain(given.weights, given.steps, given.seed)
