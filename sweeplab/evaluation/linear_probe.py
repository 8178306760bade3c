"""Linear probe: logistic regression on frozen image features, clean accuracy and ASR (CleanCLIP, App. G)."""

from dataclasses import dataclass

import numpy as np
import torch

from sweeplab.clip_model import with_directions


@dataclass(frozen=True)
class ProbeResult:
    """How a linear classifier on the features does."""

    accuracy_k: int
    accuracy_n: int
    asr_k: int
    asr_n: int


def linear_probe(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    triggered: np.ndarray | None = None,
    target: int | None = None,
    regularisation: float = 1.0,
    max_iterations: int = 1000,
) -> ProbeResult:
    """Fit on clean training features; count on clean and on triggered test features.

    Features are image embeddings before they are brought to unit norm, as in the papers, without augmentation; here
    they are standardised to the training features' mean and deviation. The papers train the same model by AdamW (rate
    5e-3, weight decay 0.01); this is its optimum by L-BFGS.

    Args:
        train: (N, D) features and (N,) classes.
        test: (M, D) features and (M,) classes.
        triggered: (M, D) features of the same test images with the trigger; None: no ASR.
        target: the class that the attacker wants; images of it are left out of the ASR, from both counts. (CleanCLIP's
            code leaves them in its denominator.)
        regularisation: inverse strength of the L2 penalty (scikit-learn's C).
        max_iterations: of L-BFGS.

    Raises:
        FloatingPointError: if a feature vector is not finite or has norm zero.
        ValueError: if the training classes are fewer than two, or only one of `triggered` and `target` is given.
    """
    from sklearn.linear_model import LogisticRegression  # scikit-learn takes a second to import

    if (triggered is None) != (target is None):
        raise ValueError("`triggered` and `target` go together; give both or neither")
    features, classes = train
    if len(np.unique(classes)) < 2:
        raise ValueError(f"the training classes {np.unique(classes).tolist()} are fewer than two")
    for part in (features, test[0]):
        with_directions(torch.from_numpy(part), "image embeddings")
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-12
    fitted = LogisticRegression(C=regularisation, max_iter=max_iterations).fit((features - mean) / deviation, classes)
    found = fitted.predict((test[0] - mean) / deviation)
    hits = others = 0
    if triggered is not None:
        rows = test[1] != target
        with_directions(torch.from_numpy(triggered[rows]), "triggered image embeddings")
        hits = int((fitted.predict((triggered[rows] - mean) / deviation) == target).sum())
        others = int(rows.sum())
    return ProbeResult(int((found == test[1]).sum()), len(found), hits, others)
