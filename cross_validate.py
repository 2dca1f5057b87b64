"""Cross-validates a configuration of train.py: each video is predicted by networks that have not been trained on it.

python cross_validate.py                                the demo videos: 5 folds of creators, 3 repeats
python cross_validate.py experiment=strong data=folder data.source=PATH folds=5 repeats=3 seeds=[0,1,2]
python cross_validate.py protocol=random output=DIR     folds of videos; the same command continues DIR

Each fold is a run of train.py in its own folder, whose test split is the fold. Hydra starts them as the jobs of a
sweep: before that `vidcls.sweeps.cross_validation` draws the folds, and after it writes the table.
"""

import hydra
from omegaconf import DictConfig

from train import main as train
from vidcls.cli import quote_overrides, run_folder
from vidcls.sweeps.cross_validation import drop_last_checkpoints


@hydra.main(version_base="1.3", config_path="conf", config_name="cross_validate")
def main(cfg: DictConfig) -> float | None:
    """One run: a fold of a repeat, with a seed."""
    result: float | None = train(cfg)
    drop_last_checkpoints(run_folder())
    return result


if __name__ == "__main__":
    quote_overrides("debug")
    main()
