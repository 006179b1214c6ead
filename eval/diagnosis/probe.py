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

    points [N, D]. Labels that come less than FOLDS times are left out; where only one other is left there is nothing to
    read, and both are 1.
    """
    counts = Counter(labels)
    kept = [n for n, label in enumerate(labels) if counts[label] >= FOLDS]
    named = np.array([labels[n] for n in kept])
    kinds = Counter(named.tolist())
    if len(kinds) < 2:
        return 1.0, 1.0
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    # C: with more dimensions than items an unbounded fit would read noise.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    said = cross_val_predict(model, points[kept], named, cv=folds)
    return float((said == named).mean()), max(kinds.values()) / len(named)
