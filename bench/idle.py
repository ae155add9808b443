"""How much of a night a slot is busy, where the model takes its time: with and without asking ahead.

    python -m bench.idle [--experiments 20] [--trial 10] [--answer 2]

A night in a real repository and sandbox, whose trials sleep `--trial` seconds and whose proposer is a command that
sleeps `--answer` seconds. One proposal in four is better than all before, so that what was proposed ahead must be put
onto what was kept, and one in eight changes a line that a keep changes too, so that it is asked for again. Busy is the
time between the start and the end of a trial's worker, over the time from the first verdict after the baseline to the
last. Prints a table and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from agent import events as ev
from agent.ledger import Ledger
from bench.overhead import ROOT, make

TRAIN = """import time
RATE = 0
WIDTH = 0
DEPTH = 0
print("step 0 | loss 1.0 | 0.0%", flush=True)
time.sleep({trial})
print("loss:", 5.0 - RATE)
"""
# What proposes: every fourth change is a better rate, the others do nothing; each eighth is for the line that the one
# before changes too.
PROPOSER = """import re, sys, time
text = sys.stdin.read()
time.sleep({answer})
number = int(re.findall(r"experiment #(\\d+): one atomic change", text)[-1])
name = "RATE" if number % 4 == 0 or number % 8 == 5 else "WIDTH" if number % 2 else "DEPTH"
now = re.findall(rf"^{{name}} = (.+)$", text, re.M)[-1]
new = float(now) + 0.1 if number % 4 == 0 else -number if name == "RATE" else number
block = f"<<<<<<< SEARCH\\n{{name}} = {{now}}\\n=======\\n{{name}} = {{new}}\\n>>>>>>> REPLACE\\n"
print(f"Hypothesis: {{name}} {{new}} is better.\\nCategory: other\\n\\ntrain.py\\n{{block}}")
"""


def night(folder: Path, experiments: int, trial: float, answer: float, flags: list[str]) -> dict[str, float]:
    """Run it; the share of the time in which the slot was busy, and what became of the proposals."""
    folder.mkdir()
    make(folder / "project", 0, TRAIN.format(trial=trial), lambda number: "")
    proposer = folder / "proposer.py"
    proposer.write_text(PROPOSER.format(answer=answer))
    command = [sys.executable, "-m", "agent.loop", "--repo", str(folder / "project"), "--tag", "bench"]
    command += ["--experiments", str(experiments), "--command", f"{sys.executable} {proposer}", "--plain", *flags]
    with (folder / "log").open("w") as log:
        code = subprocess.run([*command, "--command-unsandboxed"], cwd=ROOT, stdout=log, stderr=log).returncode
    if code:
        sys.exit(f"the night ended with status {code}:\n{(folder / 'log').read_text()[-2000:]}")
    return counted([event for _, event in Ledger(folder / "project" / ".research" / "bench", readonly=True).events()])


def counted(events: list[ev.Event]) -> dict[str, float]:
    judged = [e.at for e in events if isinstance(e, ev.Judged)]
    begun = {(e.experiment, e.number): e.at for e in events if isinstance(e, ev.TrialBegun)}
    ended = {(e.experiment, e.number): e.at for e in events if isinstance(e, ev.Measured)}
    busy = sum(ended[key] - at for key, at in begun.items() if at >= judged[0])
    return {
        "busy": busy / (judged[-1] - judged[0]),
        "minutes": (judged[-1] - judged[0]) / 60,
        "proposals": sum(isinstance(e, ev.Asked) for e in events),
        "rebased": sum(isinstance(e, ev.Rebased) for e in events),
        "redone": sum(isinstance(e, ev.Overtaken) for e in events),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=20)
    parser.add_argument("--trial", type=float, default=10.0, help="seconds")
    parser.add_argument("--answer", type=float, default=2.0, help="seconds")
    arguments = parser.parse_args()
    results = {}
    print("| asking ahead | slot busy | minutes | calls | put onto a keep | asked for again |\n|" + " --- |" * 6)
    with tempfile.TemporaryDirectory() as name:
        for label, flags in (("yes", []), ("no", ["--no-lookahead"])):
            found = night(Path(name) / label, arguments.experiments, arguments.trial, arguments.answer, flags)
            results[label] = found
            print(
                f"| {label} | {100 * found['busy']:.1f}% | {found['minutes']:.1f} | {found['proposals']:.0f} | "
                f"{found['rebased']:.0f} | {found['redone']:.0f} |",
                flush=True,
            )
    ahead, alone = results["yes"], results["no"]
    redone = ahead["redone"] / ahead["proposals"]
    print(json.dumps({"busy": round(ahead["busy"], 4), "busy_no_lookahead": round(alone["busy"], 4),
                      "redone": round(redone, 4), "experiments": arguments.experiments}))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
