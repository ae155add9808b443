"""A whole night on this machine's GPU, with proposals written for it, and every verdict checked from the outside.

    python -m bench.gpu_night                        the full story: about 12 minutes at 20 s a trial
    python -m bench.gpu_night --short --seconds 5    the baseline and one change of code: 3 to 4 minutes
    python -m bench.gpu_night --at DIR --part 1      until the loop is killed in a trial; --part 2 goes on from there
    python -m bench.gpu_night --device cpu           the same story where there is no GPU, at 96k tokens a trial

The project is a copy of this repository's train.py with too low a rate for its output layer, something to be found. The
loop runs as people run it, as a program of its own in that project. Prints a table of seconds, what was checked, and as
the last line one JSON object. `--at` is where the project is made (default: in home), `--data` where the corpus lies.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil
import yaml

from agent.errors import Failure
from agent.history import History
from agent.ledger import Ledger
from agent.program import Device
from agent.records import Experiment
from agent.run.gpu import device_name, find_device, visible_gpus

ROOT = Path(__file__).resolve().parents[1]
FILES = ("train.py", "prepare.py", "corpus.py", "documents.py", "cleaning.py", "evaluation.py", "evaluated_model.py")
# The line of train.py that the story changes: as it is, as it begins, and far too low.
RATE, LOW_RATE, LOWEST_RATE = (
    f"HEAD_LR = {rate}  # AdamW: the output layer" for rate in ("0.01", "0.0002", "0.000001")
)
# The line of train.py with the rows for token pairs, and far too many of them.
TABLES = {
    "cuda": ("    PAIR_SLOTS = {}  # rows of the table of hashed token pairs", 65536, 1 << 34),
    "cpu": ("    PAIR_SLOTS = {}", 16384, 1 << 44),
}
KILLED_IN = 2  # the experiment in whose first trial the loop is killed
WARM_SECONDS = 10.0  # the most that a trial whose code was compiled before may take to start, in the median


def proposal(hypothesis: str, search: str, replace: str) -> str:
    return (
        f"Hypothesis: {hypothesis}\nCategory: other\n\ntrain.py\n<<<<<<< SEARCH\n{search.strip(chr(10))}\n=======\n"
        f"{replace.strip(chr(10))}\n>>>>>>> REPLACE\n"
    )


CHANGE_OF_CODE = proposal(
    "A sigmoid in the MLP bounds what a block can add.",
    "        return x + self.down(F.relu(self.up(norm(x))).square())",
    "        return x + self.down(torch.sigmoid(self.up(norm(x))))",
)
ATTENTION = "        y = F.scaled_dot_product_attention(q, k, v, is_causal={}, scale=self.scale)"
FLOOR = "FINAL_LR = {}  # the rate at the end, as a share of the peak"


def beginning() -> str:
    """The train.py that the night begins with."""
    return (ROOT / "train.py").read_text().replace(RATE, LOW_RATE)


Step = tuple[str, str, list[str]]
"""The verdict that is expected, words of its reason, and the replies."""


def story(device: Device) -> list[Step]:
    """The third step has a reply that can't be read, and its repair; the fourth crashes as soon as it starts, which
    goes back to the proposer twice."""
    line, slots, too_many = TABLES[device]
    larger = [
        proposal("A larger table.", line.format(slots), line.format(int(too_many * share))) for share in (1, 0.9, 0.8)
    ]
    return [
        ("keep", "", [proposal("The output layer can take a higher rate.", LOW_RATE, RATE)]),
        ("discard", "", [proposal("A far lower rate settles better.", RATE, LOWEST_RATE)]),
        ("discard", "", ["I would change the MLP, but I forget how to say it.", CHANGE_OF_CODE]),
        ("crash", "memory", larger),
        (
            "violation",
            "causal",
            [proposal("Attention in both directions.", ATTENTION.format("True"), ATTENTION.format("False"))],
        ),
        ("crash", "nan", [proposal("Another floor.", FLOOR.format("0.0"), FLOOR.format('float("nan")'))]),
    ]


class Project:
    """The repository in which the night runs, and what is known of it from outside."""

    def __init__(self, folder: Path, data: Path | None, seconds: float, short: bool, device: Device):
        self.folder, self.short = folder, short
        self.device: Device = device
        self.story: list[Step] = [("", "", [CHANGE_OF_CODE])] if short else story(device)
        self.replies, self.home = folder.with_name(folder.name + "-replies"), folder / ".research" / "bench"
        self.data, self.seconds = data, seconds

    def make(self) -> None:
        """train.py at its low rate, program.md with the budget, and the replies beside the project."""
        self.folder.mkdir(parents=True)
        for name in FILES:
            shutil.copy(ROOT / name, self.folder / name)
        (self.folder / "train.py").write_text(beginning())
        _, front, prose = (ROOT / "program.md").read_text().split("---\n", 2)
        budget = f"{self.seconds:g}s"
        if self.short:  # about as long, and the cap makes two seeds of the baseline enough
            budget = f"{self.seconds:g}M tokens within 500s"
        if self.device == "cpu":
            budget = "96k tokens within 60s"
        contract = yaml.safe_load(front) | {"budget": {self.device: budget}, "reruns": 3, "device": self.device}
        if self.data:
            places = {"data": [f"{self.data}/train"], "holdout": [f"{self.data}/heldout"]}
            contract |= {**places, "environment": ["OVERNIGHT_CACHE"]}
        (self.folder / "program.md").write_text(f"---\n{yaml.safe_dump(contract)}---\n{prose}")
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "Start")
        self.replies.mkdir()
        for number, reply in enumerate(reply for _, _, replies in self.story for reply in replies):
            (self.replies / f"{number:02}.md").write_text(reply)

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        ran = subprocess.run(
            ["git", *identity, *arguments], cwd=self.folder, capture_output=True, text=True, check=True
        )
        return ran.stdout.strip()

    def start(self) -> subprocess.Popen[bytes]:
        """The loop, as a person starts it."""
        command = [sys.executable, "-m", "agent.loop", "--tag", "bench", "--replay", str(self.replies)]
        command += ["--experiments", str(len(self.story))]
        environment = os.environ | ({"OVERNIGHT_CACHE": str(self.data)} if self.data else {})
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        return subprocess.Popen(command, cwd=self.folder, env=environment)

    def experiments(self) -> list[Experiment]:
        """Those with a verdict, by number."""
        ledger = Ledger(self.home, readonly=True)
        night, history = ledger.night(), History(ledger.text)
        return [history.whole(night.experiments[number]) for number in sorted(night.order)]

    def kill_in_a_trial(self, loop: subprocess.Popen[bytes]) -> None:
        """SIGKILL to the loop once the first trial of KILLED_IN has trained a few steps."""
        log = self.home / "logs" / f"{KILLED_IN}-0.log"
        while loop.poll() is None:
            if log.exists() and log.read_text(errors="replace").count("step ") > 4:
                loop.kill()
            time.sleep(0.2)
        print(f"killed with SIGKILL in the first trial of experiment {KILLED_IN}", flush=True)

    def check(self, before: set[int], used_before: int) -> list[str]:
        """Everything that is not as it should be."""
        wrong, done = [], {e.number: e for e in self.experiments()}
        for number, (kind, words, replies) in enumerate(self.story, 1):
            verdict = done[number].verdict if number in done else None
            if verdict is None:
                wrong.append(f"experiment {number} has no verdict")
            elif (kind and verdict.kind != kind) or words not in verdict.reason.lower():
                wrong.append(f"experiment {number} is {verdict.kind} ({verdict.reason}), expected {kind} {words}")
            elif len(done[number].calls) != len(replies):
                wrong.append(f"experiment {number} took {len(done[number].calls)} calls, expected {len(replies)}")
        kept = [e for e in done.values() if e.verdict and e.verdict.kept]
        if not kept or self.git("rev-parse", "research/bench") != kept[-1].commit:
            wrong.append("research/bench is not at the last kept commit")
        if status := self.git("status", "--porcelain"):
            wrong.append(f"the checkout was changed: {status}")
        mine = [p.pid for p in psutil.process_iter(["cmdline"]) if str(self.folder) in str(p.info["cmdline"])]
        if left := set(mine) - before - {os.getpid()}:
            wrong.append(f"processes were left: {sorted(left)}")
        if (used := used_bytes(self.device) - used_before) > 1 << 30:
            wrong.append(f"{used >> 20} MiB of GPU memory were left in use")
        if (slow := median(self.warm_starts() or [0.0])) > WARM_SECONDS:
            wrong.append(f"a warm start took {slow:.1f} s, more than {WARM_SECONDS:g}")
        return wrong

    def warm_starts(self) -> list[float]:
        """Startup seconds of every trial but the first of each experiment."""
        trials = [m for e in self.experiments() for m in e.measurements[1:]]
        return [m.startup_seconds for m in trials if m.outcome == "ok"]

    def table(self) -> list[list[object]]:
        rows: list[list[object]] = []
        for experiment in self.experiments():
            verdict = experiment.verdict.kind if experiment.verdict else "none"
            for number, m in enumerate(experiment.measurements):
                trained = m.numbers.get("training_seconds", 0.0)
                save = max(0.0, m.training_seconds - trained) if m.outcome == "ok" else None
                row = [f"{experiment.number}.{number}", verdict, m.outcome, m.metric, m.startup_seconds, trained]
                rows.append([*row, save, m.evaluation_seconds, m.peak_memory_gb])
        return rows


def used_bytes(device: Device) -> int:
    """Of the first GPU's memory."""
    return visible_gpus()[0].used_bytes() if device == "cuda" else 0


