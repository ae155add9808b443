"""Was the night's gain real, and which of its commits carry it? Measured again, with seeds it never saw.

Every arm (the baseline, the final commit, and the chain without each kept commit) is trained with the same
fresh seeds, one round per seed, in an order that turns with the round: what drifts with time or with the
seed falls on all arms alike. The analysis is that of randomized complete blocks (Fisher 1935; the seed is the
block); with two arms it is the paired t-test.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from agent import events as ev
from agent.errors import Failure
from agent.judge.chain import Kept, link, rebuild
from agent.judge.measured import Measured, Part
from agent.judge.noise import t_quantile
from agent.program import Program
from agent.protocols import Executor, Job
from agent.records import Experiment, Record
from agent.workspace import Workspace

NUMBERS_FROM = 1_000_000  # the arms' trials are numbered as experiments from here, apart from the night's own
MOST_LOST = 0.25  # of the night's gain: what a pruned branch may seem to lose and still be offered


class Difference(Record):
    """How much better one arm is than another, in the metric's unit; positive is better."""

    effect: float
    interval: tuple[float, float]
    """95%."""

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.effect:.4g}, 95% interval {low:.4g}..{high:.4g}"


class Ablation(Record):
    """One kept commit, and what the final state loses without it."""

    experiment: int
    label: str
    worth: Difference | None = None
    """None: it can't be measured, and `note` says why."""
    carries: bool = True
    """False: not shown to be worth anything, and nearer to nothing than to what it was kept for."""
    note: str = ""


class AuditReport(Record):
    """What an audit found."""

    baseline: str
    """Its commit."""
    final: str
    before: float
    """The baseline's mean over the fresh seeds."""
    after: float
    gain: Difference
    rounds: int
    """Fresh seeds on which both worked."""
    test: dict[str, Difference] = {}
    """The numbers that the held-out test printed, read in the metric's direction."""
    ablations: tuple[Ablation, ...] = ()
    pruned: str | None = None
    """The branch without what carries nothing, where that was verified ..."""
    pruned_gain: Difference | None = None
    """... by this effect against the final state."""

    def save(self, home: Path) -> None:
        """Beside the journal of the night, in place of the audit before."""
        aside = home / "audit.tmp"
        aside.write_text(self.model_dump_json(), encoding="utf-8")
        os.replace(aside, home / "audit.json")

    @classmethod
    def last(cls, home: Path) -> AuditReport | None:
        """The newest audit of the night; None where there is none that can be read."""
        with contextlib.suppress(OSError, ValueError):
            return cls.model_validate_json((home / "audit.json").read_text(encoding="utf-8"))
        return None


Table = dict[str, list[float]]
"""Arm -> its value in each round that counts."""


class Arm(NamedTuple):
    """One state of the files, trained in every round."""

    name: str
    commit: str


class Lab(NamedTuple):
    """What an audit works with."""

    workspace: Workspace
    executor: Executor
    program: Program
    rounds: int
    say: Callable[[str], None]
    measured: Measured


def audit(
    experiments: Sequence[Experiment],
    workspace: Workspace,
    executor: Executor,
    program: Program,
    pairs: int,
    ablate: bool,
    prune: bool,
    say: Callable[[str], None],
) -> AuditReport:
    """Measure the final commit against the baseline on `pairs` fresh seeds, and what was asked for besides.
    `experiments`: those with a final verdict, in the order in which they got it.

    Raises Failure, one line, where nothing was kept, or where the baseline or the final commit does not run.
    """
    lab = Lab(workspace, executor, program, pairs, say, Measured(workspace.home))
    report = whole_audit(lab, experiments, ablate, prune)
    report.save(workspace.home)
    lab.measured.close()
    return report


def whole_audit(lab: Lab, experiments: Sequence[Experiment], ablate: bool, prune: bool) -> AuditReport:
    workspace, program, pairs, say = lab.workspace, lab.program, lab.rounds, lab.say
    if pairs < 2:
        raise Failure("an interval needs at least 2 pairs: use --pairs 5, say")
    kept = [e for e in experiments if e.verdict and e.verdict.kept]
    if len(kept) < 2:
        raise Failure("nothing was kept beside the baseline, so there is no gain to audit")
    start, final = kept[0].commit or "", kept[-1].commit or ""
    chain = [link(workspace, program, e) for e in kept[1:]]
    arms = [Arm("baseline", start), Arm("final", final)]
    for one in chain if ablate or prune else ():
        number = one.experiment.number
        if made := rebuild(workspace, start, chain, {number}):
            arms.append(Arm(f"without #{number}", made))
    table, tests = measure(lab, arms)
    better = compare(program, table)
    tested = {name: compare(program, pair)("baseline", "final") for name, pair in tests.items()}
    before, after = _mean(table["baseline"]), _mean(table["final"])
    gain, rounds = better("baseline", "final"), len(table["final"])
    report = AuditReport(baseline=start, final=final, before=before, after=after, gain=gain, rounds=rounds, test=tested)
    for name, difference in {program.metric.name: report.gain, **report.test}.items():
        say(f"{name}: the final commit is better than the baseline by {difference} ({report.rounds} fresh seeds)")
    if not (ablate or prune):
        return report
    built = {arm.name for arm in arms}
    ablations = tuple(_ablation(one.experiment, built, table, better) for one in chain)
    for ablation in ablations:
        say(f"#{ablation.experiment} {ablation.label}: {ablation.note or f'worth {ablation.worth}'}")
    report = report.model_copy(update={"ablations": ablations})
    return _prune(lab, report, chain) if prune else report


