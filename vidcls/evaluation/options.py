"""The options of evaluate.py, checked against the run folder before torch is imported."""

import os
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vidcls.cli import key_name
from vidcls.data.archive import is_archive
from vidcls.data.decoding.result import USABLE
from vidcls.data.options import SPLITS, DataOptions, check_class_names
from vidcls.data.sources import list_videos
from vidcls.data.urls import refuse_credentials
from vidcls.errors import UserError, check_choice, check_number
from vidcls.moderation.policy import check_targets
from vidcls.prediction.members import check_splits, read_members, results_folder
from vidcls.training.logistic_options import is_logistic
from vidcls.training.run_config import read_config
from vidcls.training.run_folder import check_runs, policy_path

DEFAULT_SAFE_CLASS, DEFAULT_REVIEW_MARGIN = "safe", 0.2


@dataclass(frozen=True)
class PolicyOptions:
    """The options of `vidcls.moderation.policy.fit_policy`."""

    safe_class: str
    targets: dict[str, dict[str, float]]
    review_margin: float


@dataclass(frozen=True)
class EvaluationPlan:
    """What to evaluate."""

    split: str  # the option
    splits: list[str]  # to predict: that one, and val and test where a policy is fitted and reported on
    policy: PolicyOptions | None  # None keeps the run's policy, if any


def plan_evaluation(cfg: DictConfig) -> EvaluationPlan:
    """Checks evaluate.py's configuration against the run folder, or those of an ensemble.

    Raises:
        UserError: there is no such run, split, source or class, an option is out of range, or runs cannot be averaged.
    """
    members = read_members(check_runs(cfg))
    folder = members[0].folder
    check_choice("split", cfg.split, SPLITS)
    if not os.access(folder, os.W_OK):  # results go there
        raise UserError("a run folder that can be written", str(folder), "Copy it to where you may write.", "run")
    run_config = read_config(folder)
    manifest, classes = members[0].manifest, members[0].classes
    check_class_names(classes)
    policy = _policy_options(cfg.policy, classes, has_policy=policy_path(results_folder(members)).exists())
    if cfg.data.source is not None:
        refuse_credentials("data.source", str(cfg.data.source))
        if _policy_requested(cfg.policy):
            expected = "policy.* without data.source, as a policy is fitted on the run's own val videos"
            remedy = "Fit the policy first, in a call without data.source; this call then reports on it."
            raise UserError(expected, f"data.source={cfg.data.source}", remedy, "policy-source")
        if not is_archive(str(cfg.data.source)):  # it must be extracted first
            options = DataOptions(str(cfg.data.source), "", creator_pattern=run_config.data.creator_pattern)
            list_videos(options, classes, refuse_others=True)
        return EvaluationPlan(cfg.split, [cfg.split], None)
    held = set(manifest.loc[manifest["status"].isin(USABLE), "split"])
    intact_val = manifest[(manifest["split"] == "val") & (manifest["status"] == "ok")]
    is_out_of_fold = len(members) == 1 and is_logistic(run_config.optim)
    if policy is not None and intact_val.empty and not is_out_of_fold:
        if _policy_requested(cfg.policy):
            remedy = "Train with more val videos."
            raise UserError("intact val videos, to fit a policy to", "none in the run", remedy, "policy-without-val")
        policy = None
    if cfg.split not in held:
        remedy = f"Give split={'test' if 'test' in held else 'val'}, or other videos with data.source=PATH."
        raise UserError(f"videos in the run's {cfg.split} split", "none", remedy, "split")
    wanted = {cfg.split}
    if policy is not None:
        # The policy is reported on test too, except for jobs of a sweep, which must not be chosen by it.
        wanted |= {"val", "test"} if run_config.test else {"val"}
    splits = [split for split in SPLITS if split in wanted & held]
    check_splits(members, splits)
    return EvaluationPlan(cfg.split, splits, policy)


def _policy_requested(options: DictConfig) -> bool:
    return any(options[name] is not None for name in ("safe_class", "review_margin")) or bool(options.target)


def _policy_options(options: DictConfig, classes: list[str], has_policy: bool) -> PolicyOptions | None:
    # None where no option is set, and the run has a policy or its safe class is not known.
    if not _policy_requested(options) and (has_policy or DEFAULT_SAFE_CLASS not in classes):
        return None
    safe_class = str(DEFAULT_SAFE_CLASS if options.safe_class is None else options.safe_class)
    plain: Any = OmegaConf.to_container(options, resolve=True)
    targets = plain["target"] or {}
    if not isinstance(targets, dict):
        raise UserError("policy.target.CLASS.recall=0.95", repr(targets), "Name a class.", "policy.target")
    review_margin = DEFAULT_REVIEW_MARGIN if options.review_margin is None else options.review_margin
    review_margin = check_number("policy.review_margin", review_margin, 0.0, 1.0, open_ends=True)
    targets = check_targets(classes, safe_class, {key_name(str(key)): target for key, target in targets.items()})
    return PolicyOptions(safe_class, targets, review_margin)
