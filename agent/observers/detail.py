"""One experiment in the terminal: what was tried, on what, the verdict and its evidence, and what it took.

What models and training code wrote is text here: no markup, and no control character reaches a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from agent.lab_note import dollars, duration, number
from agent.observers.columns import Columns
from agent.observers.report.data import Told, diff, spans
from agent.observers.summary import COLORS
from agent.observers.table import clean, experiment_row, moment, trial_row
from agent.records import Experiment

LINE_COLORS = {"+++": "bold", "---": "bold", "@@": "cyan", "+": "green", "-": "red"}


def shown(text: str) -> str:
    """As it was written, line by line, with nothing that a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in clean(text))


def files_before(e: Experiment, told: Told) -> Mapping[str, str]:
    """The editable files as its parent has them; of the baseline its own."""
    if e.number == 0:
        return e.files
    state: dict[str, str] = {}
    for kept in told.kept:
        state |= kept.files
        if kept.commit == e.parent:
            break
    return state


def diff_of(e: Experiment, told: Told) -> str:
    """Against the commit that it stands on; "" where nothing was changed, or no change was made of the reply."""
    return shown(diff(files_before(e, told), e.files))


def colored(text: str) -> Text:
    """A diff, for a terminal."""
    lines = Text()
    for line in text.splitlines(keepends=True):
        lines.append(line, next((color for start, color in LINE_COLORS.items() if line.startswith(start)), ""))
    return lines


def logs(e: Experiment) -> str:
    """The end of each trial's log."""
    ended = [(t, t.measurement) for t in e.trials if t.measurement]
    return "\n".join(f"== trial {t.number + 1}, seed {t.seed}: {m.outcome}\n{shown(m.log_tail)}" for t, m in ended)


def prompts(e: Experiment) -> str:
    return "\n".join(f"== call {c.turn + 1} ({c.kind})\n{shown(c.question)}" for c in e.calls)


def replies(e: Experiment) -> str:
    answered = [(c.turn, c.reply) for c in e.calls if c.reply]
    return "\n".join(
        f"== call {turn + 1}, {shown(f'{r.proposer} {r.model}'.strip())}\n{shown(r.text)}" for turn, r in answered
    )


def everything(e: Experiment, told: Told) -> dict[str, Any]:
    """As JSON: its row of an export, with all that lies behind it."""
    return {
        **experiment_row(told.tag, told.program, e),
        "created": moment(e.created),
        "runs": [trial_row(told.tag, told.program, t) | {"log": t.measurement.log_tail}
                 for t in e.trials if t.measurement],
        "diff": diff(files_before(e, told), e.files),
        "talk": [
            {"kind": c.kind, "prompt": c.question, "reply": c.reply.text if c.reply else None,
             "unusable": c.reply.unusable if c.reply else None} for c in e.calls
        ],
    }  # fmt: skip


def detail(e: Experiment, told: Told) -> RenderableType:
    """All of it but its change, and the long texts for which there are flags."""
    parts: list[RenderableType] = [heading(e), facts(e, told)]
    if e.trials:
        parts += [Text(), trials(e, told)]
    return Group(*parts)


def heading(e: Experiment) -> Text:
    verdict = e.verdict.kind if e.verdict else "under way"
    told = Text(f"#{e.number} ", "bold").append(verdict, COLORS.get(verdict, "red" if e.verdict else ""))
    if e.verdict and e.verdict.review:
        told.append("  marked for a look", "bold yellow")
    here = e.verdict or e.proposal or e.number == 0
    return told.append(f"\n{shown(e.label) if here else 'its proposal is not here yet'}")


def facts(e: Experiment, told: Told) -> Columns:
    table = Columns(show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines(e, told):
        if text:
            table.add_row(name, Text(shown(text)))
    return table


def lines(e: Experiment, told: Told) -> list[tuple[str, str]]:
    """Name and text of each fact; those that are not known are empty."""
    verdict, metric, took = e.verdict, told.program.metric.name, spans(e.measurements)
    replied = [c.reply for c in e.calls if c.reply]
    bases = {kept.commit: kept for kept in told.kept}
    base = bases.get(e.parent) if e.number else None
    effect = ""
    if verdict and verdict.effect is not None:
        effect = number(verdict.effect)
        if verdict.interval:
            low, high = verdict.interval
            effect += f", {verdict.level} interval {number(low)} .. {number(high)}"
        effect += " (positive is better)"
    memory = [m.peak_memory_gb for m in e.measurements if m.peak_memory_gb is not None]
    cost = f"{dollars(e.usd)}, {e.tokens:,} tokens, {duration(sum(r.seconds for r in replied))} in {len(e.calls)} calls"
    cost = cost if e.verdict else f"at most {cost}"
    return [
        ("why", verdict.reason if verdict else ""),
        (metric, f"{number(verdict.metric)}{mean_of(e)}" if verdict and verdict.metric is not None else ""),
        ("effect", effect),
        ("noise", str(told.noise) if e.metrics else ""),
        ("made on", f"#{base.number} ({e.parent[:12]})" if base else e.parent[:12] if e.number else ""),
        ("commit", (e.commit or "")[:12] + (f", pinned at refs/experiments/{told.tag}/{e.number}" if e.commit else "")),
        ("category", e.proposal.category if e.proposal else ""),
        ("time", ", ".join(f"{name} {duration(value)}" for name, value in took.items()) if e.measurements else ""),
        ("memory", f"{max(memory):.3g} GB at most" if memory else ""),
        ("proposer", e.proposer),
        ("cost", cost if e.calls else ""),
        ("held-out test", ", ".join(f"{name} {number(value)}" for name, value in (e.test_numbers or {}).items())),
    ]  # fmt: skip


def mean_of(e: Experiment) -> str:
    return f", the mean of {e.counted} trials" if e.counted > 1 else ", of one trial"


def trials(e: Experiment, told: Told) -> Columns:
    table = Columns()
    for name in ("trial", "seed", told.program.metric.name, "training", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("outcome")
    for t in e.trials:
        m = t.measurement
        if m is None:
            table.add_row(str(t.number + 1), str(t.seed), "", "", "", "not ended")
            continue
        memory = "" if m.peak_memory_gb is None else f"{m.peak_memory_gb:.3g} GB"
        said = m.outcome + (f": {m.reason}" if m.reason else "")
        said += " (on an older incumbent: it selected the change, and does not count)" if t.superseded else ""
        cells = (str(t.number + 1), str(t.seed), number(m.metric), duration(m.training_seconds), memory)
        table.add_row(*cells, Text(shown(said)))
    return table
