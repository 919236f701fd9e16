"""The conditional logit (McFadden 1974): score of an option = w · features, softmax over the options of a case."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax


def fit(features: np.ndarray, real: np.ndarray, answer: np.ndarray, counts_as: np.ndarray, ridge: float) -> np.ndarray:
    """Returns the weights [F] that maximise Σ counts_as · log p(answer) - ridge/2 · |w|².

    Args:
      features: [C, K, F]; real: [C, K], which options there are; answer: [C] the gold one; counts_as: [C].
    """
    cases = np.arange(len(answer))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        log_shares = log_softmax(np.where(real, features @ weights, -np.inf), axis=1)
        slope = np.exp(log_shares)
        slope[cases, answer] -= 1
        value = ridge / 2 * weights @ weights - counts_as @ log_shares[cases, answer]
        return value, ridge * weights + np.tensordot(counts_as[:, None] * slope, features)

    def curvature(weights: np.ndarray) -> np.ndarray:
        shares = np.exp(log_softmax(np.where(real, features @ weights, -np.inf), axis=1))
        spread = features - (shares[..., None] * features).sum(axis=1, keepdims=True)
        spread = (spread * np.sqrt(counts_as[:, None] * shares)[..., None]).reshape(-1, len(weights))
        return spread.T @ spread + ridge * np.eye(len(weights))

    start = np.zeros(features.shape[-1])
    return minimize(loss, start, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-8}).x
