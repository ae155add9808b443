"""What a training run says of itself: progress lines, `name: value` lines, and the metric.

Scripts differ, so progress lines are read liberally: a line with a step (step, iter, epoch, batch) and a
loss is one. The first of them means that training has begun.
"""

from __future__ import annotations

import math
import re
import signal
import time
from collections import deque

from agent import uptime
from agent.numeric import number
from agent.run.task import Metric

# Lines are matched with each run of blanks as one blank, and no pattern can divide a text in two ways: so none takes
# longer than the line is long, whatever a program prints. What NUMBER admits and is none, `number` tells.
NUMBER = r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
STEP = re.compile(r"(?i)(?<![a-z])(?:step|iter(?:ation)?|epoch|batch|update)s?['\"]? ?[:=#]? ?\[? ?([0-9]+)")
NOT_FINITE = r"[-+]?(?:nan|inf(?:inity)?)"
LOSS = re.compile(rf"(?i)(?:([a-z]{{1,12}})[ _/.-])?(?<![a-z])loss['\"]? ?[:=(]? ?({NUMBER}|{NOT_FINITE}\b)")
OTHER_LOSS = ("val", "eval", "test", "valid", "validation", "dev", "best", "aux")
# A share of the budget stands by itself (`| 48.0% |`, `(12.0%)`) or is named so; `mfu: 40%` is none.
SHARE = re.compile(rf"(?i)(?:^|[|(\[,;]|\b(?:done|progress|share|budget|complete) ?[:=]?) ?({NUMBER}) ?%")
VALUE = re.compile(rf"([A-Za-z_][\w./-]{{0,63}}) ?[:=] ?({NUMBER})")
MEMORY = re.compile(r"(?i)out of memory|MemoryError|bad_alloc|can(?:no|')t allocate memory|STATUS_ALLOC_FAILED")
RAISED = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Interrupt|Exit)(?::.*)?")
POINTS = 512  # of the curve; when there are more, every other one is dropped
NUMBERS = 200  # distinct names that are kept
LARGEST = 1e100  # of a metric: means and squares of what is larger can't be taken any more
PATTERN_SECONDS = 5.0  # for the person's own metric pattern on one output
TEXT = 200_000  # characters at the end of the output in which the metric is looked for


class NoMetric(ValueError):
    """Nothing in the output gives the metric: with another seed nothing would either."""


class Progress:
    """Reads the lines of one command as they come; `budget_seconds` scales the curve where no `P%` is."""

    def __init__(self, budget_seconds: float):
        self.numbers: dict[str, float] = {}
        """`name: value` lines, the last value of each; finite ones only."""
        self.began = self.last = 0.0
        """uptime.now() of the beginning, which is the first progress line, and of the last one; 0: there was none."""
        self.diverged = ""
        """Why the loss is no number, once it is none: one line."""
        self._budget = budget_seconds
        self._points: list[tuple[float | None, float, float]] = []  # share as printed, by the clock, loss
        self._every, self._count = 1, 0
        self._lines: deque[str] = deque()
        self._size = 0

    def feed(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line) + 1
        while self._size > TEXT:
            self._size -= len(self._lines.popleft()) + 1
        line = " ".join(line.split())
        if named := VALUE.fullmatch(line):
            self._number(named[1], number(named[2]))
        elif (step := STEP.search(line)) and (loss := _loss(line)) is not None:
            share = SHARE.search(line)
            self._progress(step[1][:20], loss, number(share[1]) if share else None)

    def begin(self) -> None:
        """Training begins now, as it was said without a progress line."""
        self.began = self.began or uptime.now()

    def _number(self, name: str, value: float | None) -> None:
        if value is not None and math.isfinite(value) and (name in self.numbers or len(self.numbers) < NUMBERS):
            self.numbers[name] = value

    def _progress(self, step: str, loss: float, percent: float | None) -> None:
        self.last = uptime.now()
        self.began = self.began or self.last
        if not math.isfinite(loss):
            self.diverged = self.diverged or f"the training loss is {loss} at step {step}"
            return
        if self._count % self._every == 0:
            clock = (self.last - self.began) / self._budget
            self._points.append((None if percent is None else percent / 100, clock, loss))
        self._count += 1
        if len(self._points) > POINTS:
            self._points, self._every = self._points[::2], self._every * 2

    @property
    def text(self) -> str:
        """The end of the output, cleaned."""
        return "\n".join(self._lines)

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """(share of the budget in 0..1, training loss). The share as printed, where it is one of the whole:
        a bar that starts again with every epoch is not, and then the clock stands for it."""
        printed = [point[0] for point in self._points]
        known = [share for share in printed if share is not None]
        whole = len(known) == len(printed) and known == sorted(known)
        shares = known if whole else [point[1] for point in self._points]
        return tuple((min(1.0, max(0.0, share)), point[2]) for share, point in zip(shares, self._points, strict=True))


