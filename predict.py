"""Runs a trained network over new videos, short or long, and says of each what to do.

python predict.py run=DIR input=PATH output=DIR         PATH is a video, a folder or a glob in quotes
The same command continues an interrupted run: no video is judged twice.
"""

import os
from pathlib import Path

import hydra
from omegaconf import DictConfig

from vidcls.cli import quote_overrides, trusted_packages, user_errors_exit


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
@user_errors_exit
def main(cfg: DictConfig) -> None:
    """From a run folder and videos to a folder of results."""
    # The network's threads must not spin while they wait, as decoders need the cores. To be said before torch comes.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Imported here: decoding processes import this file again, and should not pay for torch.
    from rich.console import Console

    from vidcls.data.ingest import DecodeLimits
    from vidcls.data.sources import find_videos
    from vidcls.errors import check_integer
    from vidcls.prediction import pipeline as prediction
    from vidcls.prediction.html_report import write_report
    from vidcls.prediction.journal import PredictionFolder
    from vidcls.prediction.predictor import Predictor, load_run

    console = Console()
    limits, most = DecodeLimits(**cfg.data.decode), check_integer("report.most", cfg.report.most)
    paths, files, ignored = find_videos(str(cfg.input))
    trained = load_run(Path(str(cfg.run)), trusted_packages(cfg))
    settings = prediction.choose_settings(cfg.predict, trained)
    policy = prediction.choose_policy(trained, console)
    judge = Predictor(trained, cfg.accelerator)
    identity = prediction.identity(trained, settings, policy)
    prediction.print_plan(settings, paths, ignored, console)
    folder = PredictionFolder(Path(str(cfg.output)), trained.classes, identity)
    work = prediction.Prediction(trained, judge, settings, policy, folder)
    try:
        work.run(paths, files, limits, console)
    finally:  # after Ctrl-C too: what is done is there to be used
        folder.close()
        facts = prediction.facts(trained, settings, policy)
        harmless = policy.harmless if policy else None
        write_report(folder.folder, trained.classes, harmless, facts, most=most, blur=cfg.report.blur)
        prediction.print_summary(folder, paths, console)


if __name__ == "__main__":
    quote_overrides("run", "input", "output")
    main()
