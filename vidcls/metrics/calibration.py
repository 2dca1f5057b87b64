"""Calibration: reliability, expected calibration error, and temperature scaling. Pure."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

CALIBRATION_BINS = 15  # as in Guo et al. 2017
TEMPERATURES = (0.05, 20.0)
_TINY = float(np.finfo(np.float32).tiny)  # instead of a probability that float32 rounded to 0


@dataclass(frozen=True)
class Reliability:
    """Accuracy against the predicted class's probability, in equal bins [low, high); 1 counts in the last bin."""

    confidence: Float[np.ndarray, " bins"]  # the mean; NaN in empty bins
    accuracy: Float[np.ndarray, " bins"]  # NaN in empty bins
    count: Int[np.ndarray, " bins"]  # of videos

    @property
    def error(self) -> float:
        """The expected calibration error: |accuracy - confidence|, averaged over videos (Guo et al. 2017, eq. 3)."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return round(float(np.average(gaps, weights=self.count)), 6)


def reliability(
    probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"], bins: int = CALIBRATION_BINS
) -> Reliability:
    """The reliability diagram of the predicted class (Guo et al. 2017, fig. 1)."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    index = confidence_bins(confidence, bins)
    count = np.bincount(index, minlength=bins)

    def mean(values: np.ndarray) -> np.ndarray:
        totals = np.bincount(index, weights=values, minlength=bins)
        return np.divide(totals, count, out=np.full(bins, np.nan), where=count > 0)

    return Reliability(mean(confidence), mean(correct), count)


def confidence_bins(confidence: Float[np.ndarray, " N"], bins: int = CALIBRATION_BINS) -> Int[np.ndarray, " N"]:
    """The bin of each confidence, from 0."""
    # In single precision, so that 0.6 from a float32 network and 0.6 are in the same bin.
    edges = np.linspace(0, 1, bins + 1, dtype=np.float32)
    return np.clip(np.searchsorted(edges, confidence.astype(np.float32), side="right") - 1, 0, bins - 1)


def fit_temperature(probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"]) -> float:
    """The T in [0.05, 20] that maximises the likelihood of the labels under softmax(log(p) / T).

    Temperature scaling (Guo et al. 2017, section 4.2). T is 1 if all predictions are correct, as the likelihood would
    then be maximal for the lowest T, whatever the confidence.

    Example: 99 % confident, but correct only 3 times out of 4.
        >>> p = np.array([[0.99, 0.01], [0.99, 0.01], [0.99, 0.01], [0.99, 0.01]])
        >>> calibrate(p, fit_temperature(p, np.array([0, 0, 0, 1])))[0].round(3).tolist()
        [0.75, 0.25]
    """
    if len(labels) == 0 or not np.isfinite(probabilities).all():
        raise ValueError(f"expected finite probabilities of at least one video; got {probabilities}")
    logs, rows = safe_log(probabilities), np.arange(len(labels))
    logs -= logs.max(axis=1, keepdims=True)
    of_labels = logs[rows, labels]
    if (of_labels == 0).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        # -log_softmax(logs / T) of the labels, twice as fast as SciPy's.
        scaled = math.exp(-log_temperature)
        return float((np.log(np.exp(logs * scaled).sum(axis=1)) - of_labels * scaled).mean())

    low, high = map(math.log, TEMPERATURES)
    from scipy.optimize import minimize_scalar  # takes a second

    # The loss is convex in 1 / T, so it has a single minimum in log T.
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x)


def calibrate(probabilities: Float[np.ndarray, "*N K"], temperature: float) -> Float[np.ndarray, "*N K"]:
    """softmax(log(p) / temperature), in float64."""
    return softmax(safe_log(probabilities) / temperature, axis=-1)


def safe_log(probabilities: np.ndarray) -> np.ndarray:
    """The logarithm in float64, with probabilities of 0 replaced by the smallest float32."""
    # In C order, so that a row is summed in the same order alone and among others.
    return np.log(np.maximum(np.ascontiguousarray(probabilities, dtype=np.float64), _TINY))
