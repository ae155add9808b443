"""Whole nights in milliseconds: the real loop, policy, actions and judge in a simulated world, from a seed.

    python -m bench.simulate --nights 10000 --seed 1
    python -m bench.simulate --replay 1:4711          # one night again, exactly
    python -m bench.simulate --mutations              # each promise broken on purpose: is it noticed?

In each night the loop is killed before and after appends, commits, refs, calls and jobs; replies and results are
lost, doubled or late; workers, proposer and machine fail; program.md is edited and broken; people make requests of
all kinds; clocks are set. `Watch` checks after every event that the promises hold. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from agent import events as ev
from agent.actions import Actions
from agent.events import Event
from agent.loop import Loop
from agent.night import Night, OutOfOrder
from agent.policy import Capacity
from agent.program import Program
from agent.protocols import Job
from agent.records import Stoppers, Surroundings
from bench.steering import Steering, steer
from bench.workers import SimCaller, SimExecutor, SimPrompter, SimProposer
from bench.world import Crash, Faults, Inspector, Process, SimJournal, SimRepository, Violation, World

PROGRAM = {
    "metric": {"name": "loss"}, "budget": "5m", "direction": "Lower the loss.", "reruns": 3,
    "timeouts": {"startup": "60s", "evaluation": "60s"},
}  # fmt: skip
TINY = 1e-9  # dollars
PLENTY = 1e6  # dollars, and hours
FRUITLESS = 5  # proposals in a row of no use, after which the next one is waited with
SHORTEST_WAIT = 15.0  # seconds, for each outage of the proposer in a row; up to ten minutes


@dataclass
class Watch(Inspector):
    """What must hold after every event, seen from outside: by the journal, the bills and the refs."""

    world: World
    most_open: int = 1
    """Experiments that may be under way at once, those ahead of a free slot among them."""
    night: Night = field(default_factory=Night)
    """The sum of what is durable."""
    jobs: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)
    cap: float | None = None
    """When the newest call was made: a lower one that is stated later takes nothing back."""
    steering: Steering = field(default_factory=Steering)
    awaited: list[tuple] = field(default_factory=list)
    """Results that reached the loop and must be in its journal before it goes on."""

    def appended(self, event: Event) -> None:
        before = self.night
        if isinstance(event, ev.Asked):
            self.patient(before, event)
            self.wanted(before, event)
        if isinstance(event, ev.TrialBegun):
            self.on_the_incumbent(before, event)
        try:
            self.night = before.after(self.world.journal[-1])
        except (OutOfOrder, AssertionError, KeyError, IndexError) as error:
            raise Violation(f"order: {type(error).__name__}: {error}") from None
        if key(event) in self.awaited:
            self.awaited.remove(key(event))
        self.money(event)
        self.steering.appended(before, event, self.night, self.world)
        if isinstance(event, ev.Published):
            self.surest_first(before, event)
        if isinstance(event, ev.Ended):
            self.ended(event)

    def money(self, event: Event) -> None:
        spent = self.night.spent
        self.cap = cap = self.night.stoppers.usd if isinstance(event, ev.Asked) and event.reserved_usd else self.cap
        if spent is None or spent < self.world.billed - TINY:
            raise Violation(f"money: {spent} is known of {self.world.billed} dollars that were billed")
        in_flight = any(e.asking for e in self.night.open)
        if cap is not None and in_flight and spent > cap + TINY:
            raise Violation(f"cap: {spent} of {cap} dollars are spent or set aside")

    def patient(self, before: Night, event: ev.Asked) -> None:
        """A proposer that fails is asked rarely, and the person is told when that lasts."""
        if event.fallback and not (before.fallback and (before.blocked or before.paused)):
            raise Violation(f"patience: call {event.call} goes to the fallback, and the proposer can be had")
        if event.fallback:
            return
        useless = before.fruitless - FRUITLESS
        if useless >= 0 and event.at - before.fruitless_at < min(600.0, SHORTEST_WAIT * 2**useless) - TINY:
            raise Violation(f"patience: call {event.call}, after {before.fruitless} proposals of no use, came too soon")
        if not before.outages:
            return
        waited = event.at - before.failed_at
        if waited < min(600.0, SHORTEST_WAIT * before.outages) - TINY or not (before.paused or before.outages < 3):
            raise Violation(f"patience: call {event.call}, after {before.outages} outages, came too soon or unsaid")

    def wanted(self, before: Night, event: ev.Asked) -> None:
        """Money is spent on what can be tried soon: nothing is proposed far ahead."""
        new = event.experiment not in before.experiments
        kept_again = sum(1 for e in before.open if e.parts or e.accepted)  # of a person's making
        if new and not event.fallback and len(before.open) - kept_again >= self.most_open:
            raise Violation(f"ahead: experiment {event.experiment} is asked for while {len(before.open)} are under way")

    def on_the_incumbent(self, before: Night, event: ev.TrialBegun) -> None:
        e = before.experiments[event.experiment]
        if e.number and not e.current and e.parent != before.tip:
            raise Violation(f"on the incumbent: the first trial of experiment {e.number} is on an older one")

    def surest_first(self, before: Night, event: ev.Published) -> None:
        e = before.experiments[event.experiment]
        if not e.kept:
            return
        rivals = [o for o in before.open if o.state == "judged" and o.kept and o.number != e.number]
        if any(policy_bound(o) > policy_bound(e) for o in rivals):
            raise Violation(f"surest first: experiment {e.number} was kept before a surer win")
        if before.tip and e.parent != before.tip:
            raise Violation(f"confirmed: experiment {e.number} was judged on an older incumbent")
        ok = [t for t in e.current if t.measurement and t.measurement.outcome == "ok" and t.commit == e.commit]
        if not ok or any(t.running for t in e.current):
            raise Violation(f"verified: experiment {e.number} was kept without a trial of its commit")

    def ended(self, event: ev.Ended) -> None:
        if not event.reason or event.code not in (0, 2, 3):
            raise Violation("says why: a night ended without a reason")
        if list(self.night.running) or self.night.testing:
            raise Violation("brought to an end: a night ended while something ran")
        cuts = ("stopped", "a person", "0", "1", "2", "3", "4", "5", "$", "no more proposals: replay")
        if event.code == 3 and not event.reason.startswith(cuts):
            raise Violation(f"goes on: a night ended, though it could wait: {event.reason}")
        if (event.code == 3) != bool(event.then):
            raise Violation(f"says how to go on: {event.reason}")
        if event.code == 0 and self.night.open:
            raise Violation(f"brought to an end: {len(self.night.open)} experiments were dropped")

    def called(self, asked: ev.Asked) -> None:
        e = self.night.experiments.get(asked.experiment)
        if e is None or e.asking is None or e.asking.number != asked.call:
            raise Violation(f"intent first: call {asked.call} was made before it was journaled")
        before = e.calls if asked.kind == "first" else e.talk  # another talk may come to the same point
        if not asked.fallback and any(call.reply and call.question == asked.question for call in before):
            raise Violation(f"paid once: call {asked.call} asks what was answered")

    def submitted(self, job: Job) -> None:
        e = self.night.experiments.get(job.experiment)
        if job.what == "test":
            if e is None or e.test_slot != job.slot:
                raise Violation("intent first: a test was started before it was journaled")
            if (job.experiment, job.number) not in self.world.outputs:
                raise Violation(f"nothing lost: the output of experiment {job.experiment} is gone before its test")
            return
        known = self.jobs.setdefault((job.experiment, job.number), (job.commit, job.seed))
        if known != (job.commit, job.seed):
            raise Violation(f"numbered once: trial {job.number} of experiment {job.experiment} means two")
        seeds = [seed for seed in self.jobs.values() if seed[1] == job.seed]
        trial = e.trials[job.number] if e and job.number < len(e.trials) else None
        if trial is None or not trial.running or trial.attempt != job.attempt:
            raise Violation("intent first: a trial was started before it was journaled")
        if len(seeds) > 1:
            raise Violation(f"numbered once: seed {job.seed} was used twice")

    def advanced(self, commit: str) -> None:
        if commit != self.night.tip:
            raise Violation("verified: the branch was moved to what is not the incumbent of the journal")

    def delivered(self, events: list[Event]) -> None:
        if self.awaited:
            raise Violation(f"nothing lost: {self.awaited[0]} reached the loop and is not in its journal")
        for event in events:
            if self.night.awaits(event) and key(event) not in self.awaited:
                self.awaited.append(key(event))

    def at_the_end(self) -> None:
        """When the last process has ended."""
        if lost := [one for one in self.world.sent if one not in self.night.requests and one not in self.world.spool]:
            raise Violation(f"nothing lost: request {lost[0]} is neither in the spool nor in the journal")
        branch, second = (self.world.refs.get(name, "") for name in ("branch", "second"))
        beside = branch == self.world.theirs and second in ("", self.night.tip)
        if self.night.tip and branch != self.night.tip and not beside:
            raise Violation("verified: the branch is not where the journal says")
        if self.world.theirs and self.world.theirs not in self.world.refs.values():
            raise Violation("nothing lost: the commit that a person put on the branch is held by no ref")
        self.steering.at_the_end(self.night, self.world)
        held = set(self.world.refs.values())
        for e in self.night.experiments.values():
            if gone := [t for t in e.trials if t.superseded and t.commit not in held and e.number]:
                raise Violation(f"nothing lost: the commit of trial {e.number}-{gone[0].number} is held by no ref")
            if e.published and self.world.refs.get(f"pin-{e.number}") != e.published:
                raise Violation(f"nothing lost: experiment {e.number} is not pinned")

    def same(self, night: Night) -> None:
        if night != self.night:
            raise Violation("same night: the journal adds up to another night than the loop saw")


def key(event: Event) -> tuple:
    names = ("experiment", "number", "call", "attempt", "id")
    return (*((name, getattr(event, name)) for name in names if hasattr(event, name)),)


def policy_bound(e) -> float:
    return e.verdict.interval[0] if e.verdict and e.verdict.interval else float("-inf")


@dataclass
class Outcome:
    seed: str
    violation: str = ""
    events: int = 0
    starts: int = 0
    experiments: int = 0
    kept: int = 0
    rebased: int = 0
    code: int = -1
    counts: Counter[str] = field(default_factory=Counter)


def simulate(seed: str) -> Outcome:
    """One night to its end, through as many processes as it takes."""
    rng = random.Random(seed)
    world = draw(rng)
    slots, ahead = rng.choice([1, 1, 2, 2, 3, 4]), random.Random(f"{seed} ahead").randint(0, 1)
    watch = Watch(world, most_open=slots + ahead)
    world.inspector = watch
    outcome = Outcome(seed)
    capacity = Capacity(slots=slots, calls=rng.randint(1, slots), evaluations=1, lookahead=ahead)
    stoppers = Stoppers(
        experiments=rng.randint(1, 6) if rng.random() < 0.7 else rng.randint(6, 14),
        usd=rng.choice([None, None, rng.uniform(0.2, 3.0)]),
        hours=rng.choice([None, None, rng.uniform(0.2, 5)]),
        plateau=rng.choice([None, None, 4]),
    )
    people(world, rng)
    falls_back = rng.random() < 0.4
    try:
        for start in range(60):
            if start == 30:  # a quiet end: without further faults a night must finish
                world.faults, world.away = Faults(sigma=world.faults.sigma), ""
                stoppers = more(stoppers, start)
            outcome.starts += 1
            code = one_process(world, watch, capacity, stoppers, falls_back)
            if code == 0 and (start >= 30 or rng.random() < 0.8):
                break
            if code == 3 and rng.random() < 0.3:  # what ended it may be changed by the person
                stoppers = more(stoppers, start)
            world.now += rng.uniform(1, 1000)
        else:
            raise Violation("progress: without faults, the night does not finish")
        watch.at_the_end()
        outcome.code = watch.night.ended.code if watch.night.ended else -1
    except Violation as violation:
        outcome.violation = str(violation)
    outcome.events, outcome.counts = len(world.rows), world.counts
    outcome.experiments, outcome.kept = len(watch.night.order), len(watch.night.kept)
    outcome.rebased = sum(1 for kind, _ in world.rows if kind == "Rebased")
    return outcome


def more(stoppers: Stoppers, start: int) -> Stoppers:
    """As good as no limits, stated anew."""
    return stoppers.model_copy(update={"usd": PLENTY + start, "hours": PLENTY + start})


def draw(rng: random.Random) -> World:
    """A world with its own share of every fault; one in five nights has none."""
    faults = Faults(sigma=rng.choice([0.0, 0.002, 0.02]))
    if rng.random() < 0.8:
        faults = Faults(
            crash=rng.choice([0.0, 0.002, 0.01, 0.05]),
            reply=rng.choice([0.05, 0.3]),
            trial=rng.choice([0.02, 0.2]),
            machine=rng.choice([0.0, 0.02, 0.2]),
            lost=rng.choice([0.0, 0.02]),
            doubled=rng.choice([0.0, 0.2]),
            sigma=faults.sigma,
        )
    program = {**PROGRAM, "test": rng.choice([None, "python prepare.py test"])}
    if rng.random() < 0.2:
        program["metric"] = {"name": "loss", "target": 0.3}
    return World(rng, faults, Program.model_validate(program))


def people(world: World, rng: random.Random) -> None:
    """What a person does while the night runs, at any moment."""

    def edit() -> None:
        world.counts["edit of program.md"] += 1
        world.program = world.program.model_copy(update={"direction": f"Edited at {world.now}."})
        world.broken = ""

    def break_it() -> None:
        world.counts["broken program.md"] += 1
        world.broken = f"program.md: unknown key, at {world.now}"

    def move() -> None:
        world.counts["branch moved by somebody"] += 1
        world.theirs = "theirs"
        world.commits["theirs"] = world.commits["base"]
        world.refs["branch"] = "theirs"

    def leave() -> None:
        world.counts["proposer goes away"] += 1
        world.away = rng.choice(["final: HTTP 401: the key was refused", "HTTP 503"])
        world.at(rng.uniform(10, 50000), back)

    def back() -> None:
        world.away = ""

    for _ in range(rng.choice([0, 0, 1, 3, 6])):
        do = rng.choice(
            [lambda: world.request("stop"), lambda: world.request("finish"), edit, edit, break_it, move, leave]
        )
        world.at(rng.uniform(0, 6000), do)
    steer(world, rng)


def one_process(world: World, watch: Watch, capacity: Capacity, stoppers: Stoppers, falls_back: bool) -> int:
    """From the start of a loop to its end or its death (-1)."""
    process, journal = Process(world), SimJournal(world)
    watch.awaited = []
    reread = lambda: world.broken or world.program  # noqa: E731
    loop = Loop(
        journal=journal,
        actions=Actions(
            reread=reread, journal=journal, repository=SimRepository(world),
            executor=SimExecutor(world, process, capacity.slots), proposer=SimProposer(world),
            caller=SimCaller(world, process), prompts=SimPrompter(), device="cpu", emit=process.put,
            fallback=SimProposer(world, stands_in=True) if falls_back else None,
        ),
        inbox=process, clock=process, capacity=capacity, stoppers=stoppers,
        surroundings=Surroundings(fallback="search" if falls_back else ""),
    )  # fmt: skip
    world.broken = "" if not world.rows or not world.broken else world.broken
    if world.broken:  # a process does not start on a broken program: the person mends it first
        world.broken = ""
    try:
        code = loop.run().code
    except Crash:
        return -1
    except Violation:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise Violation(f"survives: {type(error).__name__}: {error} ({where.filename}:{where.lineno})") from error
    watch.same(loop.night)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=1000)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--replay", help="seed:number of one night, as it was printed")
    parser.add_argument("--mutations", action="store_true")
    options = parser.parse_args()
    if options.replay:
        outcome = simulate(options.replay)
        print(outcome)
        return 1 if outcome.violation else 0
    if options.mutations:
        from bench.mutations import run_all

        return run_all(options.seed, options.nights)
    return report(options.nights, options.seed)


def report(nights: int, seed: str) -> int:
    started, counts = time.monotonic(), Counter[str]()
    total: Counter[str] = Counter()
    violations = []
    seeds = [f"{seed}:{number}" for number in range(nights)]
    with ProcessPoolExecutor() as pool:
        outcomes = list(pool.map(simulate, seeds, chunksize=50)) if nights > 200 else list(map(simulate, seeds))
    for outcome in outcomes:
        counts += outcome.counts
        for name in ("events", "starts", "experiments", "kept", "rebased"):
            total[name] += getattr(outcome, name)
        if outcome.violation:
            violations.append(outcome)
            print(f"VIOLATION {outcome.seed}: {outcome.violation}", flush=True)
    for name, count in sorted(counts.items()):
        print(f"{name:32} {count}")
    seconds = time.monotonic() - started
    crashes = sum(count for name, count in counts.items() if name.startswith("crash "))
    print(json.dumps({
        "nights": nights, **total, "crashes": crashes, "violations": len(violations), "seconds": round(seconds, 1),
    }))  # fmt: skip
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
