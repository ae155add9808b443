"""The digits of scikit-learn in two parts. Training gets the second one without its labels, and answers; the command
`python prepare.py evaluate` counts how many answers are right."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

HELD_OUT = 600  # the last digits of the set


def training() -> tuple[np.ndarray, np.ndarray]:
    """Pictures, 64 numbers from 0 to 16 each, and the digits that they show."""
    digits = load_digits()
    return digits.data[:-HELD_OUT], digits.target[:-HELD_OUT]


def questions() -> np.ndarray:
    """Pictures to answer."""
    return load_digits().data[-HELD_OUT:]


def evaluate() -> float:
    """The share of right answers in the file that training has left."""
    answers = np.load(Path(os.environ["RESEARCH_OUTPUT"], "answers.npy"), allow_pickle=False)
    right = load_digits().target[-HELD_OUT:]
    if answers.shape != right.shape:
        sys.exit(f"{len(right)} answers are wanted, and {answers.shape} were given")
    return float((answers == right).mean())


if __name__ == "__main__":
    print(f"accuracy: {evaluate():.5f}")
