"""Trains and tests a video classifier.

python train.py model=cnn_lstm                          the demo videos
python train.py data=folder data.source=PATH            your own: a folder, a .zip or a .csv
python train.py resume=DIR                              continue an interrupted run
python train.py -m data.num_frames=8,16 seed=0,1        a sweep; with sweep.resume=DIR, continue one
"""

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Thread

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from vidcls.cli import quote_overrides, user_errors_exit
from vidcls.sweeps.jobs import resumable_job


def import_ahead() -> None:
    """Imports what training needs; what goes wrong shows where it is imported again."""
    with suppress(Exception):
        import_module("vidcls.training.loop")


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@user_errors_exit
@resumable_job
def main(cfg: DictConfig) -> float | None:
    """One run, from its configuration to its folder; gives its objective, for sweeps that search."""
    from rich.console import Console

    from vidcls.training.launch import end_with_others, is_rank_zero
    from vidcls.training.run_folder import manifest_path, open_run

    end_with_others()
    cfg = open_run(cfg)  # mistakes in the options show here, before anything heavy is imported

    from vidcls.data.preparation import prepare_videos

    Thread(target=import_ahead, daemon=True).start()  # takes seconds, in which videos are decoded
    console = Console(quiet=not is_rank_zero())
    manifest = manifest_path(Path(cfg.run_dir))
    prepared = prepare_videos(instantiate(cfg.data), console, manifest) if is_rank_zero() else None

    from vidcls.training import loop
    from vidcls.training.artifacts import write_results

    loop.silence_lightning()
    datamodule = loop.build_datamodule(cfg, prepared)
    module = loop.build_module(cfg, datamodule)
    console.print(
        f"Training {module.num_trainable:,} parameters; results go to {cfg.run_dir}", markup=False, soft_wrap=True
    )
    trainer, val = loop.fit(cfg, module, datamodule)
    predictions = {"val": val}
    if cfg.test:
        predictions |= loop.test(trainer, module, datamodule, ("train", "test"))
    return write_results(cfg, trainer, datamodule, predictions, console)


if __name__ == "__main__":
    quote_overrides("debug")  # of which one choice is called true
    main()
