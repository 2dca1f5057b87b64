"""How far off is the accuracy that is estimated without labels, and when do the tests of drift cry?

Run it with ``python experiments/review/drift.py RUN``, where RUN is a finished run of ``experiment=strong`` on the real
clips whose frames are still in its cache; see README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import StandardScaler
from torchvision.transforms.functional import gaussian_blur

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.features.folds import splits
from experiments.features.vectors import STUDY, Vectors
from experiments.review.clips import HERE, predict
from vidcls.data.manifest import usable_rows
from vidcls.data.preparation import frame_store
from vidcls.metrics.comparison import compare_shares, energy_test, estimate_accuracy
from vidcls.prediction.drift import ALPHA
from vidcls.prediction.loading import load_run
from vidcls.training.reference import fit_reference

REPEATS = 4
RARE = "a fifth of the fights"
CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {  # of frames [B, T, H, W, 3]
    "none": lambda frames: frames,
    "two fifths of the light": lambda frames: (frames * 0.4).to(torch.uint8),
    "blurred (sigma 3 of 224 pixels)": lambda frames: gaussian_blur(frames.permute(0, 1, 4, 2, 3), 13, 3.0).permute(
        0, 1, 3, 4, 2
    ),
}


@torch.inference_mode()
def changed_vectors(folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """The clip vectors [N, E] of the clips as they are and changed; their labels and cameras. Kept in runs/studies."""
    kept = STUDY / "changed.npz"
    run = load_run(folder)
    rows = pd.concat([usable_rows(run.manifest, split) for split in ("train", "val")], ignore_index=True)
    if not kept.exists():
        store, predictor = frame_store(run.videos().options), run.predictor
        found: dict[str, Any] = {}
        places = np.arange(run.spec.store.stored_frames)
        for name, change in CHANGES.items():
            vectors = []
            for start in range(0, len(rows), run.spec.batch_size):
                stacks = [store.read(sha256, places) for sha256 in rows["sha256"][start : start + run.spec.batch_size]]
                inputs = predictor._preprocess(change(torch.from_numpy(np.stack(stacks))).to(predictor.device))
                vectors.append(run.model.head(run.model.encode(inputs)).float().cpu().numpy())
            found[name] = np.concatenate(vectors)
            print(name, flush=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, **found)
    with np.load(kept) as arrays:
        labels = np.array([run.classes.index(label) for label in rows["label"]])
        return dict(arrays), labels, rows["creator"].to_numpy(str)


def main(folder: Path) -> None:
    """Writes drift.csv, a row per change."""
    found, labels, names = changed_vectors(folder)
    cameras = np.unique(names, return_inverse=True)[1]
    scaler = StandardScaler().fit(found["none"])
    basis = np.linalg.svd(scaler.transform(found["none"]), full_matrices=False)[2]
    vectors = {name: scaler.transform(one) @ basis.T for name, one in found.items()}
    rows = []
    for repeat in range(REPEATS):
        data = Vectors(vectors["none"], labels, cameras)
        for train, held_out in splits(data, "grouped", repeat):
            known = Vectors(data.vectors[train], labels[train], cameras[train])
            out_of_fold = np.empty((len(train), 2))
            for part, rest in splits(known, "grouped", repeat):
                out_of_fold[rest] = predict(known.vectors[part], known.labels[part], known.vectors[rest])
            reference = fit_reference(known.vectors, [])
            rare = held_out[(labels[held_out] == 1) | (np.arange(len(held_out)) % 5 == 0)]
            for name, changed in {**vectors, RARE: vectors["none"]}.items():
                shown = rare if name == RARE else held_out
                new, groups = changed[shown], cameras[shown]
                probabilities = predict(known.vectors, known.labels, new)
                right = float((probabilities.argmax(axis=1) == labels[shown]).mean())
                estimate, (low, high) = estimate_accuracy(
                    probabilities, groups, out_of_fold, known.labels, known.cameras
                )
                shares = compare_shares(
                    probabilities.argmax(axis=1), groups, out_of_fold.argmax(axis=1), known.cameras, ["no", "yes"]
                )
                confidences = probabilities.max(axis=1)[:, None], out_of_fold.max(axis=1)[:, None]
                _, unsure = energy_test(confidences[0], groups, confidences[1], known.cameras)
                projected = (new - reference.mean) @ reference.components.T
                _, unlike = energy_test(projected, groups, reference.vectors, known.cameras)
                cries = [shares["yes"]["differs"], unsure <= ALPHA, unlike <= ALPHA]
                rows.append([name, repeat, right, estimate, low <= right <= high, *cries, any(cries)])
        print(repeat, flush=True)
    columns = ["change", "repeat", "accuracy", "estimate", "covered", "shares", "confidence", "features", "any"]
    table = pd.DataFrame(rows, columns=columns)
    table["error"] = table["estimate"] - table["accuracy"]
    table["distance"] = table["error"].abs()
    summary = table.groupby("change", sort=False).agg(
        folds=("error", "size"),
        accuracy=("accuracy", "mean"),
        estimate=("estimate", "mean"),
        error=("error", "mean"),
        sd=("error", "std"),
        distance=("distance", "mean"),
        **{name: (name, "mean") for name in ("covered", "shares", "confidence", "features", "any")},
    )
    summary.round(3).to_csv(HERE / "drift.csv")
    print(summary.round(3).to_markdown())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
