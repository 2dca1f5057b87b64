"""Several runs as one: the mean of their probabilities.

Each member's probabilities are first calibrated by the temperature of its policy.json, if it has one: an overconfident
network would otherwise outvote the others. All members use the same stored frames, decoded once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from vidcls.data.videos import Videos
from vidcls.errors import UserError
from vidcls.metrics.calibration import calibrate, safe_log
from vidcls.metrics.predictions import Predictions
from vidcls.prediction.members import ensemble_identity, results_folder
from vidcls.prediction.predictor import Predictor
from vidcls.prediction.run import BaseRun, LoadedRun


@dataclass(frozen=True, kw_only=True)
class Ensemble(BaseRun):
    """Finished runs whose probabilities are averaged. What belongs to one run, such as a manifest, is the first's.

    Its predictions are the mean of the members', if all have them for the same videos.
    """

    runs: tuple[LoadedRun, ...]

    @property
    def members(self) -> tuple[LoadedRun, ...]:
        return self.runs

    @property
    def name(self) -> str:
        temperatures = [f" (temperature {run.temperature:.3f})" if run.temperature else "" for run in self.runs]
        return f"mean of {', '.join(run.name + text for run, text in zip(self.runs, temperatures, strict=True))}"

    def make_predictor(self, accelerator: str | None = None) -> Predictor:
        return EnsemblePredictor(self, accelerator)

    def average(self, probabilities: Sequence[Float[np.ndarray, "N K"]]) -> Float[np.ndarray, "N K"]:
        pairs = [(p, run.temperature) for p, run in zip(probabilities, self.runs, strict=True)]
        calibrated = [p.astype(np.float64) if t is None else calibrate(p, t) for p, t in pairs]
        return np.mean(calibrated, axis=0).astype(np.float32)


def join_runs(runs: Sequence[LoadedRun]) -> Ensemble:
    """The ensemble of ``runs``, in this order; raises `UserError` if they use different stored frames."""
    first = runs[0]
    for run in runs[1:]:
        if run.spec.store != first.spec.store:
            stores = [
                f"{one.spec.store.stored_frames} of {one.spec.store.stored_resolution} pixels in {one.folder}"
                for one in (first, run)
            ]
            raise UserError(
                "runs that are trained on the same stored frames, which the ensemble decodes once",
                " and ".join(stores),
                "Train them with the same data.store.num_frames, data.store.resolution, data.sampling and clips.",
                "ensemble-store",
            )
    ensemble = Ensemble(
        folder=results_folder(runs),
        identity=ensemble_identity(runs),
        config=first.config,
        classes=first.classes,
        manifest=first.manifest,
        temperature=None,
        spec=first.spec,
        step=max(run.step for run in runs),
        oof_predictions=None,
        val_predictions=None,
        runs=tuple(runs),
    )
    oof = _average([(run.oof_predictions, run.fitted_splits) for run in runs], ensemble)
    val = _average([(run.val_predictions, ("val",)) for run in runs], ensemble)
    return replace(ensemble, oof_predictions=oof, val_predictions=val)


def _average(known: Sequence[tuple[Predictions | None, tuple[str, ...]]], ensemble: Ensemble) -> Predictions | None:
    """The mean of the members' predictions of these splits; None unless all have them for the same videos, in order."""
    fitted = [
        run.manifest[run.manifest["split"].isin(splits)] for run, (_, splits) in zip(ensemble.runs, known, strict=True)
    ]
    keys = [list(rows[["sha256", "split", "status"]].itertuples(index=False, name=None)) for rows in fitted]
    found = [one for one, _ in known if one is not None]
    if len(found) < len(known) or any(key != keys[0] for key in keys):
        return None
    return _predictions(found, ensemble)


def _predictions(found: Sequence[Predictions], ensemble: Ensemble) -> Predictions:
    labels, mean = found[0].labels, ensemble.average([one.probabilities for one in found])
    return Predictions(labels, mean, -safe_log(mean)[np.arange(len(labels)), labels])


class EnsemblePredictor(Predictor):
    """The networks of an ensemble over new videos; see `Predictor`."""

    def __init__(self, run: Ensemble, accelerator: str | None = None) -> None:
        self._ensemble, self.spec = run, run.spec
        self._predictors = [member.make_predictor(accelerator) for member in run.runs]
        self.device = self._predictors[0].device

    def outputs(self, stacks: Sequence[UInt8[np.ndarray, "_ H W 3"]]) -> Float[np.ndarray, "B K"]:
        return self._ensemble.average([predictor(stacks) for predictor in self._predictors])

    def classify_split(self, videos: Videos, split: str) -> tuple[Predictions, Float[np.ndarray, "N 0"]]:
        found = []
        for run, predictor in zip(self._ensemble.runs, self._predictors, strict=True):
            # Each takes its own number of frames from what is stored.
            own = run.videos(videos.options.source, videos.options.cache_dir)
            own.load_manifest(videos.manifest)
            found.append(predictor.predict_split(own, split))
        mean = _predictions(found, self._ensemble)
        return mean, np.empty((len(mean.labels), 0), np.float32)
