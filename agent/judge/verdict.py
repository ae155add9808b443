"""From trials to a verdict: the noise decides (noise.py), and what is too good to be true waits for more seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.judge.integrity import implausible
from agent.judge.noise import Noise, Rerun, decide
from agent.program import Program
from agent.records import Experiment, Measurement, Verdict

SLIPS = 2  # times that a crash within seconds goes back to the proposer as part of the same experiment
SLIP_SECONDS = 10.0  # of training; a later crash is a result, not a slip
CONFIRMATIONS = 2  # fresh seeds that an implausible gain must survive


def weigh(
    program: Program,
    incumbent: Experiment,
    experiment: Experiment,
    finished: Sequence[Experiment],
    before: Mapping[str, str],
) -> Verdict | Rerun:
    """Judge an experiment whose trials all worked; `before`: the changed files as the incumbent has them."""
    noise = Noise.of_night([*finished, experiment])
    shorter = lines(experiment.files) < lines(before)
    trials = worked(experiment)
    if experiment.unselected:  # selected on an older commit, so that every trial of this one is fresh
        trials = [trials[0], *trials]
    decision = decide(program, worked(incumbent), trials, noise, shorter, baseline=incumbent.unselected)
    if isinstance(decision, Rerun) and decision.of == "incumbent" and incumbent.current[-1].outcome != "ok":
        why = f"the incumbent's own rerun failed ({incumbent.current[-1].reason}), so the two can't be compared"
        return Verdict(kind="discard", reason=why, metric=experiment.metrics[0], review=True)
    if isinstance(decision, Rerun) or not decision.kept or decision.effect is None:
        return decision
    gains = [e.verdict.effect for e in finished if e.verdict and e.verdict.kept and e.verdict.effect is not None]
    doubt = implausible(decision.effect, noise.sigma or 0.0, gains)
    if doubt is None:
        return decision
    if len(experiment.metrics) < 1 + min(CONFIRMATIONS, program.reruns):
        return Rerun(of="candidate", reason=doubt)
    return decision.model_copy(update={"review": True, "reason": f"{decision.reason}; {doubt}"})


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
