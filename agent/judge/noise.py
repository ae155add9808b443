"""Is the candidate better, or was it the seed? The noise, measured; and the decision, one trial at a time.

The reasoning, and the figures that `python -m bench.noise` gives for it, are in docs/JUDGE.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from scipy import special  # scipy.stats has the same quantiles, and takes 60 MB more

from agent.program import Budget, Program
from agent.records import Experiment, Measurement, Record, Verdict, VerdictKind

Trials = Sequence[Measurement]  # the ok measurements of one commit, in the order they were made
BASELINE_SECONDS = 900.0  # about what the baseline's seeds may cost
WILD = 0.999  # of the F distribution: a commit that varies more than this has a noise of its own
LARGE = 10**6  # degrees of freedom at which Student's t is the normal distribution
INTERVAL = 0.9  # what verdicts print: its ends are those of the one-sided tests at Rule.confirm
LIGHTER = 0.95  # peak memory at most this share of the incumbent's makes a change simpler


class Rule(Record):
    """Where the decision's lines are drawn. Chances are one-sided, of Student's t with the noise's degrees
    of freedom, so that a badly known noise asks for more evidence by itself. Chosen with bench/noise.py."""

    screen: float = 0.22
    """A change of no effect passes its first trial with this chance; the rest are discarded at once."""
    confirm: float = 0.05
    """Chance that fresh trials alone call a change of no effect better, when all reruns are used ..."""
    spend: float = 4.0
    """... and before that, after a share s of the reruns: confirm * s**spend. An early keep must be clear."""
    hope: float = 0.6
    """Standard errors that fresh trials may lack of what the last look will ask for, to be continued."""
    known: int = 4
    """Trials the incumbent should have before a first look near the line is trusted ..."""
    near: tuple[float, float] = (0.2, 2.0)
    """... that is, an effect between these many standard errors."""


RULE = Rule()


class Noise(Record):
    """The spread of the metric over seeds, one trial each, pooled over commits measured several times."""

    sigma: float | None
    """Standard deviation of one trial, in the metric's unit; None: not measured yet."""
    freedom: int
    """Degrees of freedom: trials less commits, over the commits with at least two trials."""
    low: float | None
    high: float | None
    """95% chi-square interval of sigma."""

    @classmethod
    def of(cls, groups: Iterable[Sequence[float]]) -> Noise:
        """Pool within-commit variances. Each group: the metrics of one commit's trials with different seeds.

        Leave out the trial that selected a commit: it was picked for being extreme (see `counted`). A commit
        with a noise of its own kind (one seed diverged, say; F-test) does not blur what is known of the others.
        """
        parts = [(_squares(group), len(group) - 1) for group in groups if len(group) >= 2]
        squares, freedom = sum(part[0] for part in parts), sum(part[1] for part in parts)
        while len(parts) > 1:
            wild = max(parts, key=lambda part: part[0] / part[1])
            parts.remove(wild)
            rest, left = sum(part[0] for part in parts), freedom - wild[1]
            if not rest or wild[0] / wild[1] < _f_quantile(wild[1], left) * rest / left:
                break
            squares, freedom = rest, left
        if not freedom:
            return cls(sigma=None, freedom=0, low=None, high=None)
        low, high = (math.sqrt(squares / _chi2(chance, freedom)) for chance in (0.975, 0.025))
        return cls(sigma=math.sqrt(squares / freedom), freedom=freedom, low=low, high=high)

    @classmethod
    def of_night(cls, experiments: Iterable[Experiment]) -> Noise:
        """The noise as the ledger knows it, from every trial that was not picked for being extreme."""
        return cls.of(group for e in experiments if len(e.trials) > 1 for group in groups(e))

    def __str__(self) -> str:
        """One sentence for the prompt and the report."""
        if self.sigma is None or self.low is None or self.high is None:
            return "the noise between seeds is not measured yet"
        if self.sigma == 0:
            return (
                f"no noise: {self.freedom + 1} trials with different seeds gave the same value "
                "(where that is not meant: training has to read RESEARCH_SEED)"
            )
        return (
            f"one trial's standard deviation over seeds is {self.sigma:.2g} "
            f"(95% interval {self.low:.2g}..{self.high:.2g}, {self.freedom} degrees of freedom); "
            f"only differences above about {2 * self.sigma:.2g} can be told from luck"
        )


