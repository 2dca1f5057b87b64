"""Judges a trained run on its held-out videos or on others, and fits what to do about a video.

python evaluate.py run=DIR split=test                   figures, intervals, curves, the worst errors
python evaluate.py run=DIR data.source=PATH             the same on other videos of the same classes
python evaluate.py run=DIR policy.harmless=safe policy.target.harmful.recall=0.95       and a policy.json, from val
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from vidcls.cli import allow_new_keys, quote_overrides, trusted_packages, user_errors_exit


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@user_errors_exit
def main(cfg: DictConfig) -> None:
    """From a run folder to what it is worth."""
    from rich.console import Console

    from vidcls.evaluation.options import plan_evaluation

    plan = plan_evaluation(cfg)

    # Imported here: mistakes in the options show before torch is imported, and decoding processes, which import this
    # file again, never import it.
    from vidcls.evaluation import evaluator as evaluation
    from vidcls.prediction.predictor import Predictor, load_run

    console = Console()
    trained = load_run(Path(str(cfg.run)), trusted_packages(cfg))
    datamodule = evaluation.prepare_data(cfg, trained, plan.splits, console)
    predictor = Predictor(trained, cfg.accelerator)
    predictions = {split: predictor.predict_split(datamodule, split) for split in plan.splits}
    policy = evaluation.choose_policy(plan.policy, trained, datamodule, predictions)
    evaluation.write_evaluation(cfg, trained, datamodule, predictions, policy, console)


if __name__ == "__main__":
    quote_overrides("run", "data.source", "cache_dir")
    allow_new_keys("policy.target")
    main()
