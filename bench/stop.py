"""One signal stops the loop within two seconds, whatever it is doing: python -m bench.stop

For each thing that a loop can be doing, real loops are stopped by SIGINT and by SIGTERM, and by two signals at once.
What is counted:

- late: it took longer than 2 seconds to end
- silent: it did not say `stopping`, print the summary and tell how to go on
- wrong_code: its exit code was not 3, unfinished
- left: a process of it was still there afterwards
- died_with_terminal: started with nohup, it did not outlive a SIGHUP

Prints a table, and on the last line these counts as one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from conftest import make_repository  # noqa: E402  # pyright: ignore[reportMissingImports]
from server import ModelServer, Step  # noqa: E402  # pyright: ignore[reportMissingImports]

from agent import events as ev  # noqa: E402
from agent.errors import Failure  # noqa: E402
from agent.ledger import Ledger  # noqa: E402

TRAIN = """\
import os, signal, time
RATE = 0.5
if os.environ.get("STUBBORN"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(float(os.environ.get("STARTUP", "0")))
for step in range(3):
    print(f"step {step} loss {RATE / (step + 1):.4f} {step * 33}%", flush=True)
    time.sleep(float(os.environ.get("TRAINING", os.environ.get("STUBBORN", "0"))))
print("loss:", (RATE - 0.1) ** 2)
"""
SLEEP = "import os, time; time.sleep(float(os.environ.get({0!r}, '0'))); print('loss: 0.5')\n"
PROGRAM = """\
---
metric: {name: loss, direction: minimize}
edit: [train.py]
protect: [evaluate.py, score.py, prepare.py]
prepare: python prepare.py
evaluate: python evaluate.py
test: python score.py
budget: 20s
environment: [STARTUP, TRAINING, STUBBORN, EVALUATION, TEST]
---
# Direction
Lower the loss by changing the rate; leave the printing of progress alone, it tells how far it is.
"""
LIMIT = 2.0  # seconds
WAIT = 60.0  # seconds until a loop is at what it is to be stopped at
Seen = Callable[[list[ev.Event], Path], bool]


@dataclass(frozen=True)
class Doing:
    """What a loop is doing when it is stopped."""

    name: str
    seen: Seen
    """Whether it is at it, from its journal and its folder."""
    slow: str = ""
    """The environment variable that makes it last."""
    steps: tuple[Step, ...] | None = None
    """Of the model's server; None: there is none, and `search` proposes."""
    command: str = ""
    begun: bool = True
    """There is a night already, with something to say."""


def last(kind: type[ev.Event]) -> Seen:
    return lambda events, home: any(isinstance(event, kind) for event in events)


def says(text: bytes) -> Seen:
    """A log of the night holds this."""
    return lambda events, home: any(text in path.read_bytes() for path in (home / "logs").glob("*.log"))


def phase(name: str) -> Seen:
    def seen(events: list[ev.Event], home: Path) -> bool:
        return any(f'"phase": "{name}"' in path.read_text() for path in (home / "live").glob("*.json"))

    return seen


BUSY = Step(status=503, message="busy", headers={"retry-after": "30"})
DOINGS = (
    Doing("prepare runs", lambda events, home: (home.parents[1] / "preparing").exists(), "PREPARE", begun=False),
    Doing("a trial starts", lambda events, home: last(ev.TrialBegun)(events, home) and phase("startup")(events, home),
          "STARTUP"),
    Doing("a trial trains", says(b"step 0"), "TRAINING"),
    Doing("a trial ignores SIGTERM", says(b"step 0"), "STUBBORN"),
    Doing("an evaluation", says(b"\nloss: 0.16"), "EVALUATION"),
    Doing("a held-out test", last(ev.TestBegun), "TEST"),
    Doing("a command proposes", last(ev.Asked), command=f"{sys.executable} -c 'import time; time.sleep(600)'"),
    Doing("an answer is awaited", last(ev.Asked), steps=(Step(hang=True),)),
    Doing("keep-alives, and no answer", last(ev.Asked), steps=(Step(ping=True),)),
    Doing("retries", last(ev.Asked), steps=(BUSY,) * 50),
    Doing("a pause", last(ev.Paused), steps=(Step(status=401, kind="authentication_error"),) * 50),
)  # fmt: skip


@dataclass
class Outcome:
    name: str
    signals: tuple[signal.Signals, ...]
    seconds: float
    faults: set[str]
    said: str = ""


def stop(doing: Doing, signals: tuple[signal.Signals, ...], folder: Path, sandbox: tuple[str, ...]) -> Outcome:
    """One loop, brought to what it is to be doing, and stopped."""
    prepare = "import os, pathlib, time\nif os.environ.get('PREPARE'):\n    pathlib.Path('preparing').touch()\n"
    files = {
        "train.py": TRAIN, "program.md": PROGRAM, "evaluate.py": SLEEP.format("EVALUATION"),
        "score.py": SLEEP.format("TEST"), "prepare.py": prepare + SLEEP.format("PREPARE"),
    }  # fmt: skip
    project = make_repository(folder, files)
    home, server = project / ".research" / "night", None
    flags = ["--experiments", "3", *sandbox]
    if doing.command:
        flags += ["--command", doing.command]
    if doing.steps is not None:
        server = ModelServer(doing.steps)
        server.__enter__()
        flags += ["--proposer", "openai", "--base-url", f"{server.url}/v1"]
    env = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    if doing.slow:
        env[doing.slow] = "600"
    argv = [sys.executable, "-m", "agent.loop", "--repo", str(project), "--tag", "night", *flags]
    out = (folder.parent / f"{folder.name}.out").open("w+")
    process = subprocess.Popen(
        argv, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        preexec_fn=restore_signals,
    )  # fmt: skip
    try:
        wait_until(lambda: doing.seen(journal(home), home), process, doing.name)
        children = psutil.Process(process.pid).children(recursive=True)
        sent = time.monotonic()
        for number in signals:
            process.send_signal(number)
        code = wait(process)
        seconds = time.monotonic() - sent
        _, alive = psutil.wait_procs(children, timeout=LIMIT)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if server:
            server.__exit__()
    out.seek(0)
    said = out.read()
    out.close()
    wanted = ["goes on from here"] if len(signals) > 1 else ["stopping", "baseline ", "ended", "goes on from here"]
    if not doing.begun:
        wanted = ["stopped before anything was begun"] if len(signals) == 1 else []
    checks = {
        "late": seconds > LIMIT, "left": bool(alive), "wrong_code": code != 3,
        "silent": any(word not in said for word in wanted),
    }  # fmt: skip
    return Outcome(doing.name, signals, seconds, {name for name, bad in checks.items() if bad}, said)


def outlives(folder: Path, sandbox: tuple[str, ...]) -> Outcome:
    """Started as by nohup: a SIGHUP is nothing to it, and SIGTERM still stops it."""
    doing = DOINGS[2]
    project = make_repository(folder, {"train.py": TRAIN, "program.md": PROGRAM, "evaluate.py": "print('loss: 1')\n",
                                       "score.py": "print('loss: 1')\n", "prepare.py": ""})  # fmt: skip
    home = project / ".research" / "night"
    argv = [sys.executable, "-m", "agent.loop", "--repo", str(project), "--tag", "night", *sandbox]
    process = subprocess.Popen(
        ["nohup", *argv], cwd=ROOT, env=os.environ | {"TRAINING": "600"}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, preexec_fn=restore_signals,
    )  # fmt: skip
    try:
        wait_until(lambda: doing.seen(journal(home), home), process, doing.name)
        process.send_signal(signal.SIGHUP)
        time.sleep(1.0)
        faults = {"died_with_terminal"} if process.poll() is not None or stopping(home) else set[str]()
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        wait(process)
        return Outcome("nohup, then SIGHUP", (signal.SIGHUP,), time.monotonic() - sent, faults)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def restore_signals() -> None:
    """A benchmark that runs in the background may itself ignore them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def stopping(home: Path) -> bool:
    return last(ev.Requested)(journal(home), home)


def journal(home: Path) -> list[ev.Event]:
    """Empty where there is none yet."""
    try:
        ledger = Ledger(home, readonly=True)
        try:
            return [event for _, event in ledger.events()]
        finally:
            ledger.close()
    except (Failure, sqlite3.OperationalError):  # it is just being made
        return []


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"{what}: it ended before, with {process.poll()}, or took longer than {WAIT:g} s")
        time.sleep(0.05)


def wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(30)
    except subprocess.TimeoutExpired:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="what it is doing holds this")
    parser.add_argument("--no-sandbox", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="what each loop said")
    options = parser.parse_args()
    sandbox = ("--unsafe-no-sandbox",) if options.no_sandbox else ()
    one, two = [(signal.SIGINT,), (signal.SIGTERM,)], [(signal.SIGINT, signal.SIGTERM)]
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(doing, signals) for doing in DOINGS if options.only in doing.name for signals in (*one, *two)]
        for number, (doing, signals) in enumerate(jobs):
            outcomes.append(show(stop(doing, signals, Path(folder) / str(number), sandbox), options.verbose))
        if options.only in "nohup":
            outcomes.append(show(outlives(Path(folder) / "nohup", sandbox), options.verbose))
    names = ("late", "silent", "wrong_code", "left", "died_with_terminal")
    counts = {name: sum(name in o.faults for o in outcomes) for name in names}
    print(json.dumps({"cases": len(outcomes), **counts, "slowest": round(max(o.seconds for o in outcomes), 2)}))
    sys.exit(any(counts.values()))


def show(outcome: Outcome, verbose: bool) -> Outcome:
    signals = " ".join(number.name for number in outcome.signals)
    faults = ",".join(sorted(outcome.faults)) or "-"
    print(f"{outcome.name:28} {signals:16} {outcome.seconds:6.2f} s  {faults}", flush=True)
    if verbose or outcome.faults:
        print(outcome.said)
    return outcome


if __name__ == "__main__":
    main()