class Rerun(Record):
    """Not decided: one more trial with a fresh seed, of the candidate or of the incumbent."""

    of: Literal["candidate", "incumbent"]
    reason: str


def baseline_trials(budget: Budget) -> int:
    """How many seeds of the baseline to measure first: 4 when trials are cheap, 3 at 5 minutes, else 2."""
    return max(2, min(4, int(BASELINE_SECONDS / budget.seconds)))


def groups(experiment: Experiment) -> list[Sequence[float]]:
    """Its metrics by commit, without the trial that selected it: an experiment that was put onto a newer incumbent
    has several commits."""
    older: dict[str, list[float]] = {}
    for trial in experiment.trials:
        if trial.superseded and trial.measurement and trial.measurement.metric is not None:
            older.setdefault(trial.commit, []).append(trial.measurement.metric)
    current = counted(experiment.metrics, baseline=experiment.unselected)
    if experiment.number == 0:
        return [*older.values(), current]
    first, *rest = [*older.values(), current]
    return [first[1:], *rest] if older else [current]


def counted(values: Sequence, baseline: bool) -> Sequence:
    """The trials that may speak for a commit: not the one that selected it, unless there is no other."""
    return values if baseline or len(values) < 2 else values[1:]


def decide(
    program: Program,
    incumbent: Trials,
    candidate: Trials,
    noise: Noise,
    shorter: bool,
    baseline: bool = False,
    rule: Rule = RULE,
    more: bool = True,
) -> Verdict | Rerun:
    """Keep, discard, or ask for one more trial; call it again with the noise as it is after that.

    candidate[0] selected the candidate, and so did incumbent[0] unless `baseline` (experiment 0). A keep
    rests on the candidate's later trials only, except where the noise is zero or program.reruns is 0.
    Without `more` the incumbent can't be run again, and what is known of it has to do.
    """
    first, fresh = _metrics(candidate[:1]), _metrics(candidate[1:])
    if breach := _breach(program, incumbent, candidate):
        return Verdict(kind="discard", reason=breach, metric=first[0], trials=1)
    held = counted(_metrics(incumbent), baseline)
    if noise.sigma is None:
        noise = Noise.of([held])
    if noise.sigma is None and not more:
        why = "the noise can't be measured: the incumbent works too rarely"
        return Verdict(kind="discard", reason=why, metric=first[0], trials=1, review=True)
    if noise.sigma is None:
        return Rerun(of="incumbent", reason=str(noise))
    simpler = program.simplify and (shorter or _lighter(incumbent, candidate))
    if noise.sigma == 0:
        return _exact(Gap.between(program, held, first, noise), simpler)
    if not fresh:
        return _first_look(program, Gap.between(program, held, first, noise), len(held), simpler, rule, more)
    return _look(program, Gap.between(program, held, fresh, noise), len(held), simpler, rule, more)


def gain(program: Program, baseline: Trials, final: Trials, noise: Noise) -> tuple[float, tuple[float, float]] | None:
    """What a night may claim: how much better the final commit's counted mean is than the baseline's, and its
    95% interval, in the metric's unit. None: the noise is not measured."""
    if noise.sigma is None:
        return None
    gap = Gap.between(program, _metrics(baseline), counted(_metrics(final), baseline=False), noise)
    return gap.effect, gap.within(0.95)


