"""A night on a terminal: one picture of what is at work and what it has brought, drawn again and again by the live
view, and once by `status`.

It is made of lines that are cut to the width, so its height is exact. What models or training code wrote is plain text
here: nothing of it is markup or an escape sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from agent.lab_note import duration, number
from agent.live import Curve
from agent.observers.now import Ahead, Card, Figures, Now, Running, tail
from agent.observers.summary import COLORS
from agent.observers.tsv import cell
from agent.records import Experiment

WIDE = 130  # columns from which verdicts stand beside what is at work
INTERVALS = 90  # columns from which each verdict has its interval
GAP = 3
FEW = 2  # GPUs that have a line each
BARS = "▁▂▃▄▅▆▇█"
Lines = list[Text]


def picture(
    tag: str, metric: str, now: Now, figures: Figures, verdicts: Sequence[Experiment], width: int, height: int
) -> Lines:
    """At most `height` lines of `width`; `verdicts` newest first."""
    lines = [*top(tag, metric, now, figures, width), *gpus(now.cards)]
    left = height - len(lines)
    if width >= WIDE:
        each = (width - GAP) // 2
        here = section("now", at_work(now, each, left - 1), each)
        there = section("verdicts", rows(verdicts, metric, each, left - 2), each)
        lines += beside(here, there, each)
    else:
        most = max(4, left - 7)  # so that verdicts have room on a small terminal
        lines += section("now", at_work(now, width, most), width)
        lines += section("verdicts", rows(verdicts, metric, width, height - len(lines) - 2), width)
    return [cut(line, width) for line in lines[:height]]


def top(tag: str, metric: str, now: Now, figures: Figures, width: int) -> Lines:
    """Four lines: the night, its gain, its counts, its costs."""
    clock = ""
    if now.since is not None:
        clock = duration(now.since) + (f", {duration(now.left)} left" if now.left is not None else "")
    title = Text.assemble((f"night {tag}", "bold"), "  ", (cell(now.state), "green" if now.running else "yellow"))
    lines = [spread(title, Text(clock, "dim"), width)]
    change = Text(f"{metric} ")
    if figures.gain is None or figures.interval is None:
        change.append("is not measured yet" if figures.baseline is None else number(figures.best or figures.baseline))
        change.append("" if figures.kept or figures.baseline is None else "  nothing is kept yet", "dim")
    else:
        low, high = figures.interval
        change.append(f"{number(figures.baseline)} → ").append(number(figures.best), "bold green")
        change.append(f"  gain {figures.gain:.4g} (95%: {low:.4g} .. {high:.4g})")
    counts = [f"{figures.kept} of {figures.tried} kept"]
    counts += [f"{figures.per_hour:.1f} experiments/h"] if figures.per_hour and figures.tried else []
    counts += [f"{figures.training:.0%} training"] if figures.training is not None else []
    counts += [money(figures)]
    return [*lines, change, Text(" · ".join(counts))]


def money(figures: Figures) -> str:
    if figures.spent is None:
        return "cost not known: no price for this model"
    return f"${figures.spent:.2f}" + (f" of ${figures.cap:.2f} spent" if figures.cap is not None else " spent")


def gpus(cards: Sequence[Card]) -> Lines:
    """A line for each of a few, one for many."""
    if len(cards) <= FEW:
        return [gpu(f"GPU {c.index}", c.busy, c.used, c.total, c.name) for c in cards]
    busy = [c.busy for c in cards if c.busy is not None]
    mean = sum(busy) / len(busy) if busy else None
    used, total = sum(c.used for c in cards), sum(c.total for c in cards)
    return [gpu(f"{len(cards)} GPUs", mean, used, total, cards[0].name)]


def gpu(which: str, busy: float | None, used: float, total: float, name: str) -> Text:
    line = Text(f"{which}  ")
    if busy is not None:
        line.append_text(bar(busy, 12)).append(f" {busy:4.0%}   ")
    line.append("memory ").append_text(bar(used / total if total else 0.0, 12))
    return line.append(f" {used:.1f} of {total:.0f} GB").append(f"   {name}", "dim")


def section(name: str, lines: Lines, width: int) -> Lines:
    return [Text(f"── {name} ".ljust(width, "─"), "dim"), *lines]


def at_work(now: Now, width: int, height: int) -> Lines:
    """What runs, each with as much of its log and curve as there is room for; then what is asked and what is ready."""
    ahead = [next_line(a, now.at, width) for a in now.ahead[: max(1, height // 4)]]
    each = (height - len(ahead)) // len(now.running) if now.running else 0
    lines = [line for r in now.running for line in (running(r, width, each) if each >= 2 else [brief(r)])]
    if not lines and not ahead:
        lines = [Text("nothing runs", "dim")]
    return [*lines, *ahead][:height]


def running(r: Running, width: int, height: int) -> Lines:
    """One job in at most `height` lines, at least two."""
    job = r.job
    what = f"trial {job.number + 1}" if job.what == "train" else "held-out test"
    lines = [Text.assemble((f"#{job.experiment} ", "bold"), what, "  ", (r.label, "dim"))]
    if job.what == "train" and job.phase == "training":
        lines.append(progress(r, width))
        if height >= 3:
            lines.append(compared(r))
    else:
        phase = "starts" if job.phase == "startup" else "is scored"
        lines.append(Text(f"   {phase}, {duration(r.seconds)}"))
    if height >= 12 and job.curve:
        lines += curves(r, width - 3)
    said = tail(Path(job.log), min(12, max(0, height - len(lines))))
    return [*lines, *(Text(f"   {line}", "dim") for line in said)][:height]


def brief(r: Running) -> Text:
    """The same in one line, where many run."""
    line = Text.assemble((f"#{r.job.experiment} ", "bold"), f"{r.job.phase:<10} ").append_text(bar(r.job.share, 10))
    line.append(f" {r.job.share:4.0%}")
    if r.loss is not None and r.against is not None:
        line.append(f"  {r.loss - r.against:+.3g}", "green" if r.loss < r.against else "yellow")
    return line.append(f"  {r.label}", "dim")


def progress(r: Running, width: int) -> Text:
    line = Text("   ").append_text(bar(r.job.share, max(10, min(40, width - 40)))).append(f" {r.job.share:4.0%}")
    return line.append(f"  {duration(r.left)} left" if r.left is not None else "")


def compared(r: Running) -> Text:
    """Its loss against the incumbent's at the same point of the budget."""
    line = Text("   loss ").append("-" if r.loss is None else f"{r.loss:.4g}", "bold")
    if r.loss is not None and r.against is not None:
        away = r.loss - r.against
        line.append(f"  {abs(away):.3g} {'below' if away < 0 else 'above'} the incumbent's at this point",
                    "green" if away < 0 else "yellow")  # fmt: skip
    return line


