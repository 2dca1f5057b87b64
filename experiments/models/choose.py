"""Which setting? Cross-validation over cameras inside the training videos; val is never read.

Run it with ``VIDCLS_REAL_DATA=PATH python experiments/models/choose.py``; see README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.models.settings import FROZEN, STUDY, begin, last_epoch

FOLDS = 5
REPEATS = 1


def main() -> None:
    """Trains each setting on each fold and writes folds.csv and choice.csv."""
    clips = begin()
    rows = []
    for place, (name, overrides) in enumerate(FROZEN.items()):
        for repeat in range(REPEATS):
            for fold, source in enumerate(fold_sources(clips, repeat)):
                folder = STUDY / f"choose_{place}_repeat{repeat}_fold{fold}"
                rows.append({"fold": fold, **last_epoch(name, overrides, source, folder, repeat)})
        print(summary(pd.DataFrame(rows)).tail(1).to_string(header=False), flush=True)
    table = pd.DataFrame(rows).rename(columns={"seed": "repeat"})
    table.to_csv(Path(__file__).parent / "folds.csv", index=False)
    chosen = summary(table)
    chosen.to_csv(Path(__file__).parent / "choice.csv")
    print(chosen.to_string())


def fold_sources(clips: Path, repeat: int) -> list[Path]:
    """A .csv per fold, in which no camera is both in train and val; folds are of nearly the same size."""
    listing = pd.DataFrame({"path": sorted(clips.glob("train/*/*.mp4"))})
    listing["label"] = [path.parent.name for path in listing["path"]]
    listing["creator"] = [path.stem.rpartition("_")[0] for path in listing["path"]]
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=repeat)
    sources = []
    for fold, (_, held_out) in enumerate(splitter.split(listing, listing["label"], listing["creator"])):
        splits = pd.Series("train", index=listing.index)
        splits.iloc[held_out] = "val"
        source = STUDY / f"repeat{repeat}_fold{fold}.csv"
        source.parent.mkdir(parents=True, exist_ok=True)
        listing.assign(split=splits).to_csv(source, index=False)
        sources.append(source)
    return sources


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over repeats and folds; spread of the folds."""
    figures = table.groupby("name", sort=False)[["val_accuracy", "val_loss"]].agg(["mean", "std"]).round(3)
    figures.columns = ["_".join(column) for column in figures.columns]
    return figures


if __name__ == "__main__":
    main()
