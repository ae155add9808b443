"""Simulated nights that run the judge's own code: `python -m bench.noise` (about a minute on 2 cores).

A night: the baseline's seeds, then 100 experiments. Each has a true effect on the incumbent, drawn from a
landscape; each trial shows the true value plus Gaussian noise, whose size the judge does not know. Unit: the
typical effect, 1 = the mean gain of a change that helps in the usual landscape.

The last line is JSON. What its keys mean, each over all nights of all landscapes and noises alike:
  false_keep       share of the proposals with a true effect of exactly 0 that were kept
  power_3sigma     share kept of proposals truly better by 3 standard deviations of one trial; as probes,
  power_2sigma     shown to the judge after every 10th experiment in the state it has then, without consequence
  extra_trials     trials beyond one per experiment and one for the baseline, per experiment; its extra
                   seeds and the reruns of the incumbent count
  claim_ratio      sum of claimed gains (noise.gain: final commit against the baseline) / sum of true gains
  worse_than_start share of the nights whose final commit is truly worse than the baseline
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from agent.judge.noise import RULE, Noise, Rerun, Rule, baseline_trials, counted, decide, gain
from agent.program import Budget, Program
from agent.records import Measurement

EXPERIMENTS = 100
PROBE_EVERY = 10
NOISES = (0.1, 0.3, 1.0, 3.0)
PROGRAM = Program.model_validate({"metric": {"name": "loss"}, "budget": "5m"})
Judge = tuple[int, Rule] | str
"""The reruns allowed and the rule of agent.judge.noise; or PLAIN or MARGIN."""
PLAIN, MARGIN = "plain: better = keep", "fixed margin of 2 sigma"
CURVE = (
    *((reruns, RULE) for reruns in (1, 2, 4, 6, 8)),
    *((6, Rule(screen=screen)) for screen in (0.10, 0.30)),
    *((6, Rule(confirm=confirm)) for confirm in (0.01, 0.15)),
)
"""The trade-off: the allowance of reruns, how many pass the first trial, how sure a keep must be."""


class Landscape(NamedTuple):
    """How true effects are distributed: exactly none, helpful or harmful, the latter two exponential."""

    name: str
    none: float
    helpful: float
    """Shares of the proposals; the rest is harmful."""
    gain: float
    harm: float
    """Mean sizes."""

    def draw(self, rng: random.Random) -> float:
        kind = rng.random()
        if kind < self.none:
            return 0.0
        if kind < self.none + self.helpful:
            return rng.expovariate(1 / self.gain)
        return -rng.expovariate(1 / self.harm)


LANDSCAPES = (
    Landscape("rich", none=0.40, helpful=0.20, gain=1.0, harm=2.0),
    Landscape("usual", none=0.45, helpful=0.10, gain=1.0, harm=1.5),
    Landscape("hard", none=0.37, helpful=0.03, gain=0.5, harm=1.0),
)


class Tally:
    """Sums over the nights of one scenario; `+=` pools scenarios."""

    def __init__(self) -> None:
        self.nights = self.keeps = self.empty_keeps = self.neutral = self.neutral_keeps = 0
        self.probes = self.power2 = self.power3 = self.extra = self.worse = 0
        self.claimed = self.true = 0.0

    def __iadd__(self, other: Tally) -> Tally:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    def figures(self) -> dict[str, float]:
        return {
            "false_keep": round(self.neutral_keeps / self.neutral, 4),
            "power_3sigma": round(self.power3 / self.probes, 3),
            "power_2sigma": round(self.power2 / self.probes, 3),
            "extra_trials": round(self.extra / self.nights / EXPERIMENTS, 3),
            "claim_ratio": round(self.claimed / self.true, 3) if self.true else math.nan,
            "worse_than_start": round(self.worse / self.nights, 4),
        }


class Night:
    """The judge's night: asks `decide`, and runs the trials it asks for. The loss falls with every gain."""

    def __init__(self, rng: random.Random, sigma: float, rule: Rule, reruns: int):
        self.rng, self.sigma, self.rule = rng, sigma, rule
        self.program = PROGRAM.model_copy(update={"reruns": reruns})
        self.true = 0.0
        self.baseline = [self.trial(0.0) for _ in range(baseline_trials(Budget.parse("5m")))]
        self.incumbent, self.is_baseline = self.baseline, True
        self.past: list[Sequence[float]] = []
        """Counted metrics of every commit but the incumbent's, for the noise."""
        self.extra = len(self.baseline) - 1

    def trial(self, true: float) -> Measurement:
        return Measurement.model_construct(outcome="ok", metric=true + self.rng.gauss(0.0, self.sigma))

    def noise(self, incumbent: list[Measurement], candidate: list[Measurement]) -> Noise:
        held = counted(metrics(incumbent), self.is_baseline)
        return Noise.of([*self.past, held, metrics(candidate[1:])])

    def propose(self, effect: float, probe: bool = False) -> bool:
        """One experiment; a probe leaves nothing behind. Returns whether it was kept."""
        true = self.true - effect
        candidate = [self.trial(true)]
        incumbent = list(self.incumbent) if probe else self.incumbent
        trials = 0
        while True:
            noise = self.noise(incumbent, candidate)
            verdict = decide(self.program, incumbent, candidate, noise, False, self.is_baseline, self.rule)
            if not isinstance(verdict, Rerun):
                break
            if verdict.of == "candidate":
                candidate.append(self.trial(true))
            else:
                incumbent.append(self.trial(self.true))
            trials += 1
        if probe:
            return verdict.kept
        self.extra += trials
        if verdict.kept:
            self.past.append(counted(metrics(self.incumbent), self.is_baseline))
            self.incumbent, self.is_baseline, self.true = candidate, False, true
        elif len(candidate) > 2:
            self.past.append(metrics(candidate[1:]))
        return verdict.kept

    def claim(self) -> float:
        if self.is_baseline:
            return 0.0
        claimed = gain(self.program, self.baseline, self.incumbent, self.noise(self.incumbent, []))
        assert claimed is not None
        return claimed[0]


