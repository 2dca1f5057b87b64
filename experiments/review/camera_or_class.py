"""What lies close together in a map of the real clips: clips of a camera, or clips of a class?

python experiments/review/camera_or_class.py CACHE_DIR        camera_or_class.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.review.clips import HERE, camera_weights, real_vectors, with_interval
from experiments.tools import needed_clips
from vidcls.data.options import DataOptions
from vidcls.data.preparation import frame_store, pool_videos
from vidcls.inspection.clip_map import COMPONENTS, creators_and_classes, map_videos, principal_components


def main(cache: Path) -> None:
    """The features of inspect_data.py without a run, and those of experiment=strong at one size."""
    options, data = DataOptions(str(needed_clips()), str(cache)), real_vectors()
    clips, _ = pool_videos(options, ("train", "val"), Console())
    videos = map_videos(clips, frame_store(options), 0, None, None)
    creators, labels = (videos.rows[key].to_numpy(object) for key in ("creator", "label"))
    maps = {
        "color and motion": (videos.vectors, creators, labels),
        "experiment=strong": (principal_components(data.vectors)[0][:, :COMPONENTS], data.cameras, data.labels),
    }
    rows = []
    for features, (vectors, cameras, classes) in maps.items():
        for what, (shares, by_chance) in creators_and_classes(vectors, cameras, classes).items():
            known = ~np.isnan(shares)
            weights = camera_weights(np.asarray(cameras, str))[:, known]
            near, chance = (
                with_interval(one[known].mean(), weights @ one[known] / weights.sum(axis=1))
                for one in (shares, by_chance)
            )
            rows.append(
                {"features": features, "neighbours of": what, "n": known.sum(), "share": near, "by chance": chance}
            )
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "camera_or_class.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