def _loss(line: str) -> float | None:
    """The training loss that the line tells; None: none."""
    others = (m for m in LOSS.finditer(line) if (m[1] or "").lower() not in OTHER_LOSS)
    return next((loss for m in others if (loss := number(m[2])) is not None), None)


def find_metric(metric: Metric, text: str) -> float:
    """The last value of the metric in `text`, at most LARGEST. Raises ValueError: one line that says what is wrong."""
    found = _by_pattern(metric.pattern, text) if metric.pattern else _by_name(metric.name, text)
    if found is None:
        looked = f"/{metric.pattern}/" if metric.pattern else f"a line `{metric.name}: <number>`"
        raise NoMetric(f"there is no {metric.name} in the output: looked for {looked}")
    value = number(found)
    if value is None:
        raise ValueError(f"{metric.name} is no number: {found[:80]!r}")
    if not math.isfinite(value):
        raise ValueError(f"{metric.name} is {value}")
    if abs(value) > LARGEST:
        raise ValueError(f"{metric.name} is {value:g}: no measurement is so large")
    return value


def _by_name(name: str, text: str) -> str | None:
    """What the last line `name: <number>` gives. Its name may hold what VALUE's may not, like blanks or `@`."""
    name = " ".join(name.split())
    line = re.compile(rf"{re.escape(name)} ?[:=] ?({NUMBER}|{NOT_FINITE})", re.IGNORECASE)
    lines = (" ".join(line.split()) for line in reversed(text.split("\n")))
    return next((found[1] for candidate in lines if (found := line.fullmatch(candidate))), None)


def _by_pattern(pattern: str, text: str) -> str | None:
    """The first group of the last match of the person's own pattern, which may need longer than anybody waits. Each
    line is matched by itself: so blanks before a number are not looked for in all that follows."""
    import regex  # here, because few need it and every worker would pay for it

    compiled, until = regex.compile(pattern), time.monotonic() + PATTERN_SECONDS
    try:
        for line in reversed(text.split("\n")):
            left = max(0.001, until - time.monotonic())
            if line and (found := compiled.findall(line, timeout=left)):
                return found[-1][0] if isinstance(found[-1], tuple) else found[-1]
    except TimeoutError:
        raise ValueError(f"the pattern /{pattern}/ takes too long on the output: write a simpler one") from None
    return None


def explain_exit(code: int, tail: str) -> str:
    """Why a command ended with this exit code (negative: signal), by the end of its log: one line."""
    lines = [line for line in tail.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("sandbox: ")), "")
    traced = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if traced and not said:
        said = next((line for line in lines[traced[-1] + 1 :] if not line[0].isspace()), "")
    said = said or next((line for line in reversed(lines) if RAISED.fullmatch(line)), "")
    number = -code if code < 0 else code - 128
    if number in signal.valid_signals() and not said:
        said = f"killed by {signal.Signals(number).name}"
        said += ": was the machine short of memory?" if number == signal.SIGKILL else ""
    said = said or f"exit code {code}" + (f": {lines[-1].strip()}" if lines else "")
    return (said if not MEMORY.search(said) else f"out of memory: {said}")[:300]
