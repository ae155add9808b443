"""Does a kill -9 of the loop lose anything, do anything twice, or leave anything behind?

    python -m bench.crash [--kills 300] [--quick]

Short nights in real repositories, with real trials, in the sandbox and without, asking a real HTTP server. First the
loop is killed at every point that bench/crash_point.py knows (before and after each event, effect, rename); then at
random moments. It is started again after each kill, until the night is finished. What is said of it is looked at from
outside: by git, sqlite3, the server's own record and the table of processes. Prints a table and, as the last line, one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.crash_checks import Night

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ("lost", "doubled", "paid_twice", "uncharged", "orphans", "left_files", "branch_mismatch", "checkout_changed")
LONGEST = 60.0  # seconds that one process of a night may take before it counts as hanging
ATONCE = 2


class Bench:
    """Shares the kills out among nights, each of them in one thread."""

    def __init__(self, folder: Path, kills: int, seed: int, minutes: float):
        self.until = time.monotonic() + 60 * minutes
        self.folder, self.left, self.rng = folder, kills, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.table: dict[str, Counter[str]] = {}
        self.said: list[str] = []
        self.turn = threading.Lock()
        self.nights = 0

    def night(self, sandbox: bool) -> Night:
        with self.turn:
            self.nights += 1
            return Night(self.folder / f"night{self.nights}", sandbox)

    def points(self, sandbox: bool) -> list[str]:
        """All points that one whole night passes, in the order in which it comes to them."""
        with self.night(sandbox) as night:
            file = night.folder / "points"
            subprocess.run(self.command(night, file, "-"), env=night.environment, cwd=ROOT, check=True,
                           stdout=subprocess.DEVNULL, timeout=LONGEST)  # fmt: skip
            return [line for line in file.read_text().splitlines() if line.endswith("#1")]

    def command(self, night: Night, file: Path, point: str) -> list[str]:
        return [sys.executable, "-m", "bench.crash_point", str(file), point, *night.flags]

    def at_points(self, sandbox: bool, points: list[str]) -> None:
        """One start for each point, in nights that go on; one that is not reached again is tried in a fresh night."""
        waiting, fresh = list(points), True
        while waiting and not self.is_late():
            with self.night(sandbox) as night:
                finished = False
                while waiting and not finished and not self.is_late():
                    code = self.start(night, self.command(night, night.folder / "points", waiting[0]), None)
                    if code != 0 or fresh:
                        waiting.pop(0)
                    fresh, finished = code == 0, code == 0
                self.finish(night, f"{'sandboxed' if sandbox else 'not sandboxed'}, at a point")

    def at_random(self, sandbox: bool) -> None:
        while self.left > 0 and not self.is_late():
            with self.night(sandbox) as night:
                finished = False
                while not finished and self.take():
                    with self.turn:
                        delay = self.rng.uniform(0.3, night.typical)
                    command = [sys.executable, "-m", "agent.loop", *night.flags]
                    finished = self.start(night, command, delay) == 0
                self.finish(night, f"{'sandboxed' if sandbox else 'not sandboxed'}, at random")

    def take(self) -> bool:
        with self.turn:
            self.left -= 1
            return self.left >= 0 and not self.is_late()

    def is_late(self) -> bool:
        return time.monotonic() > self.until

    def start(self, night: Night, command: list[str], delay: float | None) -> int:
        """One process of the night, killed after `delay`, or by itself. What is left of it is looked at afterwards."""
        before, began = night.rows(), time.monotonic()
        with (night.folder / "said").open("ab") as said:
            process = subprocess.Popen(command, env=night.environment, cwd=ROOT, stdout=said, stderr=said,
                                       start_new_session=True)  # fmt: skip
            try:
                code = process.wait(LONGEST if delay is None else delay)
            except subprocess.TimeoutExpired:
                if delay is None:
                    night.checked.add("lost", f"it hangs: {' '.join(command)}")
                process.kill()
                code = process.wait()
        night.code = code
        if code == 0:
            night.typical = max(1.5, min(6.0, time.monotonic() - began))
        elif code == -9:
            night.checked.kills += 1
        else:
            night.checked.add("lost", f"exit code {code}: {night.last_line()}")
            raise SystemExit(f"a night can't go on: {night.last_line()}")
        night.after_a_process(before)
        return code

    def finish(self, night: Night, where: str) -> None:
        """To the end, without a kill; then everything is looked at."""
        if night.code != 0:
            self.start(night, [sys.executable, "-m", "agent.loop", *night.flags], None)
        night.at_the_end()
        with self.turn:
            counts = self.table.setdefault(where, Counter())
            for total in (counts, self.counts):
                total.update(night.checked.counts | {"kills": night.checked.kills, "nights": 1})
                total["cut_off"] += night.checked.cut_off
            self.said += night.checked.said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="at random moments, beside those at the points")
    parser.add_argument("--quick", action="store_true", help="a few of each, in less than a minute")
    parser.add_argument("--minutes", type=float, default=60.0, help="after that no further kill is begun")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crash-") as name:
        bench = Bench(Path(name), 10 if arguments.quick else arguments.kills, arguments.seed, arguments.minutes)
        with ThreadPoolExecutor(ATONCE) as pool:
            kinds = (True, False)
            for sandbox, points in zip(kinds, pool.map(bench.points, kinds), strict=True):
                print(f"{len(points)} points {'with' if sandbox else 'without'} a sandbox", flush=True)
                if arguments.quick:
                    points = bench.rng.sample(points, 4)
                share = [points[i::ATONCE] for i in range(ATONCE)]
                list(pool.map(bench.at_points, [sandbox] * ATONCE, share))
                print(f"{bench.counts['kills']} kills", flush=True)
            list(pool.map(bench.at_random, kinds))
    for line in bench.said[:20]:
        print(f"FAULT {line}")
    columns = ("nights", "kills", *FAULTS, "cut_off")
    print(f"| where | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for where, counts in {**bench.table, "all": bench.counts}.items():
        print(f"| {where} | {' | '.join(str(counts[name]) for name in columns)} |")
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({**{name: bench.counts[name] for name in ("kills", *FAULTS, "cut_off")}, "seconds": seconds}))
    return 1 if any(bench.counts[name] for name in FAULTS) else 0


if __name__ == "__main__":
    sys.exit(main())
