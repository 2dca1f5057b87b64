"""optim=logistic: the output layer as a converged logistic regression on the features of a frozen encoder."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from vidcls.data.manifest import count_training_videos
from vidcls.data.splits import assign_folds, group_videos
from vidcls.errors import UserError
from vidcls.metrics.predictions import Predictions
from vidcls.models.heads import Standardise
from vidcls.training.feature_cache import clip_vectors
from vidcls.training.inference import average_clips, video_losses
from vidcls.training.module import VideoClassifier

TOLERANCE = 1e-8  # on the largest entry of the gradient of the mean loss
SMALL = 10**7  # entries: the solver is faster on one thread than on several
LOSS_DIGITS = 4  # candidates whose losses agree to so many digits are equally good

Fold = tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held_out"]]


class Layer(NamedTuple):
    """A fitted output layer."""

    weight: Float[np.ndarray, "K E"]
    bias: Float[np.ndarray, " K"]
    iterations: int
    gradient_norm: float  # the largest entry of the objective's gradient

    def logits(self, vectors: Float[np.ndarray, "*N E"]) -> Float[np.ndarray, "*N K"]:
        return vectors @ self.weight.T + self.bias


class LogisticRegression(L.Callback):
    """Fits the output layer before the first step, after which nothing trains; see conf/optim/logistic.yaml.

    Minimises C times the sum of the videos' cross-entropies, weighted by ``loss.class_weights``, plus |w|^2 / 2. Of
    several ``C`` inner folds choose the one with the lowest out-of-fold loss; of equal losses, the smallest. Their
    predictions with it become the module's ``oof_predictions``. Each of a video's M clips counts 1 / M.

    Raises:
        UserError: a class has no training videos, or too few groups for two folds.
    """

    def __init__(self, C: float | Sequence[float], folds: int, max_iter: int) -> None:
        self.candidates = sorted(float(value) for value in (C if isinstance(C, Sequence) else [C]))
        self.folds = folds
        self.max_iter = max_iter
        self.summary: dict[str, Any] = {}  # for metrics.json

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, VideoClassifier)
        videos, splits, model = trainer.datamodule, module.fitted_splits, module.model  # type: ignore[attr-defined]
        count_training_videos(videos.manifest, videos.classes, "optim=logistic")
        rows = pd.concat([videos.rows(split) for split in splits], ignore_index=True)
        labels = np.array([videos.classes.index(label) for label in rows["label"]])
        weights = np.ones(len(labels))
        if module.class_weights is not None:
            weights = module.class_weights.cpu().numpy().astype(np.float64)[labels]
        groups = group_videos(rows)
        folds = inner_folds(labels, groups, self.folds, len(videos.classes))
        vectors = clip_vectors(trainer, module, videos, splits)  # [N, M, E]
        standardised = isinstance(model.standardise, Standardise)
        tried = self._out_of_fold(vectors, labels, weights, folds, standardised)
        losses = {C: float(np.average(found.losses, weights=weights)) for C, found in tried.items()}
        best = min(losses, key=lambda C: (round(losses[C], LOSS_DIGITS), C))
        with torch.inference_mode():
            inputs = model.standardise(torch.from_numpy(vectors).to(module.device)).double().cpu().numpy()
        (layer,) = fit_layers(inputs, labels, weights, [best], self.max_iter)
        with torch.no_grad():
            for parameter, values in ((model.output.weight, layer.weight), (model.output.bias, layer.bias)):
                parameter.copy_(torch.from_numpy(values))
        module.oof_predictions = tried[best]
        self.summary = {
            "C": best,
            "iterations": layer.iterations,
            "gradient_norm": layer.gradient_norm,
            "folds": len(folds),
            "candidates": [
                {"C": C, "loss": losses[C], "accuracy": float((found.predicted == labels).mean())}
                for C, found in tried.items()
            ],
            "out_of_fold": tried[best].summary(videos.classes),
        }

    def _out_of_fold(
        self,
        vectors: Float[np.ndarray, "N M E"],
        labels: Int[np.ndarray, " N"],
        weights: Float[np.ndarray, " N"],
        folds: Sequence[Fold],
        standardised: bool,
    ) -> dict[float, Predictions]:
        """The out-of-fold predictions, by C."""
        logits = np.empty((len(self.candidates), *vectors.shape[:2], int(labels.max()) + 1))
        for train, held_out in folds:
            standardise = Standardise(vectors.shape[2]).double()
            if standardised:
                standardise.fit(vectors[train].reshape(-1, vectors.shape[2]))
            seen, unseen = (standardise(torch.from_numpy(vectors[part]).double()).numpy() for part in (train, held_out))
            layers = fit_layers(seen, labels[train], weights[train], self.candidates, self.max_iter)
            logits[:, held_out] = [layer.logits(unseen) for layer in layers]
        found = {}
        for C, of_candidate in zip(self.candidates, torch.from_numpy(logits), strict=True):
            losses = video_losses(of_candidate, torch.from_numpy(labels)).float().numpy()
            found[C] = Predictions(labels, average_clips(of_candidate).float().numpy(), losses)
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"summary": self.summary}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.summary = state_dict["summary"]


def inner_folds(labels: Int[np.ndarray, " N"], groups: Sequence[str], count: int, num_classes: int) -> list[Fold]:
    """Up to ``count`` stratified folds of whole groups, each trained on all classes; `UserError` if fewer than two."""
    for number in range(min(count, len(set(groups))), 1, -1):
        try:
            drawn = np.array(assign_folds(labels, groups, number, seed=None))
        except ValueError:  # each class has fewer videos than folds
            continue
        folds = [(np.flatnonzero(drawn != fold), np.flatnonzero(drawn == fold)) for fold in range(number)]
        if all(len(set(labels[train])) == num_classes and len(held_out) for train, held_out in folds):
            return folds
    raise UserError(
        "training videos of two creators or more in each class, for the inner folds of optim=logistic",
        f"{len(set(groups))} groups of videos, which cannot be divided so",
        "Add videos of other creators, or train with optim=adamw.",
        "too-few-groups",
    )


def fit_layers(
    vectors: Float[np.ndarray, "N M E"],
    labels: Int[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"],
    candidates: Sequence[float],
    max_iter: int,
) -> list[Layer]:
    """For each C, the logistic regression of N videos of M clips, in float64 from zero.

    For two classes the logits are -z / 2 and z / 2, as scikit-learn fits z. Warns if a fit has not converged.
    """
    from sklearn import linear_model
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    rows = vectors.reshape(-1, vectors.shape[2])
    # The solution is a linear combination of the rows: if they are fewer than features, it is fitted in their span.
    basis = np.linalg.qr(rows.T)[0] if len(rows) < rows.shape[1] else None  # [E, N M]
    inputs = rows if basis is None else rows @ basis
    targets, weight = (np.repeat(values, vectors.shape[1]) for values in (labels, weights / vectors.shape[1]))
    layers = []
    for C in candidates:
        model = linear_model.LogisticRegression(C=C, tol=TOLERANCE, max_iter=max_iter)
        with (
            warnings.catch_warnings(action="ignore", category=ConvergenceWarning),  # there is a warning below
            threadpool_limits(1 if inputs.size < SMALL else None),
        ):
            model.fit(inputs, targets, sample_weight=weight)
        gradient_norm, iterations = _gradient_norm(model, inputs, targets, weight), int(model.n_iter_.max())
        coefficients, intercept = model.coef_ if basis is None else model.coef_ @ basis.T, model.intercept_
        if len(model.classes_) == 2:
            coefficients, intercept = (np.concatenate([-z / 2, z / 2]) for z in (coefficients, intercept))
        layers.append(Layer(coefficients, intercept, iterations, gradient_norm))
        if iterations >= max_iter:
            note = f"optim=logistic has not converged for C={C:g}: the gradient is {gradient_norm:.1e} after "
            warnings.warn(f"{note}{iterations} iterations. Give a higher optim.max_iter.", stacklevel=2)
    return layers


def _gradient_norm(
    model: Any, rows: Float[np.ndarray, "N E"], labels: Int[np.ndarray, " N"], weights: Float[np.ndarray, " N"]
) -> float:
    errors = (model.predict_proba(rows) - (labels[:, None] == model.classes_)) * weights[:, None]  # [N, K]
    errors = errors[:, -len(model.coef_) :]  # of two classes, scikit-learn fits the second
    slope = (errors.T @ rows + model.coef_ / model.C) / weights.sum()
    return float(max(np.abs(slope).max(), np.abs(errors.sum(axis=0) / weights.sum()).max()))
