"""Decisions of reviewers become labels of training videos; val and test stay as they would be without them.

People review what a network is unsure of. Such videos would bias a test set, and a network trained on their labels
would be tested on them.
"""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vidcls.data.decisions import BAD_FILE, LABEL, UNSURE
from vidcls.errors import UserError

UNRESOLVED = "unresolved"  # where reviewers disagree, beside `vidcls.data.decisions.VERDICTS`
LEFT_OUT = {BAD_FILE: "reviewed: a bad file", UNRESOLVED: "reviewed: reviewers disagree"}
_SHOWN = 20


def resolve(decisions: pd.DataFrame, disagreement: str) -> pd.DataFrame:
    """The verdict and label of each content in `read_decisions`, indexed by ``sha256``; ``unsure`` does not count.

    ``disagreement`` is ``majority`` (a tie is `UNRESOLVED`), ``latest`` or ``drop`` (`UNRESOLVED`).
    """
    voices = decisions[decisions["verdict"] != UNSURE].sort_values("time", kind="stable")
    opinions: dict[str, list[tuple[str, str]]] = {}
    for row in voices.itertuples():
        opinions.setdefault(row.sha256, []).append((row.verdict, row.label))
    resolved = {}
    for sha256, given in opinions.items():
        (first, most), *others = Counter(given).most_common(2)
        if others and (disagreement == "drop" or (disagreement == "majority" and others[0][1] == most)):
            first = UNRESOLVED, ""
        resolved[sha256] = given[-1] if others and disagreement == "latest" else first
    return pd.DataFrame.from_dict(resolved, "index", columns=["verdict", "label"])


def agreement(decisions: pd.DataFrame) -> pd.DataFrame:
    """The agreement of each two reviewers on what both have reviewed: one, other, videos, agreed, Cohen's kappa.

    ``unsure`` and ``bad_file`` count as answers. Kappa is NaN where both always give the same single answer.
    """
    from sklearn.metrics import cohen_kappa_score  # only here: it takes a while

    answers = decisions.assign(answer=decisions["verdict"] + " " + decisions["label"])
    table = answers.pivot(index="sha256", columns="reviewer", values="answer")
    rows = []
    for one, other in combinations(table.columns, 2):
        both = table[[one, other]].dropna()
        if len(both):
            with warnings.catch_warnings(action="ignore"):  # of the division that makes it NaN
                kappa = cohen_kappa_score(both[one], both[other])
            rows.append([one, other, len(both), int((both[one] == both[other]).sum()), kappa])
    return pd.DataFrame(rows, columns=["one", "other", "videos", "agreed", "kappa"])


def apply_decisions(manifest: pd.DataFrame, groups: Sequence[str], resolved: pd.DataFrame) -> pd.DataFrame:
    """A manifest whose training videos have the labels of reviewers, by content; see the top of this file.

    Videos without a label ("") that reviewers have labelled become training videos, unless they or one in their group
    (see `group_videos`) are in val or test; others without a label are removed. Those that reviewers exclude get the
    status ``dropped``.
    """
    found = resolved.reindex(manifest["sha256"]).set_axis(manifest.index)
    held_out = manifest["split"].isin(["val", "test"])
    tied = pd.Series(groups, manifest.index).isin({group for group, held in zip(groups, held_out, strict=True) if held})
    kept = manifest.copy()
    kept.loc[(kept["split"] == "") & ~tied, "split"] = "train"
    reviewed = kept["split"] == "train"
    labelled = reviewed & (found["verdict"] == LABEL)
    kept.loc[labelled, "label"] = found["label"]
    kept.loc[labelled, "label_source"] = "decisions"
    for verdict, reason in LEFT_OUT.items():
        kept.loc[reviewed & (found["verdict"] == verdict), ["status", "reason"]] = ["dropped", reason]
    return kept[kept["label"] != ""].reset_index(drop=True)


def use_decisions(
    manifest: pd.DataFrame,
    groups: Sequence[str],
    decisions: pd.DataFrame,
    disagreement: str,
    classes: Sequence[str],
    console: Console,
) -> pd.DataFrame:
    """`apply_decisions`, with a report of what has changed and of disagreements.

    Raises:
        UserError: a reviewer has given a label that is not in ``classes``.
    """
    if others := sorted(set(decisions["label"]) - {"", *classes}):
        remedy = "Correct the decisions, or name the class in data.classes."
        raise UserError(f"decisions for {', '.join(classes)}", repr(others[0]), remedy, "unknown-classes")
    resolved = resolve(decisions, disagreement)
    kept = apply_decisions(manifest, groups, resolved)
    _print_agreement(decisions, resolved, disagreement, console)
    before = manifest.set_index("path")["label"]
    decided = kept[kept["label_source"] == "decisions"]
    old = before[decided["path"]].to_numpy()
    held_out = kept["split"].isin(["val", "test"]) & kept["sha256"].isin(resolved.index)
    dropped = Counter(kept["reason"][kept["status"] == "dropped"])
    counts = {
        "labels are changed": int(((old != "") & (old != decided["label"])).sum()),
        "labels are confirmed": int((old == decided["label"]).sum()),
        "videos without a label join the training videos": int((old == "").sum()),
        **{f"are left out ({reason})": dropped[reason] for reason in LEFT_OUT.values()},
        "reviewed videos are held out (val, test): these keep the label of the source": int(held_out.sum()),
        "videos without a label are not used: not decided, or held out by their split or creator": len(manifest)
        - len(kept),
        "reviewed videos are not in the source": len(set(resolved.index) - set(manifest["sha256"])),
    }
    for what, count in counts.items():
        if count:
            console.print(f"  {count} {what}", highlight=False, soft_wrap=True)
    return kept


def _print_agreement(decisions: pd.DataFrame, resolved: pd.DataFrame, disagreement: str, console: Console) -> None:
    pairs = agreement(decisions)
    voices = decisions[decisions["verdict"] != UNSURE].groupby("sha256")
    disputed = [(sha256, rows) for sha256, rows in voices if len(rows[["verdict", "label"]].drop_duplicates()) > 1]
    console.print(
        f"{len(decisions)} decisions of {decisions['reviewer'].nunique()} reviewers on "
        f"{decisions['sha256'].nunique()} videos; {len(disputed)} disputed (data.disagreement={disagreement})",
        highlight=False,
        soft_wrap=True,
    )
    if len(pairs):
        table = Table("reviewer", "other reviewer", "videos", "agreed", "Cohen's kappa", title="Agreement")
        for row in pairs.head(_SHOWN).itertuples():
            kappa = "-" if math.isnan(row.kappa) else f"{row.kappa:.2f}"
            table.add_row(*map(Text, (row.one, row.other, str(row.videos), str(row.agreed), kappa)))
        console.print(table)
    if disputed:
        table = Table("video", "decisions", "resolved", title="Disputed")
        for sha256, rows in disputed[:_SHOWN]:
            said = ", ".join(f"{row.reviewer}: {row.label or row.verdict}" for row in rows.itertuples())
            verdict, label = resolved.loc[sha256]
            table.add_row(*map(Text, (rows["path"].iloc[0], said, label or verdict)))
        console.print(table)
    for name, count in {"pairs of reviewers": len(pairs), "disputed videos": len(disputed)}.items():
        if count > _SHOWN:
            console.print(f"... and {count - _SHOWN} more {name}")
