"""A long night as the loop journals one, written in a moment: for what reads nights."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from agent import events as ev
from agent.ledger import Ledger
from agent.program import Program
from agent.records import Edit, Measurement, Proposal, Reply, Stoppers, Verdict

HOSTILE = "<script>document.title = 'taken'</script> <img src=x onerror=\"document.title='taken'\"> A wider layer."
PROGRAM = Program.model_validate(
    {"metric": {"name": "val_bpb"}, "budget": "5m", "direction": "Lower it.", "test": "python prepare.py"}
)
CATEGORIES = ("optimizer", "architecture", "schedule", "regularization", "data")
SIGMA = 0.002


class Writer:
    """Appends the events of a night; the clock goes on by what things take."""

    def __init__(self, home: Path):
        self.ledger = Ledger(home)
        self.ledger.db.execute("PRAGMA synchronous=OFF")
        self.random, self.clock, self.best, self.calls = random.Random(7), 1_700_000_000.0, 1.0, 0
        self.source = "".join(f"CONSTANT_{n} = {n}\n" for n in range(400))
        self.tip, self.history = "base", ""

    def add(self, event: ev.Event, seconds: float = 0.0) -> None:
        self.clock += seconds
        self.ledger.append(event.model_copy(update={"at": self.clock}))

    def put(self, value: object) -> str:
        return self.ledger.put(value if isinstance(value, str) else json.dumps(value))

    def start(self) -> None:
        program = self.ledger.put(PROGRAM.model_dump_json())
        rules = ev.Rules(metric="val_bpb", minimize=True, target=None, seeds=3, tests=True, trial_seconds=900)
        where = {"device": "cuda", "sandbox": "bubblewrap", "hardware": "cuda Some GPU", "proposer": "a model"}
        self.add(ev.Started(program=program, rules=rules, stoppers=Stoppers(usd=50.0), **where))
        self.add(ev.BaselineBegun(commit="base", files=self.put({"train.py": self.source}), fingerprint="f0"))

    def begin(self) -> None:
        self.start()
        for number in range(3):
            self.trial(0, number, "base", 1.0)
        self.add(ev.Judged(experiment=0, verdict=Verdict(kind="baseline", reason="three seeds", metric=1.0)))
        self.add(ev.Published(experiment=0, commit="base"))
        self.test(0, 0)

    def trial(self, n: int, number: int, commit: str, level: float, outcome: str = "ok") -> float:
        key = {"experiment": n, "number": number, "attempt": 1}
        self.add(ev.TrialBegun(**key, commit=commit, seed=1000 * n + number, slot=0))
        metric = level + self.random.gauss(0, SIGMA)
        curve = tuple((k / 120, level + 3 * math.exp(-k / 20) + self.random.gauss(0, 0.05)) for k in range(121))
        log = "\n".join(f"step {10 * k} loss {y:.4f} {100 * x:.1f}%" for k, (x, y) in enumerate(curve))
        took = {"startup_seconds": 30.0, "training_seconds": 300.0, "evaluation_seconds": 12.0}
        if outcome != "ok":
            log = 'Traceback (most recent call last):\n  File "train.py", line 3\nIndexError: list index out of range'
            took = {"startup_seconds": 9.0}
        m = Measurement(
            outcome=outcome, metric=metric if outcome == "ok" else None, curve=curve, log_tail=log[-4000:],  # type: ignore[arg-type]
            peak_memory_gb=41.5, reason="" if outcome == "ok" else "IndexError: list index out of range", **took,
        )  # fmt: skip
        brief = m.model_copy(update={"curve": (), "log_tail": "", "numbers": {}})
        self.add(ev.Measured(**key, measurement=brief, details=self.put(m.model_dump_json())), sum(took.values()))
        return metric

    def test(self, n: int, number: int) -> None:
        self.add(ev.TestBegun(experiment=n, number=number, attempt=1, slot=0))
        figures = self.put({"test_val_bpb": self.best + 0.01})
        self.add(ev.Tested(experiment=n, attempt=1, numbers=figures), 12.0)

    def ask(self, n: int, hypothesis: str, answer: str) -> None:
        prompt = f"# Direction\nLower it.\n\n```\n{self.source}```\n\n# History\n{self.history[-14_000:]}"
        asked = {"experiment": n, "call": self.calls}
        texts = {"system": self.put("You are a researcher."), "question": self.put(prompt)}
        self.add(ev.Asked(**asked, kind="first", parent=self.tip, reserved_usd=0.2, **texts))
        usage = {"input_tokens": 6000, "output_tokens": 700, "usd": 0.031, "seconds": 20.0}
        reply = Reply(text="", proposer="anthropic", model="a-model", **usage)
        text = f"Hypothesis: {hypothesis}\n\n" + answer + "\nBecause " + " ".join(
            self.random.choice(("the", "loss", "rate", "layer", "falls", "gradient", "noise")) for _ in range(150))
        self.add(ev.Replied(**asked, reply=reply, text=self.put(text)), 20.0)
        self.calls += 1

    def experiment(self, n: int) -> None:
        """One kept in about twelve, one crash in ten; each fifth hypothesis is hostile."""
        r = self.random
        at, value = r.randrange(400), r.randrange(1000, 9999)
        old = self.source.splitlines()[at]
        new = f"{old.split(' = ')[0]} = {value}"
        words = f"Constant {at} at {value} should help, as the loss still falls. Idea {n}."
        hypothesis = HOSTILE if n % 5 == 2 else words
        self.ask(n, hypothesis, f"{old} -> {new}")
        source = self.source.replace(old, new, 1)
        edits = (Edit(path="train.py", search=old, replace=new),)
        proposal = Proposal(hypothesis=hypothesis, category=CATEGORIES[n % 5], edits=edits)
        files, prints = self.put({"train.py": source}), f"f{n}"
        self.add(ev.Proposed(experiment=n, proposal=self.put(proposal.model_dump_json()), category=proposal.category,
                             files=files, fingerprint=prints))  # fmt: skip
        self.add(ev.Committed(experiment=n, commit=f"c{n}"))
        win = r.random() < 0.08
        level = self.best - 0.006 * r.random() - 0.004 if win else self.best + abs(r.gauss(0, 0.02))
        if r.random() < 0.1:
            self.trial(n, 0, f"c{n}", level, "crash")
            verdict = Verdict(kind="crash", reason="IndexError: list index out of range")
        else:
            metric = self.trial(n, 0, f"c{n}", level)
            effect, kind = self.best - metric, "keep" if win and metric < self.best else "discard"
            interval = (effect - 0.004, effect + 0.004)
            reason = f"{abs(effect):.4f} {'better' if effect > 0 else 'worse'} than the incumbent"
            known = {"metric": metric, "effect": effect, "interval": interval, "review": n % 97 == 0}
            verdict = Verdict(kind=kind, reason=reason, **known)  # type: ignore[arg-type]
        self.add(ev.Judged(experiment=n, verdict=verdict))
        self.add(ev.Published(experiment=n, commit=f"c{n}"))
        self.history += f"#{n} {verdict.kind} {words}\n"
        if verdict.kept:
            self.tip, self.source, self.best = f"c{n}", source, verdict.metric or self.best
            self.test(n, 0)


def long_night(home: Path, experiments: int) -> Path:
    """Writes the night; its folder."""
    writer = Writer(home)
    writer.begin()
    for n in range(1, experiments + 1):
        writer.experiment(n)
    writer.add(ev.Ended(reason=f"{experiments} experiments are done", code=0))
    writer.ledger.close()
    return home