def measure(lab: Lab, arms: Sequence[Arm]) -> tuple[Table, dict[str, Table]]:
    """Train every arm with the same fresh seeds: the metric, and each number of the first two arms' tests.

    A round in which one of the first two arms failed is left out for all; so is any other arm that failed in
    a round that stays. Raises Failure where fewer than two rounds are left.
    """
    executor, program, rounds = lab.executor, lab.program, lab.rounds
    book = lab.measured.part(program, [arm.commit for arm in arms])
    names, seeds = [arm.name for arm in arms], book.seeds(rounds)
    tested = names[:2] if program.test else []
    jobs = [job for job in in_turn(arms, seeds, program) if not is_known(book, names, job, tested)]
    for arm, number, what in book.found():
        if what == "train" and number < rounds:
            lab.say(f"round {number + 1} of {rounds}, {arm}: measured before")
    try:
        for job, event in worked_off(executor, jobs, tested=tested):
            name = names[job.experiment - NUMBERS_FROM]
            if isinstance(event, ev.Tested):
                book.add(name, job.number, "test", figures=event.figures, reason=event.reason)
                continue
            metric, told = None, getattr(event, "reason", "")
            if isinstance(event, ev.Measured):
                metric, told = event.measurement.metric, event.measurement.reason
            book.add(name, job.number, "train", metric=metric)
            lab.say(f"round {job.number + 1} of {rounds}, {name}: {told if metric is None else f'{metric:.6g}'}")
    finally:
        for job in jobs:
            executor.forget(job.experiment, job.number)
            executor.discard(job.experiment)
    return tables(lab, book, names)


def in_turn(arms: Sequence[Arm], seeds: Sequence[int], program: Program) -> Iterator[Job]:
    """Each arm once with each seed, in an order that turns with the round."""
    for index, seed in enumerate(seeds):
        turn = index % len(arms)
        for place in (*range(turn, len(arms)), *range(turn)):
            yield Job(
                what="train", experiment=NUMBERS_FROM + place, number=index, attempt=1, commit=arms[place].commit,
                seed=seed, slot=0, program=program,
            )  # fmt: skip


def is_known(book: Part, names: Sequence[str], job: Job, tested: Sequence[str]) -> bool:
    """Whether there is nothing left to do; what a trial had saved is gone, so that a missing test needs it again."""
    found, name = book.found(), names[job.experiment - NUMBERS_FROM]
    trained = found.get((name, job.number, "train"))
    needs_test = name in tested and trained is not None and trained["metric"] is not None
    return trained is not None and (not needs_test or (name, job.number, "test") in found)


def tables(lab: Lab, book: Part, names: Sequence[str]) -> tuple[Table, dict[str, Table]]:
    """What was measured, by arm. Raises Failure."""
    rounds, told = lab.rounds, book.found()
    trained = {(arm, n): line["metric"] for (arm, n, what), line in told.items() if what == "train" and n < rounds}
    found = {key: metric for key, metric in trained.items() if metric is not None}
    scored = {(arm, n): line for (arm, n, what), line in told.items() if what == "test" and n < rounds}
    good = [i for i in range(rounds) if all((name, i) in found for name in names[:2])]
    if len(good) < 2:
        raise Failure(f"{names[0]} and {names[1]} both worked on {len(good)} of {rounds} seeds: see the logs")
    untested = next((line["reason"] for line in scored.values() if line["reason"]), "")
    if untested:
        lab.say(f"no test figures: {untested}")
    tests = {} if untested else {key: line["figures"] for key, line in scored.items() if key[1] in good}
    whole = [name for name in names if all((name, i) in found for i in good)]
    table = {name: [found[name, i] for i in good] for name in whole}
    shared = set.intersection(*(set(numbers) for numbers in tests.values())) if tests else ()
    return table, {n: {arm: [tests[arm, i][n] for i in good] for arm in names[:2]} for n in sorted(shared)}


