"""What the person sees: a line for every event while the night runs, and the summary in the morning.

Everything that models or training code wrote is escaped: it is shown, never interpreted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from agent.judge.noise import Noise, gain
from agent.judge.verdict import worked
from agent.program import Program
from agent.records import KEPT, Experiment, Measurement, Trial
from agent.report.text import dollars, duration, number
from agent.report.tsv import cell, seconds

COLORS = {"keep": "bold green", "simplification": "bold green", "baseline": "bold", "discard": "yellow"}
TAIL_BYTES = 2000  # of the running trial's log, to show its last line


class Terminal:
    """Prints events; on a real terminal the last line shows what runs now."""

    def __init__(self, home: Path, console: Console | None = None):
        self.home = home
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.status: Status | None = None
        self.log: Path | None = None
        self.doing = ""
        self.since = time.monotonic()

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {escape(cell(text))}")

    def proposing(self, experiment: int, kind: str) -> None:
        doing = {"first": "asking for a proposal", "repair": "asking for a repair", "slip": "sending back the crash"}
        self._begin(f"#{experiment} {doing[kind]}", None)

    def training(self, experiment: Experiment, trial: Trial) -> None:
        if trial.number == 0:
            label = experiment.label if experiment.number else "the program as it is, with several seeds"
            self.say(f"#{experiment.number} {label}")
        again = f", trial {trial.number + 1}" if trial.number else ""
        self._begin(f"#{experiment.number} training{again}", self._log(trial))

    def measured(self, trial: Trial, measurement: Measurement, program: Program) -> None:
        if measurement.metric is not None:
            took = duration(measurement.training_seconds)
            value = f"{program.metric.name} {number(measurement.metric)}"
            self.say(f"#{trial.experiment} trial {trial.number + 1}: {value} (trained {took}, seed {trial.seed})")

    def published(self, experiment: Experiment, program: Program) -> None:
        """One verdict, coloured; and nothing runs for this experiment any more."""
        self._end()
        verdict = experiment.verdict
        assert verdict is not None
        color = COLORS.get(verdict.kind, "red")
        review = " [bold magenta]REVIEW[/bold magenta]" if verdict.review else ""
        self.console.print(
            f"[dim]{time.strftime('%H:%M:%S')}[/dim] #{experiment.number} "
            f"[{color}]{verdict.kind}[/{color}]{review} {escape(cell(verdict.reason))}"
        )

    def tick(self) -> None:
        """Called about twice a second: the running trial's last line."""
        if self.status is not None:
            line = last_line(self.log) if self.log else ""
            took = duration(time.monotonic() - self.since)
            self.status.update(f"{escape(self.doing)} {took} {escape(line)}")

    def close(self) -> None:
        self._end()

    def _log(self, trial: Trial) -> Path:
        return self.home / "logs" / f"{trial.experiment}-{trial.number}.log"

    def _begin(self, doing: str, log: Path | None) -> None:
        self.doing, self.log, self.since = doing, log, time.monotonic()
        if self.console.is_terminal and self.status is None:
            self.status = self.console.status(escape(doing))
            self.status.start()

    def _end(self) -> None:
        if self.status is not None:
            self.status.stop()
            self.status = None


def last_line(log: Path) -> str:
    """The last non-empty line of a growing log, for one terminal line; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace").replace("\r", "\n")
    except OSError:
        return ""
    return next((cell(line)[:100] for line in reversed(text.splitlines()) if line.strip()), "")


def experiments_table(experiments: Sequence[Experiment], program: Program) -> Table:
    """Every published experiment, a row each."""
    table = Table(box=None, header_style="bold", pad_edge=False)
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


def summary(experiments: Sequence[Experiment], program: Program, tag: str, notes: Sequence[str] = ()) -> Table:
    """The morning's table: best, baseline, kept, reverted by reason, time, tokens, dollars, what to type."""
    done = [e for e in experiments if e.verdict]
    kept = [e for e in done if e.verdict and e.verdict.kept and e.number]
    reverted = Counter(e.verdict.kind for e in done if e.verdict and e.verdict.kind not in KEPT)
    baseline = done[0].verdict.metric if done and done[0].verdict else None
    best = kept[-1] if kept else None
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    name = program.metric.name
    table.add_row("baseline", f"{name} {number(baseline)}")
    if best and best.verdict and baseline is not None and best.verdict.metric is not None:
        table.add_row("best", f"{name} {number(best.verdict.metric)} (experiment {best.number})")
        if claim := gain(program, worked(done[0]), worked(best), Noise.of_night(done)):
            low, high = claim[1]
            table.add_row("gain", f"{claim[0]:.4g}, 95% interval {low:.4g} .. {high:.4g}; `audit` measures it again")
    else:
        table.add_row("best", "the baseline: nothing was kept")
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
    if review := [f"#{e.number}" for e in done if e.verdict and e.verdict.review]:
        table.add_row("review", ", ".join(review) + ": look before you trust")
    for note in notes:
        table.add_row("note", escape(cell(note)))
    table.add_row("look", f"git log -p --reverse HEAD..research/{tag}")
    table.add_row("compare", f"git diff HEAD...research/{tag}")
    table.add_row("take", f"git merge --ff-only research/{tag}")
    return table
