"""Finished runs by their folders: one, or several as an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

from vidcls.prediction.ensemble import load_ensemble
from vidcls.prediction.predictor import BaseRun, LoadedRun, load_single


@overload
def load_run(folder: Path | str, trust: Sequence[str] = ()) -> LoadedRun: ...
@overload
def load_run(folder: Sequence[Path | str], trust: Sequence[str] = ()) -> BaseRun: ...
def load_run(folder: Path | str | Sequence[Path | str], trust: Sequence[str] = ()) -> BaseRun:
    """Reads the finished run in ``folder``, or several as an ensemble that averages their probabilities.

    Models may come only from this package and those in ``trust``.

    Raises:
        UserError: it is not the folder of a finished run, its model is not of a trusted package, or runs do not fit
            together, see `vidcls.prediction.ensemble`.
    """
    if isinstance(folder, (str, Path)):
        return load_single(folder, trust)
    return load_single(folder[0], trust) if len(folder) == 1 else load_ensemble(folder, trust)
