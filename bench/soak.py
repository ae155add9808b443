"""A night of thousands of tiny experiments: does anything grow that should not?

    python -m bench.soak [--experiments 2000] [--sandbox auto]

Real processes, git and ledger in the real sandbox, with replayed replies; one change in fifty is better and kept.
While it runs, the loop's own memory and open files are looked at; at the end, what lies on disk. Compared are the first
tenth after a warm-up of 100 experiments and the last tenth, by their medians. The last line is one JSON object; exit
code 1 where time or memory at the end are above 1.1 of those at the start, where memory passes 150 MB, or where more
whole logs are left than the rule of retention says (README, "What a night leaves on disk").
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from agent import events as ev
from agent.actions import FULL_LOGS
from agent.ledger import Ledger
from agent.run.log import SHORT
from bench.overhead import ROOT, make

WARM_UP = 100  # experiments before the start is measured
GROWTH, MEGABYTES = 1.1, 150.0  # the most that is allowed
BETTER = 50  # one experiment of so many is kept
LOOK = 0.25  # seconds between two looks at the process
LINES = 400  # that each trial prints: more than what a trimmed log holds

TRAIN = """RATE = {rate}
for step in range({lines}):
    print(f"step {{step}} | loss 1.0 | the rate is {{RATE}}")
LOSS = {loss}
print("loss:", LOSS)
"""


@dataclass(frozen=True)
class Look:
    """At the loop's process, at one moment."""

    at: float
    bytes: int
    files: int


def train(number: int) -> str:
    loss = 1 - number / 1e6 if number % BETTER == 0 else 2.0
    return TRAIN.format(rate=number, lines=LINES, loss=loss)


def reply(number: int) -> str:
    """It replaces the whole file."""
    whole = f"Whole file: train.py\n```python\n{train(number)}```\n"
    return f"Hypothesis: The rate {number} is better.\nCategory: hyperparameter\n\n{whole}"


def run(folder: Path, experiments: int, sandbox: str) -> list[Look]:
    """The night, and what its process was seen to hold."""
    command = [sys.executable, "-m", "agent.loop", "--repo", str(folder), "--tag", "soak", "--sandbox", sandbox]
    command += ["--replay", str(folder.with_name("replies")), "--experiments", str(experiments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    looks, loop = [], psutil.Process(process.pid)
    while process.poll() is None:
        try:
            looks.append(Look(time.time(), loop.memory_info().rss, loop.num_fds()))
        except psutil.Error:
            break
        time.sleep(LOOK)
    if status := process.wait():
        sys.exit(f"the night ended with status {status}")
    return looks


def verdicts(home: Path) -> list[float]:
    """When each experiment was decided, in turn."""
    ledger = Ledger(home, readonly=True)
    return [event.at for _, event in ledger.events() if isinstance(event, ev.Published)]


def tenths(ends: list[float], looks: list[Look]) -> Iterator[tuple[float, float, float]]:
    """(seconds per experiment, bytes, open files) of the first tenth after the warm-up, and of the last."""
    tenth = max(1, len(ends) // 10)
    warm = min(WARM_UP, tenth)
    for part in (ends[warm : warm + tenth + 1], ends[-tenth - 1 :]):
        seen = [look for look in looks if part[0] <= look.at <= part[-1]] or looks[-1:]
        yield (
            statistics.median(after - before for before, after in pairwise(part)),
            statistics.median(look.bytes for look in seen),
            statistics.median(look.files for look in seen),
        )


def disk(folder: Path) -> dict[str, tuple[int, int]]:
    """Files and bytes, by what they are."""
    home = folder / ".research" / "soak"
    groups = {"logs": home / "logs", "ledger": home, "git": folder / ".git"}
    found: dict[str, tuple[int, int]] = {}
    for name, place in groups.items():
        paths = place.glob("ledger.db*") if name == "ledger" else place.rglob("*")
        sizes = [path.lstat().st_blocks * 512 for path in paths if path.is_file()]
        found[name] = len(sizes), sum(sizes)
    rest = [path for path in home.rglob("*") if path.is_file() and "logs" not in path.parts]
    found["other"] = len(rest) - found["ledger"][0], sum(p.lstat().st_blocks * 512 for p in rest) - found["ledger"][1]
    return found


def whole_logs(folder: Path) -> int:
    """Logs of trials that are longer than a trimmed one."""
    return sum(path.stat().st_size > 2 * SHORT for path in (folder / ".research" / "soak" / "logs").glob("*-*.log"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--sandbox", default="auto")
    arguments = parser.parse_args()
    count = arguments.experiments
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        make(folder, count, train(0), reply)
        looks = run(folder, count, arguments.sandbox)
        ends = verdicts(folder / ".research" / "soak")
        (seconds, memory, files), (last_seconds, last_memory, last_files) = tenths(ends, looks)
        left, logs = disk(folder), whole_logs(folder)
    print("| | first tenth | last tenth |")
    print("| --- | --- | --- |")
    print(f"| ms per experiment | {1000 * seconds:.0f} | {1000 * last_seconds:.0f} |")
    print(f"| loop's memory, MB | {memory / 1e6:.0f} | {last_memory / 1e6:.0f} |")
    print(f"| open files of the loop | {files:.0f} | {last_files:.0f} |")
    print("\n| on disk | files | MB |")
    print("| --- | --- | --- |")
    for what, (number, size) in left.items():
        print(f"| {what} | {number} | {size / 1e6:.1f} |")
    allowed = FULL_LOGS + count // BETTER + 5  # the baseline has several trials
    most = max(look.bytes for look in looks) / 1e6
    result = {
        "experiments": len(ends) - 1,
        "ms_first": round(1000 * seconds, 1),
        "ms_last": round(1000 * last_seconds, 1),
        "time_growth": round(last_seconds / seconds, 3),
        "memory_growth": round(last_memory / memory, 3),
        "memory_mb": round(most, 1),
        "open_files": round(last_files),
        "files_on_disk": sum(number for number, _ in left.values()),
        "mb_on_disk": round(sum(size for _, size in left.values()) / 1e6, 1),
        "whole_logs": logs,
        "wall_s": round(ends[-1] - ends[0]),
    }
    held = result["time_growth"] <= GROWTH and result["memory_growth"] <= GROWTH and most <= MEGABYTES
    print(json.dumps({**result, "held": held and last_files <= files + 2 and logs <= allowed}))
    return 0 if held and last_files <= files + 2 and logs <= allowed else 1


if __name__ == "__main__":
    sys.exit(main())
