"""Chooses videos that are worth a label: some at random, some that the network is unsure of, some unlike all others.

python select_videos.py run=DIR input=PATH count=50     classifies as predict.py does, then writes selected.csv
python select_videos.py run=DIR input=PATH output=DIR   with the output of predict.py, nothing is classified again
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from predict import main as predict
from vidcls.cli import folders_of, quote_overrides, trusted_packages, user_errors_exit


@hydra.main(version_base="1.3", config_path="conf", config_name="select_videos")
@user_errors_exit
def main(cfg: DictConfig) -> None:
    """From a run folder and videos to a list of those to label."""
    from vidcls.data.options import FetchLimits, list_paths
    from vidcls.prediction.options import SelectOptions

    options = SelectOptions(cfg.count, cfg.random_share, cfg.diverse_share, cfg.seed)
    files = list_paths("decisions", cfg.decisions)
    decided = set()
    if files:
        from vidcls.data.decisions import read_decisions

        decided = set(read_decisions(files)["sha256"])
    predict(cfg)

    from rich.console import Console

    from vidcls.prediction.labelling import write_selection
    from vidcls.prediction.loading import load_run

    run, limits = load_run(folders_of("run", cfg.run), trusted_packages(cfg)), FetchLimits(**(cfg.data.fetch or {}))
    write_selection(run, Path(str(cfg.output)), str(cfg.input), limits, options, decided, Console())


if __name__ == "__main__":
    quote_overrides("debug")
    main()