class MarginNight:
    """One trial each, kept when better than the incumbent's one trial by a margin; sigma known exactly."""

    def __init__(self, rng: random.Random, sigma: float, margin: float):
        self.rng, self.sigma, self.margin = rng, sigma, margin
        self.true, self.extra = 0.0, 0
        self.start = self.value = rng.gauss(0.0, sigma)

    def propose(self, effect: float, probe: bool = False) -> bool:
        value = self.true - effect + self.rng.gauss(0.0, self.sigma)
        kept = value < self.value - self.margin
        if kept and not probe:
            self.value, self.true = value, self.true - effect
        return kept

    def claim(self) -> float:
        return self.start - self.value


def metrics(measurements: Sequence[Measurement]) -> list[float]:
    return [m.metric for m in measurements if m.metric is not None]


class Scenario(NamedTuple):
    """Many nights of one way to judge, in one landscape with one noise."""

    judge: Judge
    landscape: Landscape
    sigma: float
    nights: int
    seed: int

    def night(self, rng: random.Random) -> Night | MarginNight:
        if isinstance(self.judge, str):
            return MarginNight(rng, self.sigma, 0.0 if self.judge == PLAIN else 2 * self.sigma)
        reruns, rule = self.judge
        return Night(rng, self.sigma, rule, reruns)

    def run(self) -> Tally:
        rng, tally = random.Random(self.seed), Tally()
        for _ in range(self.nights):
            night = self.night(rng)
            for number in range(1, EXPERIMENTS + 1):
                effect = self.landscape.draw(rng)
                kept = night.propose(effect)
                tally.keeps += kept
                tally.empty_keeps += kept and effect <= 0
                tally.neutral += effect == 0
                tally.neutral_keeps += kept and effect == 0
                if number % PROBE_EVERY == 0:
                    tally.probes += 1
                    tally.power2 += night.propose(2 * self.sigma, probe=True)
                    tally.power3 += night.propose(3 * self.sigma, probe=True)
            tally.nights += 1
            tally.extra += night.extra
            tally.claimed += night.claim()
            tally.true -= night.true
            tally.worse += night.true > 1e-9
        return tally


def simulate(judges: Sequence[Judge], nights: int) -> list[list[Tally]]:
    """A tally per judge and scenario, from two processes. Same seeds for each judge: a fair comparison."""
    pairs = list(product(LANDSCAPES, NOISES))
    jobs = [Scenario(judge, *pair, nights, seed) for judge in judges for seed, pair in enumerate(pairs)]
    with ProcessPoolExecutor(2) as pool:
        tallies = list(pool.map(Scenario.run, jobs))
    return [tallies[i : i + len(pairs)] for i in range(0, len(tallies), len(pairs))]


def row(name: str, tally: Tally) -> list[str]:
    figures = tally.figures()
    return [
        name,
        f"{tally.keeps / tally.nights:.2f}",
        f"{tally.empty_keeps / tally.keeps:.0%}" if tally.keeps else "-",
        f"{figures['false_keep']:.2%}",
        f"{figures['power_2sigma']:.0%}",
        f"{figures['power_3sigma']:.0%}",
        f"{figures['extra_trials']:.0%}",
        f"{tally.claimed / tally.nights:.2f}",
        f"{tally.true / tally.nights:.2f}",
        f"{figures['claim_ratio']:.2f}" if tally.true / tally.nights >= 0.1 else "-",
        f"{figures['worse_than_start']:.1%}",
    ]


def table(title: str, rows: Sequence[Sequence[str]]) -> Table:
    heads = "keeps a night,of these false,no effect kept,2 sigma kept,3 sigma kept,extra trials"
    made = Table(title=title, caption="false: the true effect is none or harmful")
    made.add_column("rule")
    for head in f"{heads},claimed,true,ratio,ends worse".split(","):
        made.add_column(head, justify="right", max_width=9)
    for cells in rows:
        made.add_row(*cells)
    return made


def pooled(tallies: Sequence[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total += tally
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nights", type=int, default=500, help="repeats of each of the 12 scenarios")
    parser.add_argument("--curve", action="store_true", help="the trade-off: other rules beside the chosen one")
    parser.add_argument("--reruns", type=int, default=PROGRAM.reruns, help="default: as program.md's default")
    options = parser.parse_args()
    console = Console(width=120)
    if options.curve:
        tallies = simulate(CURVE, options.nights)
        names = [f"reruns {n}, screen {rule.screen:g}, confirm {rule.confirm:g}" for n, rule in CURVE]
        console.print(table("the trade-off", [row(n, pooled(t)) for n, t in zip(names, tallies, strict=True)]))
        return
    tallies = simulate(((options.reruns, RULE), MARGIN, PLAIN), options.nights)
    scenarios = [f"{land.name}, noise {sigma:g}" for land, sigma in product(LANDSCAPES, NOISES)]
    console.print(table("the judge", [row(n, t) for n, t in zip(scenarios, tallies[0], strict=True)]))
    names = ("the judge", MARGIN, PLAIN)
    console.print(table("all nights", [row(n, pooled(t)) for n, t in zip(names, tallies, strict=True)]))
    print(json.dumps(pooled(tallies[0]).figures()))


if __name__ == "__main__":
    main()
