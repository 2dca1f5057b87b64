"""What evaluate.py prints."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vidcls.evaluation.results import SplitResult
from vidcls.moderation.policy import Policy, policy_notes
from vidcls.prediction.run import BaseRun

FEW_CREATORS = 20  # with fewer, videos are hardly independent: see docs/evaluation.md


def print_evaluation(run: BaseRun, results: dict[str, SplitResult], policy: Policy | None, console: Console) -> None:
    """Prints the metrics of each split, the policy and its outcomes."""
    classes = run.classes
    columns = {
        split + " (out-of-fold)" * (run.refit and result.folder.name == "val"): _metric_cells(result.metrics)
        for split, result in results.items()
    }
    console.print(_by_split(f"Metrics of {run.name}", columns))
    for result in results.values():
        for note in result.notes:
            console.print(note, markup=False, soft_wrap=True)
    if policy is None:
        needed = "name the class that needs no action with policy.safe_class=CLASS"
        advice = f"No policy. To fit one, {needed}, one of {', '.join(classes)}"
        console.print(advice, markup=False, soft_wrap=True)
    else:
        _print_policy(policy, run, results, console)
    for result in results.values():
        console.print(f"Results: {result.folder}", markup=False, soft_wrap=True)


def _print_policy(policy: Policy, run: BaseRun, results: dict[str, SplitResult], console: Console) -> None:
    fitted_on = run.policy_fitted_on
    before, after = policy.calibration_error["before"], policy.calibration_error["after"]
    console.print(
        f"Policy {policy.identity}: temperature {policy.temperature:.3f} (ECE on {sum(policy.support.values())} "
        f"{fitted_on} predictions {before:.3f}, calibrated {after:.3f}); safe class {policy.safe_class}",
        markup=False,
        soft_wrap=True,
    )
    table = Table()
    for column in ("harmful class", "review from", "block from", "targets"):
        table.add_column(column)
    for name, review in policy.review.items():
        targets = ", ".join(f"{metric} {value:g}" for metric, value in policy.targets.get(name, {}).items()) or "-"
        table.add_row(Text(name), f"{review:.3f}", f"{policy.block[name]:.3f}", targets)
    console.print(table)
    for note in [*policy_notes(policy, fitted_on), *_block_notes(policy), *_creator_notes(policy, run)]:
        console.print(note, markup=False, soft_wrap=True)
    columns = {}
    for split, result in results.items():
        fitted = " (fitted)" if result.folder.name in run.held_out_splits else ""  # the run's own videos
        if result.policy_report is not None:
            columns[split + fitted] = _outcome_cells(result.policy_report)
    console.print(_by_split("What the policy would do", columns))


def _block_notes(policy: Policy) -> Iterator[str]:
    for name in policy.review:
        if policy.block[name] <= 0.5:
            yield (
                f"Note for {name}: videos are blocked from a score of {policy.block[name]:.3f} on, even "
                f"where {policy.safe_class} is more probable. Set or raise policy.target.{name}.precision to raise it."
            )


def _creator_notes(policy: Policy, run: BaseRun) -> Iterator[str]:
    fitted_on = run.policy_fitted_on
    intact = run.manifest[run.manifest["split"].isin(run.held_out_splits) & (run.manifest["status"] == "ok")]
    for name in policy.targets:
        creators = set(intact.loc[intact["label"] == name, "creator"]) - {""}
        if policy.targets[name] and 0 < len(creators) < FEW_CREATORS:
            count = f"{len(creators)} creator{'s' * (len(creators) > 1)}"
            yield (
                f"Note for {name}: its {fitted_on} videos are of {count}. The 95 % confidence in its targets assumes "
                "independent videos, and those of one creator are alike."
            )


def _by_split(title: str, columns: dict[str, dict[str, str]]) -> Table:
    # A column per split, as there are more metrics, and terminals may be only 80 characters wide.
    table = Table("", title=Text(title), title_justify="left")
    for split in columns:
        table.add_column(split, justify="right")
    for name in next(iter(columns.values())):
        table.add_row(name, *(cells[name] for cells in columns.values()))
    return table


def _metric_cells(metrics: dict[str, Any]) -> dict[str, str]:
    resampled = metrics["bootstrap_ci95"]
    return {
        "videos": str(metrics["n"]),
        "accuracy": _number(metrics["accuracy"]),
        "  95 %, Wilson": _interval(metrics["accuracy_ci95"]),
        "  95 %, resampled": f"{_interval(resampled['accuracy'])} ({resampled['unit']})",
        "macro F1": _number(metrics["macro_f1"]),
        "AUROC": _number(metrics["auroc"]),
        "calibration error": _number(metrics["calibration_error"]),
        "loss": _number(metrics["loss"]),
    }


def _outcome_cells(report: dict[str, Any]) -> dict[str, str]:
    cells = {"videos": str(report["n"]), "review load": f"{report['review_load']:.1%}"}
    for name in ("harmful_allowed", "safe_blocked"):
        rate = report[name]
        cells[f"{name.replace('_', ' ')} (95 %)"] = f"{rate['count']} of {rate['of']} ({_interval(rate['ci95'])})"
    return cells


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: list[float] | None) -> str:
    if interval is None or interval[0] == interval[1]:  # without any error, a bootstrap interval has no width
        return "-"
    return f"{interval[0]:.2f} to {interval[1]:.2f}"
