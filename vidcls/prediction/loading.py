"""Finished runs by their folders: one, or several as an ensemble. Runs no code of a folder's."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from vidcls.errors import UserError
from vidcls.files import hash_file
from vidcls.prediction.ensemble import join_runs
from vidcls.prediction.members import Member, read_members
from vidcls.prediction.run import BaseRun, LoadedRun
from vidcls.training.checkpoint import load_checkpoint, rebuild
from vidcls.training.reference import read_reference
from vidcls.training.run_folder import best_checkpoint, manifest_path


@overload
def load_run(folder: Path | str, trust: Sequence[str] = ()) -> LoadedRun: ...
@overload
def load_run(folder: Sequence[Path | str], trust: Sequence[str] = ()) -> BaseRun: ...
def load_run(folder: Path | str | Sequence[Path | str], trust: Sequence[str] = ()) -> BaseRun:
    """Loads the finished run in ``folder``, or several as an ensemble that averages their probabilities.

    Models may come only from this package and those in ``trust``.

    Raises:
        UserError: it is not the folder of a finished run, its model is not trusted, or the runs cannot be averaged.
    """
    folders = [Path(folder)] if isinstance(folder, (str, Path)) else [Path(one) for one in folder]
    runs = [_load_member(member, trust) for member in read_members(folders)]
    return join_runs(runs) if len(runs) > 1 else runs[0]


def _load_member(member: Member, trust: Sequence[str]) -> LoadedRun:
    checkpoint = load_checkpoint(best_checkpoint(member.folder))
    if not (member.folder / "metrics.json").is_file():  # which is written last
        warnings.warn(
            f"{member.folder} has not finished training: this is its best epoch so far, which another may replace. "
            f"python train.py resume={member.folder} continues it.",
            stacklevel=3,
        )
        if hash_file(best_checkpoint(member.folder))[:12] != member.identity:
            got = f"{member.folder}, whose best epoch was replaced meanwhile"
            raise UserError("a run that stays as it is while it is read", got, "Repeat the command.", "changed-run")
    if others := sorted(set(member.manifest["label"]) - set(checkpoint.spec.classes)):
        got = f"{manifest_path(member.folder)}: the run knows no class {others[0]}"
        raise UserError("a run's manifest.csv", got, "Check the path.", "bad-manifest")
    model, preprocess = rebuild(checkpoint, trust, compiled=member.config.compile)  # as it was tested
    return LoadedRun(
        **vars(member) | {"classes": list(checkpoint.spec.classes)},  # also those of which the manifest has no video
        spec=checkpoint.spec,
        step=checkpoint.step,
        oof_predictions=checkpoint.oof_predictions,
        val_predictions=checkpoint.val_predictions,
        reference=read_reference(member.folder, member.identity, model),
        model=model,
        preprocess=preprocess,
    )
