"""What predict.py reports: on the terminal, in predict.json and at the head of report.html."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from vidcls.data.store import decoding_versions
from vidcls.moderation.policy import DECISIONS, Policy, load_policy, policy_notes
from vidcls.prediction.html_report import STATUSES
from vidcls.prediction.inputs import Plan
from vidcls.prediction.options import PredictOptions
from vidcls.prediction.run import BaseRun
from vidcls.prediction.video_result import NO_POLICY


def find_policy(run: BaseRun, console: Console) -> Policy | None:
    """The run's policy, or None; prints a warning if there is none, or notes about it."""
    if run.policy_path.exists():
        policy = load_policy(run.policy_path, run.classes, run.identity)
        for note in policy_notes(policy, run.policy_fitted_on):
            console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
        return policy
    console.print(f"[yellow]Every video will be marked for review[/yellow], as the run has {NO_POLICY}", soft_wrap=True)
    return None


def result_settings(run: BaseRun, options: PredictOptions, policy: Policy | None) -> dict[str, Any]:
    """All that a result depends on, except for the video."""
    return {
        "model": run.identity,
        "policy": policy.identity if policy else None,
        "classes": run.classes,
        "decoding": decoding_versions(),
        **asdict(run.spec.store),
        **asdict(options),
    }


def report_facts(run: BaseRun, options: PredictOptions, policy: Policy | None) -> dict[str, str]:
    """The run, its policy and how it is used, for the terminal and the top of the report."""
    clip, clips = run.spec.clip, ""
    # The rest of a window is not, which may be most of it.
    seen = f", of which only the first {clip.num_frames} frames are seen" if clip.sampling == "first" else ""
    if clip.clip_seconds is not None:
        several = f"the mean of {clip.num_clips} clips of" if clip.num_clips > 1 else "their middle"
        clips = f", by {several} {clip.clip_seconds:g} s"
    windows = f"windows of {options.window_seconds:g} s every {options.stride_seconds:g} s"
    if options.search == "coarse":
        windows += f", at first every {options.coarse_stride_seconds:g} s"
    aggregation = f"mean of the top {options.top_k}" if options.aggregation == "top_k_mean" else options.aggregation
    return {
        "Run": run.name,
        "Model": run.identity,
        "Policy": f"{policy.identity}, safe class: {policy.safe_class}" if policy else "none",
        "Frames": f"{clip.num_frames} of {clip.resolution} x {clip.resolution} pixels",
        "Classified whole": f"videos up to {options.max_whole_seconds:g} s{clips}{seen}",
        "Longer videos": f"{windows}{seen}, aggregated by {aggregation}",
    }


def print_plan(facts: Mapping[str, str], plan: Plan, ignored: Mapping[str, int], console: Console) -> None:
    others = ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items()))
    done = plan.num_listed - len(plan.videos)
    counts = f"{plan.num_listed} videos" + f", {done} of them classified before" * (done > 0)
    if plan.num_again:
        why = "changed, at another URL, or not read completely before"
        counts += f", {plan.num_again} again, whose rows are replaced: {why}"
    console.print(f"{counts}{f' (ignored {others})' if others else ''}", markup=False, soft_wrap=True)
    for name in ("Classified whole", "Longer videos"):
        console.print(f"{name}: {facts[name]}", soft_wrap=True)


def print_summary(counts: Mapping[tuple[str, str], int], num_missing: int, folder: Path, console: Console) -> None:
    """Prints the number of videos by status and decision, and how many have no result yet."""
    table = pd.DataFrame(0, index=list(STATUSES), columns=list(DECISIONS))
    for (status, decision), count in counts.items():
        table.loc[status, decision] += count
    table["all"] = table.sum(axis=1)
    table.loc["all"] = table.sum()
    total = int(table.loc["all", "all"])
    console.print(f"{total} of {total + num_missing} videos", table.to_string(), sep="\n")
    if num_missing:
        console.print("Run the same command again to continue.")
    if lost := int(table.loc["unfetchable", "all"]):
        console.print(f"{lost} could not be fetched; the same command tries them again.")
    console.print(f"Results: {folder}", markup=False, soft_wrap=True)
    console.print("  predictions.csv  segments.csv  timelines.parquet  report.html")
