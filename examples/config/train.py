"""Trains the model of a config file within a number of seconds, and prints its loss on points it has not seen."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import yaml
from data import points
from model import Model

flags = argparse.ArgumentParser()
flags.add_argument("--config", type=Path, required=True)
flags.add_argument("--seed", type=int, default=0)
flags.add_argument("--seconds", type=float, default=20.0)
flags.add_argument("--output", type=Path, default=Path("."))
chosen = flags.parse_args()
config = yaml.safe_load(chosen.config.read_text())
training, random = config["training"], np.random.default_rng(chosen.seed)
(x, y), (new_x, new_y) = points()
model, started = Model(**config["model"], seed=chosen.seed), time.monotonic()
for step in range(training["steps"]):
    some = random.integers(len(x), size=training["batch"])
    loss = model.learn(x[some], y[some], training["rate"])
    spent = (time.monotonic() - started) / chosen.seconds
    if step % 20 == 0:
        print(f"step {step} loss {loss:.4f} {100 * max(spent, step / training['steps']):.0f}%", flush=True)
    if spent > 0.95:
        break
np.save(chosen.output / "weights.npy", model.weights)
print(f"val_loss: {((model(new_x) - new_y) ** 2).mean():.6f}")
