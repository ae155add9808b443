"""What train.py reaches in a time: val_bpb, tokens, MFU, memory, and the seconds around training.

    python bench/train_speed.py --seconds 100 --seeds 0 1
    python bench/train_speed.py --seconds 60 -v "" -v "WIDTH=768" -v "BATCH_ROWS=64 MATRIX_LR=0.02"
    python bench/train_speed.py --seconds 100 --program train.py --program bench/comparison/train.py --gpus 0 1

Each run is one program (train.py, or a FILE that works with prepare.py as it does) with some of its constants changed,
run as the loop would run it and evaluated by prepare.py. A variant is left out for a program that lacks one of its
constants. Prints a Markdown table, and as the last line one JSON object with every number of every run. `program_hash`
is the start of the sha256 of the file that was run: without changes, that of the program itself.

The seconds of a run: `startup_seconds` from the start of the process to the first step, `training_seconds`,
`ending_seconds` from there to the end of the process, and `evaluation_wall_seconds` for the whole of `prepare.py
evaluate`, of which it counts `evaluation_seconds` itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"^(\w+): (.*)$", re.MULTILINE)
COLUMNS = ("program", "program_hash", "variant", "seed", "val_bpb", "train_loss", "num_steps", "total_tokens",
           "training_seconds", "mfu_percent", "peak_vram_mb", "startup_seconds", "ending_seconds",
           "evaluation_wall_seconds")

Row = dict[str, object]


@dataclass
class Job:
    """One run to make: the text of the program with its variant applied, and what to call it."""

    program: str
    variant: str
    source: str
    seed: int


def changed(source: str, variant: str) -> str | None:
    """The source with `NAME=value` pairs applied, wherever the name is assigned. None where it lacks one of them."""
    for pair in variant.split():
        name, value = pair.split("=", 1)
        source, count = re.subn(rf"^( *{name}) = [^#\n]*?( *#.*)?$", rf"\1 = {value}\2", source, flags=re.MULTILINE)
        if not count:
            return None
    return source


def plan(programs: list[Path], variants: list[str], seeds: list[int]) -> list[Job]:
    """Every run there is to make; equal seeds side by side, so that on several GPUs what is compared runs at once.
    Raises ValueError for what cannot be run, saying what to put right."""
    sources, jobs = [], []
    for path in map(Path.resolve, programs):
        sources.append((str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path), path.read_text()))
    for variant in variants:
        if bad := next((pair for pair in variant.split() if "=" not in pair), None):
            raise ValueError(f"{bad!r} in variant {variant!r}: give NAME=value")
        runs = [(name, text) for name, source in sources if (text := changed(source, variant)) is not None]
        if not runs:
            raise ValueError(f"no program has all the constants of variant {variant!r}: give names assigned in it")
        jobs += [Job(name, variant or "as it is", text, seed) for seed in seeds for name, text in runs]
    return jobs


def numbers(printed: str) -> Row:
    """The `name: value` lines of what a program printed, as numbers where they are some."""
    row: Row = {}
    for name, value in LINE.findall(printed):
        try:
            row[name] = float(value)
        except ValueError:
            row[name] = value
    return row


def run_one(job: Job, budget: dict[str, str], gpu: str | None, evaluate: bool) -> Row:
    """Train and evaluate; the numbers that both print, and the seconds around them."""
    with tempfile.TemporaryDirectory() as folder:
        for path in ROOT.glob("*.py"):  # prepare.py and the files that it needs
            shutil.copy(path, folder)
        Path(folder, "train.py").write_text(job.source)
        # GOMP_SPINCOUNT as in the loop: threads that spin for long while they wait starve a CPU that others use too
        env = {"GOMP_SPINCOUNT": "10000"} | os.environ | budget
        env |= {"RESEARCH_SEED": str(job.seed), "RESEARCH_OUTPUT": folder + "/out"}
        env |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {}
        row: Row = {"program": job.program, "program_hash": hashlib.sha256(job.source.encode()).hexdigest()[:12],
                    "variant": job.variant, "seed": job.seed, "gpu": gpu}
        for command in (["train.py"], ["prepare.py", "evaluate"])[: 2 if evaluate else 1]:
            began = time.monotonic()
            done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True)
            wall = time.monotonic() - began
            row |= numbers(done.stdout)
            row["train_wall_seconds" if command == ["train.py"] else "evaluation_wall_seconds"] = round(wall, 1)
            if done.returncode:
                row["failed"] = (done.stdout + done.stderr)[-3000:]
                break
            startup, training = row.get("startup_seconds"), row.get("training_seconds")
            if command == ["train.py"] and isinstance(startup, float) and isinstance(training, float):
                row["ending_seconds"] = round(wall - startup - training, 1)
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, action="append", metavar="FILE",
                        help="what to run instead of train.py; give it again for more")
    parser.add_argument("--seconds", type=float, help="training seconds of a run")
    parser.add_argument("--tokens", type=int, help="or training tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    at_once = parser.add_mutually_exclusive_group()
    at_once.add_argument("--parallel", type=int, default=1, help="runs at a time; only a budget in tokens allows more")
    at_once.add_argument("--gpus", nargs="+", metavar="ID", help="a run at a time on each of these GPUs")
    parser.add_argument("--no-evaluation", action="store_true")
    parser.add_argument("-v", "--variant", action="append", help="NAME=value pairs; give it again for more runs")
    args = parser.parse_args()
    budget = {"RESEARCH_BUDGET_SECONDS": str(args.seconds)} if args.seconds else {}
    budget |= {"RESEARCH_BUDGET_TOKENS": str(args.tokens)} if args.tokens else {}
    try:
        jobs = plan(args.program or [ROOT / "train.py"], args.variant or [""], args.seeds)
    except (ValueError, OSError) as error:
        print(f"train_speed.py: {error}", file=sys.stderr)
        sys.exit(2)
    places: list[str | None] = args.gpus or [None] * args.parallel
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for place in places:
        free.put(place)

    def run_in_turn(job: Job) -> Row:
        gpu = free.get()
        try:
            return run_one(job, budget, gpu, not args.no_evaluation)
        finally:
            free.put(gpu)

    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS), flush=True)
    rows = []
    with ThreadPoolExecutor(len(places)) as pool:
        for row in pool.map(run_in_turn, jobs):
            rows.append(row)
            print("| " + " | ".join(str(row.get(c, "")) for c in COLUMNS) + " |", flush=True)
    for row in rows:
        if "failed" in row:
            which = f"{row['program']}, {row['variant']}, seed {row['seed']}"
            print(f"\n{which}, failed:\n{row['failed']}", file=sys.stderr)
    print(json.dumps({"runs": rows}))
    sys.exit(any("failed" in row for row in rows))


if __name__ == "__main__":
    main()
