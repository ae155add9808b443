"""Random features of x with one layer of weights on them."""

from __future__ import annotations

import numpy as np

MOMENTUM = 0.0


class Model:
    def __init__(self, features: int, scale: float, seed: int):
        random = np.random.default_rng(seed)
        self.frequencies, self.phases = scale * random.normal(size=features), random.uniform(0, 6.28, features)
        self.weights = np.zeros(features)
        self.velocity = np.zeros(features)

    def see(self, x: np.ndarray) -> np.ndarray:
        return np.cos(np.outer(x, self.frequencies) + self.phases)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.see(x) @ self.weights

    def learn(self, x: np.ndarray, y: np.ndarray, rate: float) -> float:
        """One step of gradient descent: the loss before it."""
        seen = self.see(x)
        error = seen @ self.weights - y
        self.velocity = MOMENTUM * self.velocity - rate * seen.T @ error / len(x)
        self.weights += self.velocity
        return float((error**2).mean())
