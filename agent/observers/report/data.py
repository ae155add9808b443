"""What a report shows, as plain JSON: an overview that is shown at once, and details that are looked up when asked for.

A metric's interval is the interval of the effect, put where the metric is; positive effects are better.
"""

from __future__ import annotations

import difflib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from agent.judge.noise import Noise, gain, t_quantile
from agent.judge.verdict import worked
from agent.live import Curve, thinned
from agent.night import Night
from agent.observers.report.texts import Texts
from agent.observers.report.times import Times
from agent.program import Program
from agent.records import Call, Experiment, Measurement, Trial

Json = dict[str, Any]
CURVE_POINTS = 80  # of a trial's curve in a report
DIFFED = 1_000_000  # characters of a file that is compared
CLAIM = 600  # characters of a hypothesis, reason or category in lists


@dataclass(frozen=True)
class Told:
    """A night as a report needs it."""

    tag: str
    program: Program
    experiments: Sequence[Experiment]
    """Whole, by number."""
    times: Times | None = None
    """None: an old night, of which this is not known."""
    branch: str = ""
    """On which what was kept is."""
    ended: str = ""
    """Why the night ended; "" while it goes on, or where its process has died."""
    setup: Json = field(default_factory=dict)
    """What is said of device, sandbox and proposer."""
    look: Sequence[str] = ()
    """Notes for the person, of the night as a whole."""
    spent: float | None = None
    """Dollars, with what is reserved for calls in flight; None: not known."""
    night: Night | None = None
    """None: an old one."""
    training: float = 0.0
    """Seconds for which trials that run now have trained."""

    @cached_property
    def done(self) -> list[Experiment]:
        return [e for e in self.experiments if e.verdict]

    @cached_property
    def noise(self) -> Noise:
        return Noise.of_night(self.done)

    @cached_property
    def kept(self) -> list[Experiment]:
        """The chain of kept commits, the baseline first."""
        next_on = {e.parent: e for e in self.done if e.verdict and e.verdict.kept and e.number}
        chain = [e for e in self.done[:1] if e.number == 0]
        while chain and (following := next_on.pop(chain[-1].commit or "", None)):
            chain.append(following)
        return chain


def payload(told: Told) -> tuple[Json, Json]:
    """The overview, and the details of every experiment."""
    return overview(told), details(told, {e.number for e in told.experiments})


def overview(told: Told) -> Json:
    """It needs the experiments in brief only."""
    metric, bases = told.program.metric, {e.commit: e.number for e in told.kept}
    return {
        "tag": told.tag,
        "branch": told.branch,
        "made": time.time(),
        "metric": {"name": metric.name, "minimize": metric.direction == "minimize", "target": metric.target},
        "setup": told.setup,
        "ended": told.ended,
        "facts": facts(told),
        "look": look(told),
        "times": use_of_time(told),
        "categories": by_category(told),
        "failures": failures(told),
        "rows": [row(e, told, bases) for e in told.experiments],
        "stairs": stairs(told),
    }


def details(told: Told, numbers: Collection[int]) -> Json:
    """What is shown of these experiments when they are opened; they, and what was kept, have to be whole."""
    texts = Texts()
    found = {str(e.number): entry for e, entry in detailed(told, texts, numbers)}
    return {"experiments": found, "texts": texts.packed()}


def row(e: Experiment, told: Told, bases: Mapping[str | None, int]) -> Json:
    """One experiment as the table and the chart have it."""
    verdict, seconds = e.verdict, spans(e.measurements)
    base = bases.get(e.parent) if e.number else None
    low, high = metric_interval(e, told)
    memory = [m.peak_memory_gb for m in e.measurements if m.peak_memory_gb is not None]
    return {
        "n": e.number,
        "kind": verdict.kind if verdict else "open",
        "review": bool(verdict and verdict.review),
        "kept": bool(verdict and verdict.kept),
        "label": short(e.label) if e.verdict or e.proposal or not e.number else "its proposal is not here yet",
        "category": short(e.proposal.category) if e.proposal else "",
        "reason": short(verdict.reason) if verdict else "",
        "metric": figure(shown_metric(e)),
        "low": figure(low),
        "high": figure(high),
        "effect": figure(verdict.effect) if verdict else None,
        "interval": [figure(v) for v in verdict.interval] if verdict and verdict.interval else None,
        "level": verdict.level if verdict and verdict.interval else "",
        "base": base,
        "commit": (e.commit or "")[:10],
        "trials": len(e.measurements),
        "seconds": {**seconds, "model": round(sum(c.reply.seconds for c in e.calls if c.reply), 1)},
        "memory": figure(max(memory, default=None)),
        "usd": e.usd,
        "tokens": e.tokens,
        "proposer": e.proposer,
        "created": e.created,
    }


def short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= CLAIM else text[:CLAIM] + "..."


