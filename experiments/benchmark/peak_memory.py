"""Trains one epoch on a store of synthetic clips and prints the process's peak memory in MB; called by bench.py."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from hydra.utils import instantiate

from experiments.tools import compose_train, noise_videos
from vidcls.training import loop as run


def main() -> None:
    """Arguments: a scratch folder, and the number of videos."""
    folder, videos = Path(sys.argv[1]), int(sys.argv[2])
    small = ["model.encoder.channels=[4,8]", "trainer.max_epochs=1", "data.batch_size=16"]  # the data is what counts
    cfg = compose_train(
        folder / f"run{videos}", "data=folder", "data.source=none", f"cache_dir={folder / 'cache'}", *small
    )
    datamodule = noise_videos(instantiate(cfg.data), videos)
    run.fit(cfg, run.build_module(cfg, datamodule), datamodule)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


if __name__ == "__main__":
    main()
