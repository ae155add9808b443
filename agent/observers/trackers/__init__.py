"""Experiment trackers: each experiment of a night as a run of MLflow, Weights & Biases, TensorBoard or trackio.

A night is sent by a process of its own (`python -m agent.observers.trackers`), so that whatever a tracker's library
does - it hangs, it fails, it prints - is nothing to the loop. `agent/observers/track.py` starts it.
"""

from __future__ import annotations

from agent.observers.trackers.protocol import Tracker
from agent.observers.trackers.to_mlflow import MLflow
from agent.observers.trackers.to_tensorboard import TensorBoard
from agent.observers.trackers.to_trackio import Trackio
from agent.observers.trackers.to_wandb import WandB

TRACKERS: dict[str, type[Tracker]] = {
    "mlflow": MLflow,
    "wandb": WandB,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
}
"""By the name that is given on the command line."""
