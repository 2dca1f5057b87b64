"""label_issues.csv and label_issues.html: suspect labels, with pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from vidcls.data.pictures import strip
from vidcls.data.store import FrameStore
from vidcls.files import csv_bytes, write_atomically
from vidcls.metrics.label_issues import find_label_issues
from vidcls.pages import render_page

MAX_SHOWN = 200  # videos on the page; the table has all
FRAMES, SIDE = 6, 112  # of a video's picture


def write_label_issues(
    folder: Path,
    rows: pd.DataFrame,
    probabilities: Float[np.ndarray, "N K"],
    classes: Sequence[str],
    store: FrameStore | None,
) -> int:
    """Writes both files about N videos (columns path, label, creator, sha256); returns the number of suspect labels.

    ``probabilities`` are out-of-fold. Without a ``store`` no page is written.
    """
    labels = rows["label"].map(list(classes).index).to_numpy(np.int64)
    found = find_label_issues(probabilities, labels)
    suspects = [row for row in found.ranked() if found.suspect[row]]
    table = rows[["path", "label"]].iloc[suspects].reset_index(drop=True)
    table["suggested"] = [classes[k] for k in found.suggested[suspects]]
    pairs = {"label_probability": labels, "suggested_probability": found.suggested}
    for name, chosen in pairs.items():
        table[name] = [f"{probabilities[row, chosen[row]]:.9g}" for row in suspects]
    table["margin"] = [f"{margin:.9g}" for margin in found.margins[suspects]]
    table[["creator", "sha256"]] = rows[["creator", "sha256"]].iloc[suspects].to_numpy()
    write_atomically(folder / "label_issues.csv", csv_bytes(table))
    if store is not None:
        shown = table.head(MAX_SHOWN).to_dict("records")
        pictures = [strip(store, row["sha256"], FRAMES, SIDE) for row in shown]
        joint = [
            (classes[i], classes[j], found.joint[i, j] * len(rows))
            for i, j in zip(*np.nonzero(found.joint), strict=True)
            if i != j
        ]
        page = render_page(
            Path(__file__).parent,
            "label_issues",
            suspects=list(zip(shown, pictures, strict=True)),
            num_suspects=len(suspects),
            num_videos=len(rows),
            pairs=sorted(joint, key=lambda pair: -pair[2]),
        )
        write_atomically(folder / "label_issues.html", page)
    return len(suspects)
