"""What people ask of a simulated night while it runs, and what must hold of it: bench/simulate.py."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from agent import events as ev
from agent.events import Event
from agent.night import Night
from agent.records import Stoppers
from bench.world import Violation, World

BEGINS = ev.Asked | ev.TrialBegun | ev.TestBegun | ev.BaselineBegun


def steer(world: World, rng: random.Random) -> None:
    """Requests at any moment: sensible ones, and such as make no sense at that time."""

    def pause() -> None:
        if rng.random() < 0.5:
            world.request("pause", until=world.now + rng.uniform(-100, 3000))
        else:
            world.request("pause")
            world.at(rng.uniform(0, 3000), lambda: world.request("resume"))

    def some(what: str, patience: int = 20) -> None:
        night: Night = world.inspector.night  # type: ignore[union-attr]
        likely = {
            "skip": [e.number for e in night.open],
            "veto": [*night.kept.values(), *(part for e in night.experiments.values() for part in e.parts)],
            "accept": [e.number for e in night.experiments.values() if e.verdict and e.verdict.kind == "held"],
        }[what]
        early = {"veto": len(night.kept) < 4, "accept": not likely, "skip": False}[what]
        if early and patience and rng.random() < 0.9:  # later, when there is more to take off, or something held
            return world.at(rng.uniform(50, 500), lambda: some(what, patience - 1))
        anything = rng.choice([None, 0, 1, 2, 3, 99])
        world.request(what, experiment=rng.choice(likely) if likely and rng.random() < 0.8 else anything)

    def limits() -> None:
        said = Stoppers(experiments=rng.choice([None, 1, 5, 8]), usd=rng.choice([None, 0.1, 2.0]))
        world.request("limits", limits=said, lifted=rng.choice([(), ("usd",), ("hours", "plateau")]))

    kinds = [
        pause, limits, lambda: world.request("suggest", words=f"try <{len(world.sent)}>"),
        lambda: some("skip"), lambda: some("veto"), lambda: some("veto"), lambda: some("accept"),
        lambda: some("accept"),
    ]  # fmt: skip
    for _ in range(rng.choice([0, 1, 3, 8])):
        world.at(rng.uniform(0, 5000), rng.choice(kinds))


@dataclass
class Steering:
    """Told by what was journaled, not by what the night makes of it."""

    resting: bool = False
    unwanted: set[int] = field(default_factory=set)
    """Experiments that have to end undecided."""
    vetoed: set[str] = field(default_factory=set)
    """Commits that must never be built on again."""
    ideas: list[str] = field(default_factory=list)

    def appended(self, before: Night, event: Event, night: Night, world: World) -> None:
        if self.resting and isinstance(event, BEGINS):
            raise Violation(f"a pause begins nothing: {type(event).__name__} in a pause")
        if isinstance(event, ev.TrialBegun) and event.experiment in self.unwanted:
            raise Violation(f"skipped: a trial of experiment {event.experiment} was begun afterwards")
        if isinstance(event, ev.Published) and event.experiment in self.unwanted:
            verdict = night.experiments[event.experiment].verdict
            if verdict is None or verdict.kind != "skipped":
                raise Violation(f"skipped: experiment {event.experiment} was decided on")
        if isinstance(event, ev.Resumed):
            self.resting = False
        if isinstance(event, ev.Requested):
            self.requested(before, event)
        if isinstance(event, ev.Requested | ev.Published | ev.Rebased):
            self.branch(night, world)

    def requested(self, before: Night, event: ev.Requested) -> None:
        number = event.experiment
        if event.what in ("pause", "resume"):
            self.resting = event.what == "pause"
        if event.what == "suggest":
            self.ideas.append(event.idea)
        if event.what in ("skip", "veto") and number and number in before.undecided:
            self.unwanted.add(number)
        if event.what == "veto" and number:
            self.vetoed |= {commit for commit, kept in before.ever_kept.items() if kept == number}

    def branch(self, night: Night, world: World) -> None:
        commit = night.tip
        while commit:
            if commit in self.vetoed:
                raise Violation("vetoed: the incumbent is, or builds on, a commit that a person vetoed")
            commit = world.commits[commit][1]

    def at_the_end(self, night: Night, world: World) -> None:
        waiting = Counter(night.suggestions)
        for idea in self.ideas:
            words = world.texts[idea]
            users = [e for e in night.experiments.values() if e.suggestion == idea]
            if len(users) + waiting[idea] != 1:
                raise Violation(f"suggested: {words} is used {len(users)} times, and waits {waiting[idea]} times")
            if any(words not in world.texts[e.talk[0].question] for e in users):
                raise Violation(f"suggested: {words} is counted as used, and was never put to the proposer")
            told = [e for e in night.experiments.values() if e.proposal and words in world.texts[e.talk[0].question]]
            if told != users[: len(told)]:
                raise Violation(f"suggested: {words} was put to the proposer again")
