"""What the harness itself costs: time per experiment beyond the training process, its growth, and the loop's memory.

    python -m bench.overhead [--experiments 1000] [--sandbox auto]

A night of tiny trials in a real repository, in the real sandbox, with replayed replies. The overhead of an experiment
is the time between two verdicts less what its processes ran for, from their start to their end, as the journal has
it. Prints a table and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from agent import events as ev
from agent.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]
TRAIN = """RATE = 1
for step in range(2):
    print(f"step {step} | loss 1.0", flush=True)
print("loss: 1.0")
"""
PROGRAM = """---
metric: {name: loss, direction: minimize}
edit: [train.py]
budget: 20s
---
Change the rate, one at a time; nothing else is of any use in this little program.
"""


def reply(number: int) -> str:
    block = f"<<<<<<< SEARCH\nRATE = 1\n=======\nRATE = {number + 1}\n>>>>>>> REPLACE\n"
    return f"Hypothesis: The rate {number + 1} is better.\nCategory: other\n\ntrain.py\n{block}"


def make(folder: Path, experiments: int, train: str, reply: Callable[[int], str]) -> None:
    """A repository with this train.py, and beside it a reply for each experiment, counted from 1."""
    folder.mkdir()
    (folder / "train.py").write_text(train)
    (folder / "program.md").write_text(PROGRAM)
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    for command in (["init", "-q"], ["add", "--all"], ["commit", "-q", "-m", "Start"]):
        subprocess.run(["git", *identity, *command], cwd=folder, check=True)
    replies = folder.with_name("replies")
    replies.mkdir()
    for number in range(1, experiments + 1):
        (replies / f"{number:05}.md").write_text(reply(number))


def run(folder: Path, experiments: int, sandbox: str) -> float:
    """The night; the most memory that the loop's own process held, in bytes."""
    command = [sys.executable, "-m", "agent.loop", "--repo", str(folder), "--tag", "bench", "--sandbox", sandbox]
    command += ["--replay", str(folder.with_name("replies")), "--experiments", str(experiments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the night ended with status {status}")
    return used.ru_maxrss * 1024.0


def overheads(home: Path) -> list[float]:
    """Milliseconds beyond the training processes, for each experiment in turn."""
    ledger = Ledger(home, readonly=True)
    ran, ends = {}, []
    for _, event in ledger.events():
        if isinstance(event, ev.Measured):
            m = event.measurement
            ran.setdefault(event.experiment, []).append(m.startup_seconds + m.training_seconds + m.evaluation_seconds)
        elif isinstance(event, ev.Published):
            ends.append((event.experiment, event.at))
    return [1000 * (end - begin - sum(ran.get(number, []))) for (_, begin), (number, end) in pairwise(ends)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--sandbox", default="auto")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        make(folder, arguments.experiments, TRAIN, reply)
        memory = run(folder, arguments.experiments, arguments.sandbox)
        costs = overheads(folder / ".research" / "bench")
    tenth = max(1, len(costs) // 10)
    first, last = costs[tenth // 10 : tenth // 10 + tenth], costs[-tenth:]
    growth = statistics.median(last) / statistics.median(first)
    print("| experiments | overhead, median ms | 90% | first tenth | last tenth | loop's memory, MB |")
    print("|" + " --- |" * 6)
    ninth = statistics.quantiles(costs, n=10)[-1]
    print(
        f"| {len(costs)} | {statistics.median(costs):.0f} | {ninth:.0f} | {statistics.median(first):.0f} | "
        f"{statistics.median(last):.0f} | {memory / 1e6:.0f} |"
    )
    result = {"overhead_ms_p50": round(statistics.median(costs), 1), "growth": round(growth, 3)}
    print(json.dumps({**result, "rss_mb": round(memory / 1e6, 1), "experiments": len(costs)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
