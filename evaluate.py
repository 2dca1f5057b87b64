"""Evaluates a trained run on its held-out videos or on others, and fits a policy: what to allow, review and block.

python evaluate.py run=DIR split=test                   metrics, intervals, curves, the worst errors
python evaluate.py run=DIR data.source=PATH             the same on other videos of the same classes
python evaluate.py run=[DIR,DIR]                        the mean of the probabilities of several runs
python evaluate.py run=DIR policy.safe_class=safe policy.target.harmful.recall=0.95     and a policy.json, fitted on val
"""

import hydra
from omegaconf import DictConfig

from vidcls.cli import allow_new_keys, folders_of, quote_overrides, trusted_packages, user_errors_exit


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@user_errors_exit
def main(cfg: DictConfig) -> None:
    """From a run folder to how good it is."""
    # Imported here: options are checked before torch is imported.
    from rich.console import Console

    from vidcls.evaluation.options import plan_evaluation

    plan = plan_evaluation(cfg)

    from vidcls.evaluation.results import (
        choose_policy,
        evaluate_split,
        predict_held_out,
        prepare_evaluation,
        result_folder,
        write_split,
    )
    from vidcls.evaluation.summary_tables import print_evaluation
    from vidcls.prediction.loading import load_run

    console, source = Console(), cfg.data.source
    run = load_run(folders_of("run", cfg.run), trusted_packages(cfg))
    videos = prepare_evaluation(run, plan, source, cfg.cache_dir, console)
    predictor = run.make_predictor(cfg.accelerator)
    found = {split: predict_held_out(run, predictor, videos, split, source) for split in plan.splits}
    predictions = {split: of_split for split, (of_split, _) in found.items()}
    policy = choose_policy(run, plan.policy, videos, predictions, console)
    results = {}
    for split, (of_split, vectors) in found.items():
        folder = result_folder(run, source, split)
        results[split] = evaluate_split(run, videos, split, of_split, vectors, policy, folder)
        write_split(run, videos, split, results[split], policy, source)
    print_evaluation(run, results, policy, console)


if __name__ == "__main__":
    quote_overrides("policy.safe_class", "debug")
    allow_new_keys("policy.target")
    main()