def figure(value: float | None) -> float | None:
    """With the digits that a person reads; None where there is no number to show."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.7g}")


def shown_metric(e: Experiment) -> float | None:
    """As judged; of a baseline or an undecided experiment the mean of what is measured."""
    if e.verdict and e.verdict.metric is not None:
        return e.verdict.metric
    return math.fsum(e.metrics) / len(e.metrics) if e.metrics else None


def metric_interval(e: Experiment, told: Told) -> tuple[float | None, float | None]:
    """As in the verdict: of the effect, moved to where the metric is; of the baseline 90%, of its own mean."""
    metric, verdict, noise = shown_metric(e), e.verdict, told.noise
    if metric is None:
        return None, None
    if e.number == 0 and noise.sigma is not None and e.metrics:
        reach = t_quantile(0.95, noise.freedom) * noise.sigma / math.sqrt(len(e.metrics))
        return metric - reach, metric + reach
    if not verdict or verdict.effect is None or not verdict.interval:
        return None, None
    better, worse = verdict.interval[1] - verdict.effect, verdict.effect - verdict.interval[0]
    if told.program.metric.direction == "minimize":
        return metric - better, metric + worse
    return metric - worse, metric + better


def spans(measurements: Sequence[Measurement]) -> dict[str, float]:
    return {
        "startup": round(sum(m.startup_seconds for m in measurements), 1),
        "training": round(sum(m.training_seconds for m in measurements), 1),
        "evaluation": round(sum(m.evaluation_seconds for m in measurements), 1),
    }


def stairs(told: Told) -> list[Json]:
    """The incumbent over the night: a step at each keep, with the noise band of one trial around it."""
    sigma = told.noise.sigma or 0.0
    last = max((e.number for e in told.experiments), default=0)
    steps = [(e.number, value) for e in told.kept if (value := shown_metric(e)) is not None]
    steps = [*steps, (max(last, steps[-1][0] + 1), steps[-1][1])] if steps else []
    band = 2 * sigma
    return [{"n": n, "value": figure(v), "low": figure(v - band), "high": figure(v + band)} for n, v in steps]


def facts(told: Told) -> Json:
    """The figures at the top."""
    done, kept, program = told.done, told.kept, told.program
    tried = [e for e in done if e.number]
    claim = None
    if len(kept) > 1 and worked(kept[0]) and worked(kept[-1]):
        claim = gain(program, worked(kept[0]), worked(kept[-1]), told.noise)
    hours = told.times.alive / 3600 if told.times else None
    known = [e.usd for e in told.experiments if e.usd is not None]
    spent = told.spent if told.times else sum(known)
    wins = len(kept) - 1
    return {
        "gain": figure(claim[0]) if claim else None,
        "interval": [figure(v) for v in claim[1]] if claim else None,
        "baseline": figure(shown_metric(kept[0])) if kept else None,
        "best": figure(shown_metric(kept[-1])) if kept else None,
        "best_number": kept[-1].number if kept else None,
        "kept": max(0, wins),
        "tried": len(tried),
        "trials": sum(len(e.measurements) for e in told.experiments),
        "hours": hours,
        "per_hour": len(tried) / hours if hours else None,
        "spent": spent,
        "cap": told.night.stoppers.usd if told.night else None,
        "unknown_prices": len(told.experiments) - len(known),
        "per_experiment": spent / len(tried) if spent is not None and tried else None,
        "per_gain": spent / wins if spent is not None and wins > 0 else None,
        "tokens": sum(e.tokens for e in told.experiments),
        "noise": str(told.noise),
        "test": held_out(kept),
    }


def held_out(kept: Sequence[Experiment]) -> list[Json]:
    """Held-out figures of the first and the last kept commit that have them, by name."""
    tested = [e for e in kept if e.test_numbers]
    if not tested:
        return []
    first, last = tested[0].test_numbers or {}, tested[-1].test_numbers or {}
    names = [name for name in last if name in first]
    names = [name for name in names if name.startswith("test")] or names
    ends = {"first": tested[0].number, "last": tested[-1].number}
    return [{"name": n, "before": figure(first[n]), "after": figure(last[n]), **ends} for n in names[:4]]


def look(told: Told) -> list[Json]:
    """What needs a person's eye, most pressing first."""
    found: list[Json] = [{"text": short(text)} for text in told.look]
    marked = [e for e in told.done if e.verdict and e.verdict.review]
    for e in told.done:
        if e.verdict and e.verdict.kind == "vetoed":
            found.append({"n": e.number, "text": "vetoed by the person: it is off the branch"})
    rank = {"held": 0, "keep": 1, "simplification": 1}
    for e in sorted(marked, key=lambda e: (rank.get(e.verdict.kind if e.verdict else "", 2), e.number)):
        if e.verdict:
            found.append({"n": e.number, "text": f"marked for a look: {short(e.verdict.reason)}"})
    metric = told.program.metric
    for test in held_out(told.kept):
        if test["name"].endswith(metric.name) and metric.gain(test["before"], test["after"]) < 0:
            text = f"{test['name']}, held out, is worse than at #{test['first']}, though {metric.name} is better"
            found.append({"n": test["last"], "text": text})
    faults = Counter((n, short(reason)) for n, reason in (told.times.faults if told.times else ()))
    for (n, reason), count in faults.items():
        times = f" ({count} times)" if count > 1 else ""
        found.append({"n": n, "text": f"a fault of the machine, not of the code{times}: {reason}"})
    return found


