"""Where the hours of a night went: folded from its events, as the night itself is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agent import events as ev
from agent.events import Event

END_OF_TRIAL = (ev.Measured, ev.TrialFailed, ev.MachineFault, ev.TrialCancelled)
END_OF_CALL = (ev.Replied, ev.CallFailed)


@dataclass
class Times:
    """What ran when. `see` takes the events of the journal in their order."""

    alive: float = 0.0
    """Seconds in which a loop was at work, over all of its starts."""
    slots: int = 1
    busy: float = 0.0
    """Slot-seconds with a trial or a test in them."""
    tests: float = 0.0
    """Of these, with a test."""
    waiting: float = 0.0
    """Slot-seconds that were empty while a call was in flight."""
    paused: float = 0.0
    """Slot-seconds that were empty while the night waited for a model or the machine to come back."""
    faults: list[tuple[int, str]] = field(default_factory=list)
    """(experiment, what the machine did)."""
    running: bool = False
    pausing: bool = False
    last: float = 0.0
    open_slots: dict[int, bool] = field(default_factory=dict)
    """Slot -> whether it is a test that runs there."""
    trials: dict[tuple[int, int], int] = field(default_factory=dict)
    """(experiment, number of the trial) -> slot; a test as (experiment, -1)."""
    calls: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Times:
        times = cls()
        for event in events:
            times.see(event)
        return times

    def see(self, event: Event) -> None:
        self.pass_to(event.at, counts=self.running and not isinstance(event, ev.Started))
        match event:
            case ev.Started():  # whatever ran in the process before is over
                self.running, self.pausing = True, False
                self.open_slots, self.trials, self.calls = {}, {}, set()
            case ev.Ended():
                self.running = False
            case ev.Paused() | ev.Resumed():
                self.pausing = isinstance(event, ev.Paused)
            case ev.Asked():
                self.calls.add(event.call)
            case ev.TrialBegun():
                self.begin(event.experiment, event.number, event.slot, test=False)
            case ev.TestBegun():
                self.begin(event.experiment, -1, event.slot, test=True)
            case ev.Tested():
                self.end(event.experiment, -1)
        if isinstance(event, END_OF_CALL):
            self.calls.discard(event.call)
        if isinstance(event, END_OF_TRIAL):
            self.end(event.experiment, event.number)
        if isinstance(event, ev.MachineFault | ev.TrialFailed):
            self.faults.append((event.experiment, event.reason))

    def begin(self, experiment: int, number: int, slot: int, test: bool) -> None:
        self.open_slots[slot] = test
        self.trials[experiment, number] = slot
        self.slots = max(self.slots, slot + 1)

    def end(self, experiment: int, number: int) -> None:
        self.open_slots.pop(self.trials.pop((experiment, number), -1), None)

    def pass_to(self, now: float, counts: bool) -> None:
        """The time since the last event, given to what was going on."""
        seconds = max(0.0, now - self.last) if counts else 0.0
        self.last = max(self.last, now)
        busy = len(self.open_slots)
        self.alive += seconds
        self.busy += seconds * busy
        self.tests += seconds * sum(self.open_slots.values())
        empty = seconds * max(0, self.slots - busy)
        if self.pausing:
            self.paused += empty
        elif self.calls:
            self.waiting += empty

    def shares(self, startup: float, training: float, evaluation: float) -> dict[str, float]:
        """Slot-seconds by use; the arguments are what the trials themselves measured. What a trial took beside
        these (a fresh tree, its end) counts as startup; so does what was lost in trials that never ended."""
        rest = max(0.0, self.busy - self.tests - startup - training - evaluation)
        return {
            "training": training,
            "startup": startup + rest,
            "evaluation": evaluation + self.tests,
            "waiting for a model": self.waiting,
            "paused": self.paused,
            "idle": max(0.0, self.alive * self.slots - self.busy - self.waiting - self.paused),
        }
