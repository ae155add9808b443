"""What a prompt costs as a night grows: tokens, how much of it stays as it was, what is in it, how long it takes.

    python -m bench.prompt

A simulated history on this repository's train.py: 1,000 experiments of all categories, one in twelve kept. Compared are
the prompt of one experiment and that of the next: the share of it, in tokens, that stands unchanged at the beginning,
which is what providers charge less for. The last line is one JSON object; exit code 1 where the prompt at 1,000
experiments has more than 1.25 times the tokens of that at 100, less than 70% of a prompt stays on average, an
experiment that was kept or a category is missing at 1,000, or building one takes more than 50 ms.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from pathlib import Path

from agent.program import load_program
from agent.propose import context
from agent.propose.edits import CATEGORIES
from agent.propose.templates import Templates
from agent.records import Experiment, Measurement, Proposal, Trial, Verdict, VerdictKind

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS, EARLY = 1000, 100
WORDS = ("a longer warmup", "of the rate", "lets the early steps", "settle", "before the peak", "so the loss falls")


def experiment(number: int, rng: random.Random, kind: VerdictKind, metric: float) -> Experiment:
    crashed = kind == "crash"
    ok = Measurement(outcome="ok", metric=metric)
    measured = Measurement(outcome="crash", reason="RuntimeError: shapes") if crashed else ok
    reason = "RuntimeError: shapes can't be multiplied" if crashed else "worse than the incumbent, beyond the noise"
    words = " ".join(rng.choices(WORDS, k=rng.randint(3, 10)))
    return Experiment(
        number=number, state="published", parent="p", commit=f"c{number}",
        proposal=Proposal(hypothesis=f"{words} ({number}).", category=CATEGORIES[number % len(CATEGORIES)], edits=()),
        verdict=Verdict(kind=kind, reason=reason, metric=None if crashed else metric,
                        effect=None if crashed else rng.gauss(0, 0.01)),
        trials=(Trial(experiment=number, number=0, commit=f"c{number}", seed=1, measurement=measured),),
    )  # fmt: skip


def unchanged(one: str, other: str) -> float:
    """The share of `other`, in tokens, that stands in `one` too, from the beginning."""
    same = os.path.commonprefix([one, other])
    return context.estimate_tokens(same) / context.estimate_tokens(other)


def main() -> int:
    rng, templates = random.Random(0), Templates()
    program = load_program(ROOT / "program.md")
    source = (ROOT / "train.py").read_text()
    history = [experiment(0, rng, "baseline", 1.0)]
    tokens, shares, seconds, before = {}, [], [], ""
    for number in range(1, EXPERIMENTS + 1):
        kept = number % 12 == 5
        kind: VerdictKind = "keep" if kept else "crash" if number % 10 == 0 else "discard"
        history.append(experiment(number, rng, kind, 1.0 - number / 1e5))
        source += f"# kept {number}\n" if kept else ""
        began = time.perf_counter()
        request = context.first_request(
            number + 1, program, {"train.py": source}, tuple(history), {"noise": 0.002}, templates
        )
        seconds.append(time.perf_counter() - began)
        text = request.system + request.turns[0].text
        shares.append(unchanged(before, text) if before else 1.0)
        before = text
        if number in (EARLY, EXPERIMENTS):
            tokens[number] = context.estimate_tokens(text)
    missing = [e.number for e in history[1:] if e.verdict and e.verdict.kept and f"#{e.number} " not in before]
    lost = [category for category in CATEGORIES if category not in before]
    found = {
        "tokens_100": tokens[EARLY], "tokens_1000": tokens[EXPERIMENTS],
        "growth": round(tokens[EXPERIMENTS] / tokens[EARLY], 3), "prefix": round(statistics.mean(shares), 3),
        "kept_missing": len(missing), "categories_missing": len(lost),
        "ms_p99": round(1000 * sorted(seconds)[int(0.99 * len(seconds))], 1), "counted_by": context.tokens_counted_by(),
    }  # fmt: skip
    print("| tokens at 100 | at 1,000 | growth | unchanged prefix | kept missing | categories missing | ms, p99 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(f"| {found['tokens_100']:,} | {found['tokens_1000']:,} | {found['growth']} | {found['prefix']:.1%} "
          f"| {found['kept_missing']} | {found['categories_missing']} | {found['ms_p99']} |")
    print(json.dumps(found))
    good = found["growth"] <= 1.25 and found["prefix"] >= 0.7 and not missing and not lost and found["ms_p99"] <= 50
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
