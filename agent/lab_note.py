"""The message of an experiment's commit, like a lab note; and numbers and durations as people write them."""

from __future__ import annotations

import textwrap

from agent.program import Program
from agent.records import Experiment

SUBJECT = 72  # characters of a commit's first line
LONGEST_TRAILER = 300  # characters


def lab_note(experiment: Experiment, incumbent: Experiment | None, program: Program) -> str:
    """The commit message: the hypothesis, then trailers. Before the verdict only what is known by then."""
    proposal, verdict = experiment.proposal, experiment.verdict
    hypothesis = " ".join(proposal.hypothesis.split()) if proposal else experiment.label
    subject = textwrap.shorten(hypothesis, SUBJECT, placeholder="...")
    body = "" if subject == hypothesis else textwrap.fill(hypothesis, SUBJECT) + "\n\n"
    trailers = {"Experiment": str(experiment.number)}
    if verdict and incumbent and incumbent.verdict:
        trailers |= {
            "Metric-Before": f"{program.metric.name} {number(incumbent.verdict.metric)}",
            "Metric-After": f"{program.metric.name} {number(verdict.metric)}",
        }
        if verdict.interval:
            low, high = verdict.interval
            trailers["Interval"] = f"{number(verdict.effect)} better, {verdict.level} {number(low)} .. {number(high)}"
        trailers["Trials"] = str(experiment.counted)
        trailers["Verdict"] = " ".join(verdict.reason.split())
    if proposal:
        trailers["Category"] = proposal.category
    if experiment.suggestion:
        trailers["Suggested"] = textwrap.shorten(experiment.suggestion, LONGEST_TRAILER, placeholder="...")
    if experiment.proposer:
        trailers["Proposer"] = experiment.proposer
    trailers["Cost"] = dollars(experiment.usd)
    return f"{subject}\n\n{body}" + "".join(f"{key}: {value}\n" for key, value in trailers.items())


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def dollars(usd: float | None) -> str:
    return "unknown (no price for this model)" if usd is None else f"${usd:.4f}" if usd < 1 else f"${usd:.2f}"


def duration(seconds: float) -> str:
    """90 -> 1m30s, 3700 -> 1h02m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