def curves(r: Running, width: int) -> Lines:
    """The loss of this trial and of the incumbent over the budget, on one scale."""
    names = {"this": r.job.curve, "incumbent": r.base}
    wide = min(80, width - 12)
    late = [y for curve in names.values() for x, y in curve if x > 0.05 and math.isfinite(y)]
    if not late or wide < 20:
        return []
    low, high = min(late), max(late)
    drawn = {name: spark(curve, wide, low, high) for name, curve in names.items() if curve}
    return [Text(f"   {name:<10}").append(text, "cyan") for name, text in drawn.items()]


def spark(curve: Curve, width: int, low: float, high: float) -> str:
    """A character for each part of the budget, by the mean of its losses; what lies beyond the scale is at its end."""
    parts: list[list[float]] = [[] for _ in range(width)]
    for x, y in curve:
        if math.isfinite(y):
            parts[min(width - 1, int(x * width))].append(y)
    seen, text = None, ""
    for index, part in enumerate(parts):
        seen = math.fsum(part) / len(part) if part else seen
        ahead = any(parts[index:])
        level = 0.0 if seen is None or high <= low else (seen - low) / (high - low)
        text += " " if seen is None or not ahead else BARS[max(0, min(7, int(level * 8)))]
    return text


def next_line(a: Ahead, at: float, width: int) -> Text:
    since = f" {duration(max(0.0, at - a.since))}" if a.since else ""
    return Text.assemble((f"#{a.experiment} ", "bold"), f"{a.doing}{since}", "  ", (a.label, "dim"))


def rows(verdicts: Sequence[Experiment], metric: str, width: int, most: int) -> Lines:
    """A line for each verdict, newest first, under a line of names."""
    wide = width >= INTERVALS
    interval = f"{'90% interval':>24}" if wide else ""
    names = Text(f"{'#':>5} {'verdict':<14} {metric[:9]:>9} {'effect':>9}{interval}  what", "dim")
    lines = [verdict_line(e, wide) for e in verdicts[: max(0, most)] if e.verdict]
    return [names, *lines] if lines else [Text("none yet", "dim")]


def verdict_line(e: Experiment, wide: bool) -> Text:
    v = e.verdict
    assert v is not None
    value = v.metric if v.metric is not None else next(iter(e.metrics), None)
    effect = "" if v.effect is None else f"{v.effect:+.3g}"
    line = Text(f"{e.number:>5} ").append(f"{v.kind + (' *' if v.review else ''):<14}", COLORS.get(v.kind, "red"))
    figure = "-" if value is None else f"{value:.5g}"
    line.append(f" {figure:>9} {effect:>9}")
    if wide:
        line.append(f"{f'{v.interval[0]:+.3g} .. {v.interval[1]:+.3g}' if v.interval else '':>24}", "dim")
    return line.append("  ").append(cell(e.label) if v.metric is not None else cell(v.reason))


def bar(share: float, width: int) -> Text:
    full = round(max(0.0, min(1.0, share)) * width)
    return Text.assemble(("━" * full, "green"), ("━" * (width - full), "bright_black"))


def beside(left: Lines, right: Lines, width: int) -> Lines:
    """Two columns of this width."""
    lines = []
    for index in range(max(len(left), len(right))):
        line = cut(left[index] if index < len(left) else Text(), width)
        line.pad_right(width - line.cell_len + GAP)
        lines.append(line.append_text(right[index] if index < len(right) else Text()))
    return lines


def spread(left: Text, right: Text, width: int) -> Text:
    """One at each end of a line."""
    left = cut(left, width - right.cell_len - 2)
    left.pad_right(width - left.cell_len - right.cell_len)
    return left.append_text(right)


def cut(line: Text, width: int) -> Text:
    line = line.copy()
    line.truncate(max(1, width), overflow="ellipsis")
    return line