class Gap(NamedTuple):
    """A candidate's mean against the incumbent's, as an improvement."""

    mean: float
    effect: float
    error: float  # standard error of the effect
    sigma: float
    freedom: int
    trials: int

    @classmethod
    def between(cls, program: Program, held: Sequence[float], trials: Sequence[float], noise: Noise) -> Gap:
        assert noise.sigma is not None
        mean = math.fsum(trials) / len(trials)
        effect = program.metric.gain(math.fsum(held) / len(held), mean)
        error = noise.sigma * math.sqrt(1 / len(trials) + 1 / len(held))
        return cls(mean, effect, error, noise.sigma, noise.freedom, len(trials))

    def within(self, share: float) -> tuple[float, float]:
        """The two-sided interval that holds the effect in this share of all cases."""
        reach = t_quantile(0.5 + share / 2, self.freedom) * self.error
        return self.effect - reach, self.effect + reach

    @property
    def interval(self) -> tuple[float, float]:
        """As Verdict.interval."""
        return self.within(INTERVAL)

    @property
    def noise_alone(self) -> bool:
        """It may be the noise and nothing else."""
        return self.interval[0] <= 0 <= self.interval[1]

    def __str__(self) -> str:
        return f"{self.effect:.{_places(self.error)}f}"

    def verdict(self, kind: VerdictKind, why: str = "", review: bool = False) -> Verdict:
        """With the reason in plain words: how much better, how sure, from how many trials."""
        low, high = self.interval
        places = _places(self.error)
        word = "better" if self.effect >= 0 else "worse"
        many = "1 trial" if self.trials == 1 else f"mean of {self.trials} trials"
        reason = (
            f"{abs(self.effect):.{places}f} {word} than the incumbent, "
            f"{INTERVAL:.0%} interval {low:.{places}f}..{high:.{places}f}, {many}{why}"
        )
        measured = {"metric": self.mean, "effect": self.effect, "interval": (low, high), "trials": self.trials}
        return Verdict(kind=kind, reason=reason, review=review, **measured)


def _first_look(program: Program, gap: Gap, held: int, simpler: bool, rule: Rule, more: bool) -> Verdict | Rerun:
    """The trial that selects may discard, or send to confirmation; it can't keep, unless reruns is 0."""
    ratio = gap.effect / gap.error
    if not program.reruns:
        if ratio <= t_quantile(1 - rule.confirm, gap.freedom):
            return gap.verdict("discard")
        return gap.verdict("keep", "; not confirmed, because program.md says reruns: 0", review=True)
    if more and held < rule.known and rule.near[0] < ratio < rule.near[1]:
        return Rerun(of="incumbent", reason=f"near the line, and the incumbent has only {held} trials")
    bar = t_quantile(1 - rule.screen, gap.freedom)
    if ratio > bar:
        return Rerun(of="candidate", reason=f"{gap} better in its first trial, to be confirmed")
    if simpler and ratio > -bar:
        return Rerun(of="candidate", reason="simpler and about equal in its first trial, to be confirmed")
    return gap.verdict("discard", ", within the noise" if gap.noise_alone else "")


def _look(program: Program, gap: Gap, held: int, simpler: bool, rule: Rule, more: bool) -> Verdict | Rerun:
    """The fresh trials alone, `gap.trials` of them, against the incumbent's pooled mean."""
    allowed = max(program.reruns, 1)
    share = min(1.0, gap.trials / allowed)
    if gap.effect > t_quantile(1 - rule.confirm * share**rule.spend, gap.freedom) * gap.error:
        return gap.verdict("keep")
    if simpler and gap.effect >= 0 and gap.trials >= min(2, allowed):
        same = "equal within the noise" if gap.noise_alone else "no worse"
        return gap.verdict("simplification", f", {same} and simpler")
    asked = t_quantile(1 - rule.confirm, LARGE) * gap.sigma * math.sqrt(1 / allowed + 1 / max(held, allowed))
    hopeful = gap.effect + rule.hope * gap.error > asked or (simpler and gap.trials < 2)
    if more and hopeful and held < gap.trials:
        return Rerun(of="incumbent", reason=f"the candidate has {gap.trials} trials, the incumbent only {held}")
    if hopeful and gap.trials < allowed:
        why = "within the noise" if gap.noise_alone else "not sure enough yet"
        return Rerun(of="candidate", reason=f"an effect of {gap} after {gap.trials} of {allowed} fresh trials, {why}")
    return gap.verdict("discard", ", within the noise" if gap.noise_alone else "")


