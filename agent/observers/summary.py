"""The morning's tables: every experiment with its verdict, and what the night has brought.

Everything that models or training code wrote is escaped: it is shown, never interpreted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.markup import escape

from agent.judge.noise import Noise, gain
from agent.judge.verdict import failures, worked
from agent.lab_note import dollars, duration, number
from agent.night import Night
from agent.observers import steering
from agent.observers.columns import Columns
from agent.observers.tsv import cell, seconds
from agent.program import Program
from agent.records import KEPT, Experiment
from agent.typed import typed

COLORS = {"keep": "bold green", "simplification": "bold green", "baseline": "bold", "discard": "yellow"}
COLORS |= {"held": "bold magenta", "skipped": "yellow", "vetoed": "yellow"}


def experiments_table(experiments: Sequence[Experiment], program: Program) -> Columns:
    """Every published experiment, a row each."""
    table = Columns()
    columns = (("#", "right", 3), ("verdict", "left", 14), (program.metric.name, "right", 9), ("effect", "right", 10))
    for name, justify, width in columns:
        table.add_column(name, justify=justify, min_width=width, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("what")
    for e in experiments:
        if e.verdict:
            metric = e.verdict.metric if e.verdict.metric is not None else next(iter(e.metrics), None)
            color = COLORS.get(e.verdict.kind, "red")
            kind = f"[{color}]{e.verdict.kind}[/{color}]" + (" *" if e.verdict.review else "")
            table.add_row(str(e.number), kind, number(metric), number(e.verdict.effect), escape(cell(e.label)))
    return table


def summary(
    experiments: Sequence[Experiment], program: Program, branch: str, notes: Sequence[str] = (), ended: str = "",
    go_on: str = "", chain: Sequence[int] = (),
) -> Columns:  # fmt: skip
    """The morning's table: best, baseline, kept, reverted by reason, time, tokens, dollars, why it ended, what to type
    and how to `go_on`. `chain`: the numbers of what was kept, in that order, which may be another than theirs."""
    done = [e for e in experiments if e.verdict]
    kept = [e for e in done if e.verdict and e.verdict.kept and e.number]
    kept.sort(key=lambda e: chain.index(e.number) if e.number in chain else 0)
    reverted = Counter(e.verdict.kind for e in done if e.verdict and e.verdict.kind not in KEPT)
    baseline = done[0].verdict.metric if done and done[0].verdict else None
    best = kept[-1] if kept else None
    table = Columns(show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    name = program.metric.name
    for e in done:
        if e.verdict and e.verdict.kind == "held":
            look = f"#{e.number} {escape(cell(e.label))}: {escape(cell(e.verdict.reason))}"
            table.add_row("held", f"{look}; `{typed(f'accept {e.number}')}` lets it be kept")
    if vetoed := [f"#{e.number}" for e in done if e.verdict and e.verdict.kind == "vetoed"]:
        table.add_row("vetoed", ", ".join(vetoed))
    table.add_row("baseline", f"{name} {number(baseline)}")
    if best and best.verdict and baseline is not None and best.verdict.metric is not None:
        table.add_row("best", f"{name} {number(best.verdict.metric)} (experiment {best.number})")
        if claim := gain(program, worked(done[0]), worked(best), Noise.of_night(done)):
            low, high = claim[1]
            table.add_row("gain", f"{claim[0]:.4g}, 95% interval {low:.4g} .. {high:.4g}; `audit` measures it again")
    else:
        table.add_row("best", "the baseline: nothing was kept")
    if often := failures(done[0], *kept) if done else "":
        table.add_row("flaky", f"{often}, of the baseline and what was kept")
    table.add_row("kept", f"{len(kept)} of {sum(1 for e in done if e.number)}")
    table.add_row("reverted", ", ".join(f"{count} {kind}" for kind, count in reverted.most_common()) or "none")
    test = [(e.number, e.test_numbers) for e in done if e.test_numbers]
    if test:
        numbers = "; ".join(
            f"#{n} " + ", ".join(f"{k} {number(v)}" for k, v in values.items() if k.startswith("test"))
            for n, values in (test[0], test[-1])[: len(test)]
        )
        table.add_row("held-out test", numbers)
    trials = [t for e in experiments for t in e.trials if t.measurement]
    table.add_row("time", f"{duration(sum(seconds(e) for e in experiments))} in {len(trials)} trials")
    costs = [e.usd for e in experiments]
    known = sum(cost for cost in costs if cost is not None)
    unknown = f" and {costs.count(None)} experiments of unknown price" if None in costs else ""
    table.add_row("tokens", f"{sum(e.tokens for e in experiments):,}")
    table.add_row("dollars", dollars(known) + unknown)
    if review := [f"#{e.number}" for e in done if e.verdict and e.verdict.review and e.verdict.kind != "held"]:
        table.add_row("review", ", ".join(review) + ": look before you trust")
    if suggested := [f"#{e.number} ({e.verdict.kind if e.verdict else 'open'})" for e in experiments if e.suggestion]:
        table.add_row("suggested", f"by you: {', '.join(suggested)}")
    for note in notes:
        table.add_row("note", escape(cell(note)))
    if ended:
        table.add_row("ended", escape(cell(ended)))
    if go_on:
        table.add_row("go on", escape(cell(go_on)))
    if not best:
        return table  # there is nothing to look at or to take
    table.add_row("look", f"git log -p --reverse HEAD..{branch}")
    table.add_row("compare", f"git diff HEAD...{branch}")
    table.add_row("take", f"git merge --ff-only {branch}")
    return table


OPEN_DOOR = (
    "program.md has no `evaluate`, so the code that is edited prints its own metric: an edit can make the number "
    "better and the model not. Read the diff of what is kept, or write an `evaluate` command"
)


def notes_of(night: Night) -> list[str]:
    """What a person should know of the night as a whole."""
    notes = [*steering.notes(night), *(text for _, text in night.notes[-5:])]
    if night.rules and not night.rules.evaluates:
        notes.insert(0, OPEN_DOOR)
    if night.sandbox == "none":
        notes.insert(0, "this night ran WITHOUT A SANDBOX: model-written code had all your rights")
    elif night.weaker:
        notes.insert(0, f"the sandbox was {night.sandbox}, in which a trial can {night.weaker}")
    return notes
