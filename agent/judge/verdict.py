"""From trials to a verdict: the noise decides (noise.py), and what is too good to be true waits for more seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from agent.judge.integrity import implausible
from agent.judge.noise import Noise, Rerun, decide
from agent.program import Program
from agent.records import Experiment, Measurement, Verdict
from agent.state import too_flaky

SLIPS = 2  # times that a crash within seconds goes back to the proposer as part of the same experiment
SLIP_SECONDS = 10.0  # of training; a later crash is a result, not a slip
SAME = 3  # trials with one value, where those of others differ, that are no chance any more
STRETCH, LEAST_STRETCH = 0.02, 2.0  # of the budget, and seconds: more than that longer than the incumbent is a stretch
HELD = "held for review, not on the branch"
CONFIRMATIONS = 2  # fresh seeds that an implausible gain must survive


def weigh(
    program: Program,
    incumbent: Experiment,
    experiment: Experiment,
    finished: Sequence[Experiment],
    before: Mapping[str, str],
    seconds: float = 0.0,
) -> Verdict | Rerun:
    """Judge an experiment whose trials all worked; `before`: the changed files as the incumbent has them. `seconds`: of
    training that a trial may take; 0: its budget is not one of time."""
    noise = Noise.of_night([*finished, experiment])
    shorter = lines(experiment.files) < lines(before)
    trials = worked(experiment)
    if experiment.unselected:  # selected on an older commit, so that every trial of this one is fresh
        trials = [trials[0], *trials]
    held = worked(incumbent)
    more = not too_flaky(len(held), len(incumbent.current) - len(held))
    decision = decide(program, held, trials, noise, shorter, baseline=incumbent.unselected, more=more)
    if isinstance(decision, Rerun) or not decision.kept or decision.effect is None:
        return decision
    if not experiment.accepted and (longer := stretched(held, worked(experiment), seconds)):
        why = f"{HELD}: {longer} ({decision.reason})"
        return decision.model_copy(update={"kind": "held", "review": True, "reason": why})
    if noise.sigma and same_value(experiment) and not experiment.accepted:
        trials = len(experiment.metrics)
        if trials < min(SAME, 1 + program.reruns):
            return Rerun(of="candidate", reason="two seeds gave one value, where the incumbent's differ: once more")
        why = f"{HELD}: the same value with {trials} seeds, where the incumbent's differ; "
        why += f"does it still train with RESEARCH_SEED, and measure what it trained? ({decision.reason})"
        return decision.model_copy(update={"kind": "held", "review": True, "reason": why})
    gains = [e.verdict.effect for e in finished if e.verdict and e.verdict.kept and e.verdict.effect is not None]
    doubt = implausible(decision.effect, noise.sigma or 0.0, gains)
    if doubt is None:
        return decision
    if len(experiment.metrics) < 1 + min(CONFIRMATIONS, program.reruns):
        return Rerun(of="candidate", reason=doubt)
    return decision.model_copy(update={"review": True, "reason": f"{decision.reason}; {doubt}"})


def stretched(incumbent: Sequence[Measurement], candidate: Sequence[Measurement], seconds: float) -> str:
    """Every trial of the candidate trained beyond its budget, by more than any of the incumbent's, though by less than
    is refused at once."""
    if not seconds or not candidate:
        return ""
    usual = max([seconds, *(m.training_seconds for m in incumbent)])
    least = min(m.training_seconds for m in candidate)
    if least <= usual + max(LEAST_STRETCH, STRETCH * seconds):
        return ""
    return f"each trial trained for {least:.1f} s or more, with a budget of {seconds:g} s; the incumbent {usual:.1f}"


def same_value(experiment: Experiment) -> bool:
    """All trials of the candidate, with different seeds, gave one value."""
    return len(experiment.metrics) > 1 and Noise.of([experiment.metrics]).sigma == 0


def tried_again(experiment: Experiment, finished: Sequence[Experiment]) -> Rerun | None:
    """The candidate's newest trial failed. Where kept commits fail at times as well, it may be no fault of the change:
    once more with a fresh seed, but not for ever."""
    last, failed = experiment.current[-1], len(experiment.current) - len(worked(experiment))
    known = failures(*(e for e in finished if e.verdict and e.verdict.kept))
    if not known or last.outcome == "violation" or too_flaky(len(worked(experiment)), failed + 1):
        return None
    return Rerun(of="candidate", reason=f"{last.outcome}: {last.reason}; but {known} of what was kept, so once more")


def failures(*experiments: Experiment) -> str:
    """`2 of 7 trials crashed`; "" where none failed."""
    trials = [m for e in experiments for m in e.current]
    counts = Counter(m.outcome for m in trials if m.outcome != "ok")
    words = {"crash": "crashed", "timeout": "were killed at a limit of time", "violation": "broke a rule"}
    return ", ".join(f"{n} of {len(trials)} trials {words.get(kind, kind)}" for kind, n in counts.most_common())


def is_slip(experiment: Experiment) -> bool:
    """A traceback within seconds of a change that never worked: worth sending back, at most SLIPS times."""
    *before, last = experiment.measurements
    slips = sum(1 for call in experiment.calls if call.kind == "slip")
    early = last.outcome == "crash" and last.training_seconds < SLIP_SECONDS and "Traceback" in last.log_tail
    return early and slips < SLIPS and all(m.outcome == "crash" for m in before)


def worked(experiment: Experiment) -> list[Measurement]:
    return [m for m in experiment.current if m.outcome == "ok"]


def lines(files: Mapping[str, str]) -> int:
    return sum(text.count("\n") for text in files.values())
