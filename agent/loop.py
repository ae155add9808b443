"""The loop: propose one change, commit it, train, measure, judge, keep or reset - and tell the next proposal.

A night is a stream of events. What happens - a reply, a measurement, a request - is journaled before anything is
made of it. The policy says what to do next from the state that the journal adds up to; each thing to do is
journaled before it is done. So a process that dies anywhere has lost nothing: the next one reads the journal, makes
the repository agree with it, and begins again what was begun and has no end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent import policy
from agent.actions import Actions
from agent.events import Ended, Event, Waited
from agent.night import Night
from agent.policy import Capacity
from agent.protocols import Clock, Inbox, Journal
from agent.records import Stoppers, Surroundings

LATE = 30.0  # seconds by which a wait can only be missed where this process was stopped


@dataclass
class Loop:
    """One process's part of one night."""

    journal: Journal
    actions: Actions
    inbox: Inbox
    clock: Clock
    capacity: Capacity
    stoppers: Stoppers = Stoppers()
    surroundings: Surroundings = Surroundings()
    notify: Callable[[], None] = lambda: None
    """Tells the observers that there is something new in the journal."""
    night: Night = field(default_factory=Night)

    def run(self) -> Ended:
        """Go on until the night has ended, or this process's part of it; says why."""
        self.take_up()
        while not (ended := self.night.ended):
            self.hear(self.inbox.take())
            self.steer()
            action = policy.next_action(self.night, self.capacity)
            if action is not None:
                self.record(self.actions.prepare(action, self.night))
            else:
                self.wait(policy.deadline(self.night))
        return ended

    def wait(self, until: float | None) -> None:
        """For something to arrive, or until a time that the policy waits for."""
        began = self.clock.now()
        heard = self.inbox.wait(until)
        now = self.clock.now()
        if until is not None and now > max(began, until) + LATE:
            heard = [Waited(stopped=now - began), *heard]
        self.hear(heard or [Waited()])

    def take_up(self) -> None:
        """Read the journal, and make refs and folders agree with it."""
        for _, event in self.journal.events():
            self.night = self.night.after(event)
        self.hear(self.inbox.stale())
        self.record(self.actions.started(self.surroundings, self.stoppers))
        for note in self.actions.agree(self.night):
            self.record(note)

    def hear(self, events: Iterable[Event]) -> None:
        """Record what has arrived. What is no news (a second copy, an answer nobody waits for) is dropped."""
        for event in events:
            if self.night.awaits(event):
                self.record(self.actions.stow(event, self.night))
            self.inbox.done(event)

    def steer(self) -> None:
        """program.md is read again before every action."""
        if (edit := self.actions.steer(self.night)) is not None:
            self.record(edit)

    def record(self, event: Event) -> None:
        """Durable first; then part of the state; then done."""
        event = event.model_copy(update={"at": self.clock.now()})
        self.journal.append(event)
        self.night = self.night.after(event)
        self.notify()
        for note in self.actions.carry_out(event, self.night):
            self.record(note)


if __name__ == "__main__":
    import sys

    sys.modules["agent.loop"] = sys.modules["__main__"]  # the command line shall not load this file once more
    from agent.cli import loop

    loop()
