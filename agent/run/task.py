"""What one trial needs to know, as plain data that survives JSON: the job description of a worker process.

Standard library only: a worker is started for every trial, and pydantic alone would cost it 40 ms.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Card:
    """The GPU of a slot: its index for NVML, its UUID for CUDA_VISIBLE_DEVICES, and what is said of it."""

    index: int
    uuid: str
    name: str
    used_at_start: int
    """Bytes of its memory that others held when the night began."""


@dataclass(frozen=True)
class Metric:
    name: str
    pattern: str | None


@dataclass(frozen=True)
class Interpreter:
    """The Python of the project's own environment; see environment.py."""

    python: str
    prefix: str
    packages: list[str]
    """Folders that a room must show."""
    kind: str
    """The variable that names its prefix: VIRTUAL_ENV or CONDA_PREFIX."""
    inside: list[str]
    """Folders of the repository that it imports from, relative."""


@dataclass(frozen=True)
class Task:
    """One trial, or the held-out test of what a trial saved. Paths are absolute."""

    what: Literal["train", "test"]
    experiment: int
    number: int
    seed: int
    builds_on: int | None
    """The kept experiment that the change was made to: the trial may start from what that one compiled."""
    run: str
    feed: str | None
    evaluate: str | None
    test: str | None
    metric: Metric
    protect: list[str]
    data: list[str]
    holdout: list[str]
    environment: list[str]
    budget: str
    """As the person wrote it, for messages."""
    budget_seconds: float
    budget_tokens: int | None
    startup: float
    """Seconds to the first progress line, as the contract says."""
    slowest_start: float | None
    """As in protocols.Job."""
    slowest_end: float | None
    """As in protocols.Job."""
    incumbent: float | None
    """As in protocols.Job."""
    slowest_load: float | None
    """As in protocols.Job."""
    evaluation: float
    """Seconds for an evaluation."""
    slack: float
    """Seconds, see the rules of time in trial.py."""
    speaks: bool
    """The training command has been seen to print progress in an earlier trial."""
    device: str
    slots: int
    slot: int
    card: Card | None
    home: str
    """The night's folder."""
    root: str
    """The repository."""
    project: str
    """The folder of program.md below it, relative; "" where it is the repository itself."""
    interpreter: Interpreter | None
    """None: the one that the loop runs in."""
    limits: list[str]
    """Numbers that program.md limits."""
    sandbox: dict[str, Any]
    """As sandbox.describe gives it."""

    @property
    def folder(self) -> Path:
        """Of the slot. `source` in it holds the commit's files."""
        return Path(self.home, "slots", str(self.slot))

    def place(self, tree: str) -> Path:
        """The project's folder in one of the slot's copies of the commit; commands run there."""
        return self.folder / tree / self.project

    @property
    def output(self) -> Path:
        return Path(self.home, "outputs", f"{self.experiment}-{self.number}")

    @property
    def log(self) -> Path:
        test = "-test" if self.what == "test" else ""
        return Path(self.home, "logs", f"{self.experiment}-{self.number}{test}.log")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Raises ValueError, TypeError, KeyError for what is no task."""
        fields = json.loads(text)
        card = Card(**fields["card"]) if fields["card"] else None
        own = Interpreter(**fields["interpreter"]) if fields["interpreter"] else None
        return cls(**{**fields, "metric": Metric(**fields["metric"]), "card": card, "interpreter": own})