def use_of_time(told: Told) -> Json:
    sums = spans([m for e in told.experiments for m in e.measurements])
    sums["training"] += told.training
    return told.times.shares(**sums) if told.times else sums


def by_category(told: Told) -> list[Json]:
    """What was tried, and how much of it was kept; most tried first."""
    tried: dict[str, list[Experiment]] = defaultdict(list)
    for e in told.done:
        if e.number:
            tried[short(e.proposal.category) if e.proposal else "no usable proposal"].append(e)
    return [
        {
            "category": name,
            "tried": len(found),
            "kept": sum(1 for e in found if e.verdict and e.verdict.kept),
            "effect": figure(sum(e.verdict.effect or 0.0 for e in found if e.verdict and e.verdict.kept)),
        }
        for name, found in sorted(tried.items(), key=lambda item: -len(item[1]))
    ]


def failures(told: Told) -> list[Json]:
    """Verdicts without a number to compare, by kind and the beginning of their reason; most frequent first."""
    ended = [e for e in told.done if e.verdict and e.verdict.kind not in ("discard", "baseline") and not e.verdict.kept]
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for e in ended:
        assert e.verdict is not None
        groups[e.verdict.kind, short(e.verdict.reason).partition(":")[0][:90]].append(e.number)
    most = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [{"kind": kind, "reason": reason, "numbers": numbers} for (kind, reason), numbers in most]


def detailed(told: Told, texts: Texts, numbers: Collection[int]) -> Iterator[tuple[Experiment, Json]]:
    files, state = {}, {}
    for e in told.kept:
        state = {**state, **e.files}
        files[e.commit] = state
    for e in told.experiments:
        if e.number not in numbers:
            continue
        before = files.get(e.parent, {}) if e.number else e.files
        yield e, {
            "hypothesis": texts.add(hypothesis(e)),
            "reason": texts.add(e.verdict.reason if e.verdict else ""),
            "diff": texts.add(diff(before, e.files)),
            "trials": [trial(t, texts) for t in e.trials],
            "calls": [call(c, texts) for c in e.calls],
            "test": {name: figure(value) for name, value in (e.test_numbers or {}).items()},
        }


def hypothesis(e: Experiment) -> str:
    """With what the person had suggested."""
    text = e.proposal.hypothesis if e.proposal else e.label
    return f"{text}\n\nSuggested by the person: {e.suggestion}" if e.suggestion else text


def diff(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """In the unified form; a file too long to compare is named only."""
    parts: list[str] = []
    for path in sorted(after):
        old, new = before.get(path, ""), after[path]
        if len(old) + len(new) > DIFFED:
            parts.append(f"--- {path}\n+++ {path}\n(too long to be compared here)")
        elif old != new:
            lines = difflib.unified_diff(old.splitlines(), new.splitlines(), path, path, lineterm="")
            parts.append("\n".join(line.replace("\n", " ") for line in lines))
    return "\n".join(parts)


def trial(t: Trial, texts: Texts) -> Json:
    m = t.measurement
    known: Json = {"number": t.number, "seed": t.seed, "superseded": t.superseded, "commit": t.commit[:10]}
    if m is None:
        return {**known, "outcome": "open"}
    return {
        **known,
        "outcome": m.outcome,
        "reason": short(m.reason),
        "metric": figure(m.metric),
        "seconds": spans([m]),
        "memory": figure(m.peak_memory_gb),
        "curve": curve(m.curve),
        "log": texts.add(m.log_tail),
    }


def curve(points: Curve) -> list[list[float]]:
    """Thinned to what can be seen."""
    return [[round(x, 4), float(f"{y:.5g}")] for x, y in thinned(points, CURVE_POINTS) if math.isfinite(x + y)]


def call(c: Call, texts: Texts) -> Json:
    known: Json = {"kind": c.kind, "question": texts.add(c.question)}
    if c.reply is None:
        return {**known, "usd": c.reserved_usd}
    r = c.reply
    usage = {"input": r.input_tokens, "output": r.output_tokens, "usd": r.usd, "seconds": round(r.seconds, 1)}
    who = f"{r.proposer} {r.model}".strip()
    return {**known, "reply": texts.add(r.text), "who": who, "unusable": short(r.unusable), **usage}