def who_and_where(project: Project) -> str:
    home = Path.home()
    where = "in home" if project.folder.is_relative_to(home) else "outside home"
    data = project.data or home / ".cache" / "overnight"
    user = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    return f"{user}, repository {where}, data {'in' if data.is_relative_to(home) else 'outside'} home"


def show(project: Project, wall: float) -> dict[str, object]:
    """Print the table; the figures of the JSON line."""
    names = ("trial", "verdict", "outcome", "val_bpb", "startup", "training", "save", "evaluation", "memory GB")
    print("\n| " + " | ".join(names) + " |\n|" + " --- |" * len(names))
    rows = project.table()
    for row in rows:
        cells = ["" if c is None else f"{c:.4f}" if i == 3 else f"{c:.1f}" if isinstance(c, float) else str(c)
                 for i, c in enumerate(row)]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    night = Ledger(project.home, readonly=True).night()
    first = [e.measurements[0].startup_seconds for e in project.experiments() if e.measurements and e.number == 3]
    middle = [row for row in rows if row[2] == "ok"]
    return {
        "who": who_and_where(project),
        "sandbox": night.sandbox,
        "device": night.hardware,
        "trials": len(rows),
        "warm_startup_s": round(median(project.warm_starts() or [0.0]), 1),
        "slowest_warm_startup_s": round(max(project.warm_starts(), default=0.0), 1),
        "changed_code_startup_s": round(first[0], 1) if first else None,
        "save_s": round(max((float(str(row[6])) for row in middle), default=0.0), 1),
        "evaluation_s": round(max((float(str(row[7])) for row in middle), default=0.0), 1),
        "share_in_training": round(sum(float(str(row[5])) for row in rows) / wall, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="training of a trial")
    parser.add_argument("--short", action="store_true", help="the baseline and one change of code only")
    parser.add_argument("--part", type=int, choices=(1, 2), help="until the kill, or from there on; default: both")
    parser.add_argument("--at", type=Path, help="folder to make the project in; default: a new one in home")
    parser.add_argument("--data", type=Path, help="where the corpus lies; default: ~/.cache/overnight")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    try:
        find_device(arguments.device)
        base = arguments.at or Path(tempfile.mkdtemp(prefix="gpu-night-", dir=Path.home()))
        project = Project(base.resolve() / "project", arguments.data, arguments.seconds, arguments.short,
                          arguments.device)  # fmt: skip
        if arguments.part != 2:
            project.make()
    except (Failure, OSError) as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    print(f"{who_and_where(project)}; {device_name(project.device)}", flush=True)
    before, used, began = set(psutil.pids()), used_bytes(project.device), time.monotonic()
    if not arguments.short and arguments.part != 2:
        project.kill_in_a_trial(project.start())
        if arguments.part == 1:
            (base / "seconds").write_text(str(time.monotonic() - began))
            return 0
    spent = float((base / "seconds").read_text()) if arguments.part == 2 else 0.0
    code = project.start().wait()
    result = show(project, spent + time.monotonic() - began)
    wrong = project.check(before, used) + ([f"the loop ended with exit code {code}"] if code else [])
    for line in wrong:
        print(f"WRONG: {line}")
    print(json.dumps({**result, "wrong": len(wrong)}))
    if not arguments.at:
        shutil.rmtree(base, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
