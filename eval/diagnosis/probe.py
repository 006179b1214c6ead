"""How much of the answer a linear classifier reads off latents."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5


def probe_accuracy(points: np.ndarray, labels: Sequence[str]) -> tuple[float, float]:
    """(accuracy on items that the probe was not fitted to, that of always the commonest label).

    points [N, D]. Labels that come less than FOLDS times count as one of their own, "other"; where only one label is
    left there is nothing to read, and both are 1.
    """
    counts = Counter(labels)
    named = np.array([label if counts[label] >= FOLDS else "other" for label in labels])
    kinds = Counter(named)
    majority = max(kinds.values()) / len(named)
    if len(kinds) < 2 or min(kinds.values()) < 2:
        return majority, majority
    folds = StratifiedKFold(min(FOLDS, min(kinds.values())), shuffle=True, random_state=0)
    # C: with more dimensions than items an unbounded fit would read noise.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    said = cross_val_predict(model, points, named, cv=folds)
    return float((said == named).mean()), majority
