"""A curve with noise on it, the same every time: points to train on, and others to be scored with."""

from __future__ import annotations

import numpy as np

TRAINING, VALIDATION, NOISE = 2000, 2000, 0.1


def points() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(x, y) of training, and of validation; x lies in -1..1."""
    random = np.random.default_rng(20)
    x = random.uniform(-1, 1, TRAINING + VALIDATION)
    y = np.sin(9 * x) * np.exp(-x) + NOISE * random.normal(size=len(x))
    return (x[:TRAINING], y[:TRAINING]), (x[TRAINING:], y[TRAINING:])
