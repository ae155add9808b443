"""Times close_pairs.py from outside, on points of this trial's seed, and compares what it prints with the slow way. A
wrong answer ends without a number, so that there is nothing to keep."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

POINTS, DISTANCE, RUNS = 1200, 0.05, 5


def slow_way(points: list[list[float]]) -> int:
    close = 0
    for i, (x, y) in enumerate(points):
        close += sum((x - u) ** 2 + (y - v) ** 2 < DISTANCE**2 for u, v in points[:i])
    return close


def main() -> None:
    made, took = random.Random(os.environ.get("RESEARCH_SEED", "0")), []
    for _ in range(RUNS):
        points = [[made.random(), made.random()] for _ in range(POINTS)]
        with tempfile.TemporaryDirectory() as folder:
            (file := Path(folder, "points.json")).write_text(json.dumps({"distance": DISTANCE, "points": points}))
            started = time.perf_counter()
            ran = subprocess.run([sys.executable, "close_pairs.py", str(file)], capture_output=True, text=True)
            took.append(time.perf_counter() - started)
        if ran.stdout.strip() != str(slow_way(points)):
            sys.exit(f"close_pairs.py answered {(ran.stdout or ran.stderr).strip()[-300:]!r}, which is wrong")
    print(f"milliseconds: {1000 * statistics.median(took):.2f}")


main()