def _exact(gap: Gap, simpler: bool) -> Verdict:
    """No noise was measured, so one trial tells all: strictly better, or exactly equal and simpler."""
    size = f"{abs(gap.effect):.6g}"
    measured = {"metric": gap.mean, "effect": gap.effect, "interval": (gap.effect, gap.effect), "trials": gap.trials}
    if gap.effect > 0:
        return Verdict(kind="keep", reason=f"{size} better than the incumbent, without noise", **measured)
    if gap.effect == 0 and simpler:
        return Verdict(kind="simplification", reason="equal to the incumbent, and simpler", **measured)
    reason = f"{size} worse than the incumbent, without noise" if gap.effect else "equal to the incumbent"
    return Verdict(kind="discard", reason=reason, **measured)


def _breach(program: Program, incumbent: Trials, candidate: Trials) -> str | None:
    """The first limit that any trial of the candidate passes, or that it does not report."""
    for name, most in program.limits.items():
        for measurement in candidate:
            value = _number(measurement, name)
            if value is None and name == "peak_memory_gb" and _number(incumbent[0], name) is None:
                continue  # this machine does not tell
            if value is None:
                return f"it does not report {name}, which program.md limits to {most:g}"
            if not value <= most:
                return f"{name} is {value:.4g}, over the limit of {most:g}"
    return None


def unreported(program: Program, worked: Trials) -> str | None:
    """The first number that is limited, though none of these trials reports it: no candidate could be kept."""
    names = (name for name in program.limits if name != "peak_memory_gb")
    return next((name for name in names if all(_number(m, name) is None for m in worked)), None)


def _lighter(incumbent: Trials, candidate: Trials) -> bool:
    """Clearly less peak memory than the incumbent, in the worst of each one's trials."""
    before = [m.peak_memory_gb for m in incumbent if m.peak_memory_gb is not None]
    after = [m.peak_memory_gb for m in candidate if m.peak_memory_gb is not None]
    return bool(before and after) and max(after) <= LIGHTER * max(before)


def _number(measurement: Measurement, name: str) -> float | None:
    """What a limit is held against: where there is an evaluation, only what that printed, since training prints what
    the agent wants."""
    if name == "peak_memory_gb":
        return measurement.peak_memory_gb
    told = measurement.evaluated is None or name in measurement.evaluated
    return measurement.numbers.get(name) if told else None


t_quantile = lru_cache(maxsize=4096)(lambda chance, freedom: float(special.stdtrit(freedom, chance)))
_f_quantile = lru_cache(maxsize=4096)(lambda above, below: float(special.fdtri(above, below, WILD)))
_chi2 = lru_cache(maxsize=4096)(lambda chance, freedom: float(special.chdtri(freedom, 1 - chance)))


def _metrics(measurements: Trials) -> list[float]:
    return [m.metric for m in measurements if m.metric is not None]


def _squares(group: Sequence[float]) -> float:
    """The sum of squared distances from the mean; 0 where it is no more than the rounding of equal values, which would
    make any difference look certain."""
    mean = sum(group) / len(group)
    total = sum((value - mean) * (value - mean) for value in group)
    rounding = math.sqrt(len(group)) * 4 * sys.float_info.epsilon * max(map(abs, group))
    return total if math.sqrt(total) > rounding else 0.0  # compared as distances: squares of a diverged seed overflow


def _places(error: float) -> int:
    """Decimals that show two figures of an uncertainty."""
    return max(0, min(12, 1 - math.floor(math.log10(error)))) if error > 0 else 6