def worked_off(executor: Executor, jobs: Iterable[Job], tested: Sequence[str]) -> Iterator[tuple[Job, ev.Event]]:
    """Each job with its result, as the slots become free. What the first arms have saved is tested, where `tested`
    names as many of them. Raises Failure where a trial was ended from outside."""
    results: queue.SimpleQueue[ev.Event] = queue.SimpleQueue()
    waiting, free = deque(jobs), deque(range(executor.slots))
    running: dict[tuple[bool, int, int], Job] = {}
    while waiting or running:
        while waiting and free:
            job = waiting.popleft().model_copy(update={"slot": free.popleft()})
            running[job.what == "test", job.experiment, job.number] = job
            executor.submit(job, results.put)
        event = results.get()
        test = isinstance(event, ev.Tested)
        job = running.pop((test, event.experiment, event.attempt if test else event.number))  # type: ignore
        free.append(job.slot)
        if isinstance(event, ev.TrialCancelled):
            raise Failure("it was interrupted; what was measured is kept, and the same command goes on")
        worked = isinstance(event, ev.Measured) and event.measurement.metric is not None
        if worked and job.experiment - NUMBERS_FROM < len(tested):
            waiting.appendleft(job.model_copy(update={"what": "test", "attempt": job.number}))
        yield job, event


def compare(program: Program, table: Table) -> Callable[[str, str], Difference]:
    """A function of two arms: how much better the second is. The error is from the residuals, arms x seeds."""
    arms, rounds = list(table.values()), len(next(iter(table.values())))
    grand = _mean([value for arm in arms for value in arm])
    seeds = [_mean([arm[i] for arm in arms]) - grand for i in range(rounds)]
    squares = sum((arm[i] - _mean(arm) - seeds[i]) ** 2 for arm in arms for i in range(rounds))
    freedom = (len(arms) - 1) * (rounds - 1)
    reach = t_quantile(0.975, freedom) * math.sqrt(squares / freedom * 2 / rounds)

    def better(one: str, other: str) -> Difference:
        effect = program.metric.gain(_mean(table[one]), _mean(table[other]))
        return Difference(effect=effect, interval=(effect - reach, effect + reach))

    return better


def _prune(lab: Lab, report: AuditReport, chain: Sequence[Kept]) -> AuditReport:
    """Take out together what carries nothing, measure that on fresh seeds, and branch where it holds."""
    idle = [(a.worth.effect, a.experiment) for a in report.ablations if a.worth and not a.carries]
    out, tip = set[int](), report.final
    for _, number in sorted(idle):
        if made := rebuild(lab.workspace, report.baseline, chain, out | {number}):
            out, tip = out | {number}, made
    if not out:
        lab.say("nothing to prune: no kept commit was found to carry nothing")
        return report
    names = ", ".join(f"#{number}" for number in sorted(out))
    lab.say(f"verifying the chain without {names}")
    arms = [Arm("final", report.final), Arm("pruned", tip)]
    untested = lab.program.model_copy(update={"test": None})
    table, _ = measure(lab._replace(program=untested), arms)
    gain = compare(untested, table)("final", "pruned")
    report = report.model_copy(update={"pruned_gain": gain})
    if gain.interval[1] < 0 or gain.effect < -MOST_LOST * max(0.0, report.gain.effect):
        lab.say(f"no branch: without {names} the final state seems to lose; its effect is {gain}")
        return report
    name = lab.workspace.refs.new_branch(f"{lab.workspace.tag}-pruned", tip)
    lab.say(f"{name} is the chain without {names}; its effect against the final state is {gain}")
    return report.model_copy(update={"pruned": name})


def _ablation(
    experiment: Experiment, built: Set[str], table: Table, better: Callable[[str, str], Difference]
) -> Ablation:
    """A keep carries nothing when its interval reaches 0 and its estimate is below half of what it promised."""
    number, verdict, arm = experiment.number, experiment.verdict, f"without #{experiment.number}"
    if arm not in table:
        note = "a trial without it failed" if arm in built else "later commits build on it: it can't come out"
        return Ablation(experiment=number, label=experiment.label, note=note)
    worth, promised = better(arm, "final"), (verdict.effect or 0.0) if verdict else 0.0
    idle = worth.interval[0] <= 0 and worth.effect <= promised / 2
    carries = not idle or (verdict is not None and verdict.kind == "simplification")
    note = "" if carries else f"carries nothing: worth {worth}, kept for {promised:.4g}"
    return Ablation(experiment=number, label=experiment.label, worth=worth, carries=carries, note=note)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
