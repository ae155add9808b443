"""What train.py reaches in a time: val_bpb, tokens/s, MFU, seconds to the first step, memory.

    python bench/train_speed.py --seconds 100 --seeds 0 1
    python bench/train_speed.py --seconds 60 -v "" -v "WIDTH=768" -v "BATCH_ROWS=64 MATRIX_LR=0.02"

Each variant is train.py with some of its constants changed, run as the loop would run it and evaluated by prepare.py.
Prints a Markdown table, and as the last line one JSON object with every number of every run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"^(\w+): (.*)$", re.MULTILINE)


def changed(source: str, variant: str) -> str:
    """train.py with `NAME=value` pairs applied, wherever the name is assigned. Raises SystemExit for a name that is
    no constant there."""
    for pair in variant.split():
        name, value = pair.split("=", 1)
        source, count = re.subn(rf"^( *{name}) = [^#\n]*?( *#.*)?$", rf"\1 = {value}", source, flags=re.MULTILINE)
        if not count:
            raise SystemExit(f"train.py has no constant {name}")
    return source


def run_one(variant: str, seed: int, budget: dict[str, str], evaluate: bool) -> dict[str, object]:
    """Train and evaluate one variant; the numbers that both print."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("prepare.py", "corpus.py", "evaluation.py"):
            shutil.copy(ROOT / name, folder)
        source = changed((ROOT / "train.py").read_text(), variant)
        Path(folder, "train.py").write_text(source)
        # GOMP_SPINCOUNT as in the loop: threads that spin for long while they wait starve a CPU that others use too
        env = {"GOMP_SPINCOUNT": "10000"} | os.environ | budget
        env |= {"RESEARCH_SEED": str(seed), "RESEARCH_OUTPUT": folder + "/out"}
        row: dict[str, object] = {"variant": variant or "as it is", "seed": seed}
        began = time.monotonic()
        for command in (["train.py"], ["prepare.py", "evaluate"])[: 2 if evaluate else 1]:
            done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True)
            for name, value in LINE.findall(done.stdout):
                try:
                    row[name] = float(value)
                except ValueError:
                    row[name] = value
            if done.returncode:
                row["failed"] = (done.stdout + done.stderr)[-3000:]
                break
        row["wall_seconds"] = round(time.monotonic() - began, 1)
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="training seconds of a run")
    parser.add_argument("--tokens", type=int, help="or training tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time; only a budget in tokens allows more")
    parser.add_argument("--no-evaluation", action="store_true")
    parser.add_argument("-v", "--variant", action="append", help="NAME=value pairs; give it again for more runs")
    args = parser.parse_args()
    budget = {"RESEARCH_BUDGET_SECONDS": str(args.seconds)} if args.seconds else {}
    budget |= {"RESEARCH_BUDGET_TOKENS": str(args.tokens)} if args.tokens else {}
    jobs = [(variant, seed) for variant in args.variant or [""] for seed in args.seeds]
    columns = ("variant", "seed", "val_bpb", "train_loss", "num_steps", "total_tokens", "training_seconds",
               "mfu_percent", "startup_seconds", "peak_vram_mb", "evaluation_seconds")
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns), flush=True)
    rows = []
    with ThreadPoolExecutor(args.parallel) as pool:
        for row in pool.map(lambda job: run_one(job[0], job[1], budget, not args.no_evaluation), jobs):
            rows.append(row)
            print("| " + " | ".join(str(row.get(c, "")) for c in columns) + " |", flush=True)
    for row in rows:
        if "failed" in row:
            print(f"\n{row['variant']}, seed {row['seed']}, failed:\n{row['failed']}", file=sys.stderr)
    print(json.dumps({"runs": rows}))
    sys.exit(any("failed" in row for row in rows))


if __name__ == "__main__":
    main()
