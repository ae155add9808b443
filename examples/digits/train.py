"""A small network for handwritten digits."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.neural_network import MLPClassifier

from prepare import questions, training

HIDDEN = 16
LEARNING_RATE = 0.001
BATCH = 100
EPOCHS = 30
WEIGHT_DECAY = 0.0001

seed, seconds = int(os.environ.get("RESEARCH_SEED", "0")), float(os.environ.get("RESEARCH_BUDGET_SECONDS", "20"))
started = time.monotonic()
pictures, labels = training()
network = MLPClassifier(
    (HIDDEN,), learning_rate_init=LEARNING_RATE, alpha=WEIGHT_DECAY, batch_size=BATCH, random_state=seed
)
shuffled = np.random.default_rng(seed)
for epoch in range(EPOCHS):
    order = shuffled.permutation(len(labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.partial_fit(pictures[order] / 16, labels[order], classes=range(10))
    spent = time.monotonic() - started
    print(f"step {epoch} loss {network.loss_:.4f} {100 * max((epoch + 1) / EPOCHS, spent / seconds):.0f}%", flush=True)
    if spent > 0.95 * seconds:
        break
np.save(Path(os.environ.get("RESEARCH_OUTPUT", "."), "answers.npy"), network.predict(questions() / 16))
