"""Runs a trained network over new videos, short or long, and decides for each: allow, review or block.

python predict.py run=DIR input=PATH output=DIR         PATH is a video, a folder, a list or a glob in quotes; or a URL
python predict.py run=[DIR,DIR] input=PATH output=DIR   the mean of the probabilities of several runs
The same command continues an interrupted run: no video is classified twice.
"""

import os
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import hydra
from omegaconf import DictConfig

from vidcls.cli import quote_overrides, trusted_packages, user_errors_exit


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
@user_errors_exit
def main(cfg: DictConfig) -> None:
    """From a run folder and videos to a folder of results."""
    # The network's threads must not spin while they wait, as decoders need the cores. To be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vidcls.data.options import DecodeLimits, EngineOptions, FetchLimits
    from vidcls.errors import check_flag, check_integer, check_number
    from vidcls.prediction.journal import Journal, check_output
    from vidcls.prediction.options import PredictOptions
    from vidcls.training.run_folder import check_runs

    folders, output = check_runs(cfg), Path(str(cfg.output))
    options, engine = PredictOptions(**(cfg.predict or {})), EngineOptions(**cfg.engine)
    limits, fetch_limits = DecodeLimits(**(cfg.data.decode or {})), FetchLimits(**(cfg.data.fetch or {}))
    report: dict[str, Any] = {**cfg.report}
    check_integer("report.max_videos", report["max_videos"])
    check_number("report.loops_megabytes", report["loops_megabytes"])
    check_flag("report.blur", report["blur"])
    check_output(output)

    from vidcls.prediction.inputs import Inputs, plan_videos

    inputs = Inputs(str(cfg.input), fetch_limits)
    if engine.name == "ray":
        from vidcls.data.cluster import start_ray

        Thread(target=import_module, args=["torch"], daemon=True).start()  # both take seconds
        start_ray(engine, limits)

    # torch is imported from here on
    from rich.console import Console

    from vidcls.prediction import summary
    from vidcls.prediction.coarse_search import CoarseSearch
    from vidcls.prediction.drift import predicted_drift
    from vidcls.prediction.html_report import write_report
    from vidcls.prediction.loading import load_run
    from vidcls.prediction.result_files import prediction_columns, write_result_files

    console = Console()
    run = load_run(folders, trusted_packages(cfg))
    prediction_columns(run.classes)  # refuses reserved names
    options = options.complete(run.spec.clip.clip_seconds, run.manifest)
    policy = summary.find_policy(run, console)
    facts = summary.report_facts(run, options, policy)
    costs = {"timeout_seconds": limits.timeout_seconds, "memory_gigabytes": limits.memory_gigabytes}
    CoarseSearch(options, policy)  # refuses one without a policy
    journal = Journal(output, summary.result_settings(run, options, policy), costs)
    videos: dict[str, str] = {}
    try:
        plan = plan_videos(inputs, journal, console)
        videos = plan.videos
        summary.print_plan(facts, plan, inputs.ignored, console)
        common = videos, run, cfg.accelerator, options, policy, journal, limits, fetch_limits
        if engine.name == "ray":
            from vidcls.prediction.ray_engine import predict_on_ray

            predict_on_ray(*common, engine, console)
        else:
            from vidcls.prediction.pipeline import predict_videos

            predict_videos(*common, console)
        for note in predicted_drift(run, journal):
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    finally:  # also after Ctrl-C: what is done can be used
        write_result_files(journal, run.classes)
        safe_class = policy.safe_class if policy else None
        write_report(journal, run.classes, safe_class, facts, **report)
        summary.print_summary(journal.counts(), journal.num_missing(videos), output, console)
        journal.close()


if __name__ == "__main__":
    quote_overrides("debug")
    main()
