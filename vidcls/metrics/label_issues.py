"""Which labels are most likely wrong: confident learning (Northcutt, Jiang & Chuang 2021, JAIR 70). Pure."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class LabelIssues:
    """Suspect labels among those of N videos."""

    suggested: Int[np.ndarray, " N"]  # the most likely class other than the label
    margins: Float[np.ndarray, " N"]  # the probability of the label minus the highest of another class; low is suspect
    suspect: Bool[np.ndarray, " N"]  # whether the video is confidently of another class
    joint: Float[np.ndarray, "K K"]  # the estimated share of videos with label i and true class j; sums to 1

    def ranked(self) -> list[int]:
        """All videos, the most suspect first."""
        return [int(row) for row in np.lexsort((self.margins, ~self.suspect))]


def find_label_issues(probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]) -> LabelIssues:
    """Compares labels with out-of-fold probabilities.

    A video counts as class j if its probability of j is at least the mean over videos with label j (section 3.1). It is
    suspect if the most probable such j is not its label; of equally probable ones the label counts.

    Example: of two videos with label 1, the last has the probability of class 0 that those of class 0 have.
        >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.9, 0.1]])
        >>> found = find_label_issues(p, np.array([0, 0, 1, 1]))
        >>> found.suspect.tolist(), found.ranked()[0], found.joint.tolist()
        ([False, False, False, True], 3, [[0.5, 0.0], [0.25, 0.25]])
    """
    rows, count = np.arange(len(labels)), probabilities.shape[1]
    given, videos = probabilities[rows, labels], np.bincount(labels, minlength=count)
    totals = np.bincount(labels, weights=given, minlength=count)
    thresholds = np.divide(totals, videos, out=np.full(count, np.inf), where=videos > 0)
    confident = np.where(probabilities >= thresholds - 1e-9, probabilities, -1.0)  # the mean of equal ones may round up
    highest = confident.max(axis=1)
    counted, likely = highest >= 0, np.where(confident[rows, labels] == highest, labels, confident.argmax(axis=1))
    suspect = counted & (likely != labels)
    others = probabilities.astype(np.float64)
    others[rows, labels] = -1.0
    pairs = np.zeros((count, count))
    np.add.at(pairs, (labels[counted], likely[counted]), 1)
    pairs[pairs.sum(axis=1) == 0] += np.eye(count)[pairs.sum(axis=1) == 0]  # of a class without confident videos
    joint = pairs / pairs.sum(axis=1, keepdims=True) * (videos / len(labels))[:, None]
    suggested = np.where(suspect, likely, others.argmax(axis=1))
    return LabelIssues(suggested, given - others.max(axis=1), suspect, joint)
