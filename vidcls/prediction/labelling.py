"""selected.csv and to_label.csv: which of the videos that predict.py has classified should be labelled."""

import json
from collections import Counter
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from vidcls.data.options import FetchLimits
from vidcls.data.urls import redact
from vidcls.errors import UserError
from vidcls.files import csv_bytes, readable, write_atomically, write_json
from vidcls.metrics.label_selection import RANDOM, select_rows
from vidcls.prediction.drift import stack_vectors
from vidcls.prediction.inputs import Inputs
from vidcls.prediction.journal import Journal
from vidcls.prediction.options import SelectOptions
from vidcls.prediction.run import BaseRun


def write_selection(
    run: BaseRun,
    output: Path,
    text: str,
    limits: FetchLimits,
    options: SelectOptions,
    decided: Collection[str],
    console: Console,
) -> None:
    """Selects among the decoded videos of ``input=`` (``text``) that are in the journal of ``output``.

    Contents in ``decided``, the run's own videos and names that are not UTF-8 are left out; copies count once.

    Raises:
        UserError: none are left.
    """
    locations, skipped = dict[str, str](), Counter[str]()
    for one in Inputs(text, limits):
        if readable(one.location) == one.location:
            locations[readable(one.name)] = one.location
        else:  # lists cannot hold it, and training ignores it
            skipped["with names that are not UTF-8"] += 1
    settings = json.loads((output / "predict.json").read_text())
    known = set(decided).union(*(member.manifest["sha256"] for member in run.members))
    rows, vectors = [], []
    with closing(Journal(output, settings)) as journal:
        for row, vector in journal.contents(locations):
            if row["sha256"] in known:
                skipped["decided" if row["sha256"] in decided else "of the run itself"] += 1
            else:
                rows.append([row["path"], row["sha256"], *(float(row[name]) for name in run.classes)])
                vectors.append(vector)
    if not rows:
        got = ", ".join(f"{count} {kind}" for kind, count in skipped.items()) or "none that could be decoded"
        raise UserError("videos without a label in input=", got, "Give others.", "nothing-to-select")
    table = pd.DataFrame(rows, columns=["path", "sha256", *run.classes])
    stacked = stack_vectors(run, vectors)
    complete = stacked.shape[1] > 0
    if not complete and options.diverse_share:
        console.print("The run has no clip vectors: the most uncertain videos take the place of diverse ones.")
    chosen = select_rows(
        table[run.classes].to_numpy(np.float64),
        stacked,
        run.reference.vectors.astype(np.float64) if complete and run.reference else np.empty((0, 0)),
        options.count,
        random_share=options.random_share,
        diverse_share=options.diverse_share,
        seed=options.seed,
    )
    selected = table.loc[[one.row for one in chosen], ["path", "sha256"]].reset_index(drop=True)
    selected["reason"] = [one.reason for one in chosen]
    selected["score"] = [f"{one.score:.9g}" for one in chosen]
    reasons = Counter(one.reason for one in chosen)
    probability = f"{reasons[RANDOM] / len(table):.9g}"
    selected["inclusion_probability"] = [probability if one.reason == RANDOM else "" for one in chosen]
    write_atomically(output / "selected.csv", csv_bytes(selected))
    listed = pd.DataFrame({"path": [redact(locations[path]) for path in selected["path"]], "label": ""})
    write_atomically(output / "to_label.csv", csv_bytes(listed))
    about: dict[str, Any] = vars(options) | {"model": run.identity, "videos": len(table), "left_out": dict(skipped)}
    write_json(output / "selection.json", about)
    parts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    left_out = "".join(f"; left out: {count} {kind}" for kind, count in skipped.items())
    console.print(f"{len(selected)} of {len(table)} videos selected: {parts}{left_out}", highlight=False)
    console.print(f"Results: {output}\n  selected.csv  to_label.csv", markup=False, soft_wrap=True)
