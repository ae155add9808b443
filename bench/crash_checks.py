"""One night for bench.crash, and what must hold of it, looked at from outside, without the program's own code."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from server import ModelServer, Step  # noqa: E402  # pyright: ignore[reportMissingImports]

EXPERIMENTS = 6
CONSTANTS = 400
PROGRAM = """---
metric: {name: loss, direction: minimize}
edit: [train.py]
budget: 20s
---
Change one constant at a time; those with even numbers are worth something in this little program.
"""
KEPT = ("baseline", "keep", "simplification")
SECONDS = 8.0  # that what a killed loop had started may live on
PASSING = (".part", ".tmp", ".lock", "-wal", "-shm", "-journal")
PASSING_ANYWHERE = ("overnight-", "probe-", "tmp", "reserve", "process.json")


class Replies(ModelServer):
    """Each request gets a proposal that nobody has made before, on a line of its own."""

    def __init__(self):
        super().__init__()
        self._http.handle_error = lambda request, client_address: None  # a request that was cut off by a kill

    def take(self, request: dict[str, Any]) -> Step:
        with self._lock:
            self.requests.append(request)
            n = len(self.requests)
        return Step(
            f"Hypothesis: Constant {n} should be one.\nCategory: other\n\ntrain.py\n"
            f"<<<<<<< SEARCH\nC{n} = 0\n=======\nC{n} = 1\n>>>>>>> REPLACE\n"
        )


@dataclass
class Checked:
    """What was found in one night."""

    kills: int = 0
    cut_off: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)

    def add(self, fault: str, said: str) -> None:
        self.counts[fault] += 1
        self.said.append(f"{fault}: {said}")


class Night:
    """A repository with a night in it, a server that it asks, a home and a place for temporary files of its own."""

    def __init__(self, folder: Path, sandbox: bool):
        self.folder, self.sandbox, self.checked, self.typical = folder, sandbox, Checked(), 3.0
        self.code = -1  # of the newest process
        self.repository, self.home, self.temporary = (folder / name for name in ("repository", "home", "temporary"))
        self.night = self.repository / ".research" / "night"

    def __enter__(self) -> Night:
        for path in (self.repository, self.home, self.temporary):
            path.mkdir(parents=True)
        constants = "\n\n".join(f"C{n} = 0" for n in range(1, CONSTANTS))
        worth = (
            "print('loss:', 1000 - sum(v for k, v in list(globals().items()) if k[0] == 'C' and int(k[1:]) % 2 == 0))"
        )
        (self.repository / "train.py").write_text(f"{constants}\n\nprint('step 0 loss 1.0', flush=True)\n{worth}\n")
        (self.repository / "program.md").write_text(PROGRAM)
        (self.repository / "notes.txt").write_text("mine\n")
        for command in (
            ["init", "-q", "-b", "main"],
            ["add", "train.py", "program.md"],
            ["commit", "-q", "-m", "Start"],
        ):
            self.git("-c", "user.name=P", "-c", "user.email=p@x", *command)
        self.git("add", "notes.txt")
        self.server = Replies()
        self.server.__enter__()
        self.environment = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"}
        self.environment |= {"HOME": str(self.home), "TMPDIR": str(self.temporary), "ANTHROPIC_API_KEY": "k"}
        self.flags = ["--repo", str(self.repository), "--tag", "night", "--proposer", "anthropic", "--usd", "1000"]
        self.flags += ["--base-url", self.server.url, "--experiments", str(EXPERIMENTS)]
        self.flags += [] if self.sandbox else ["--unsafe-no-sandbox"]
        self.checkout = self.seen_by_the_person()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.repository, capture_output=True, text=True, check=True
        ).stdout.strip()

    def seen_by_the_person(self) -> tuple[Any, ...]:
        files = {p.name: p.read_bytes() for p in self.repository.iterdir() if p.is_file()}
        asked = (("status", "--porcelain", "--branch"), ("rev-parse", "HEAD"), ("rev-parse", "main"), ("stash", "list"))
        return files, (self.repository / ".git" / "index").read_bytes(), *(self.git(*one) for one in asked)

    def rows(self) -> list[tuple[int, str, str]]:
        """The journal as it lies on the disk."""
        path = self.night / "ledger.db"
        with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(path)) as db:
            return db.execute("SELECT number, kind, event FROM journal ORDER BY number").fetchall()
        return []

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads(event) for _, name, event in self.rows() if name == kind]

    def last_line(self) -> str:
        return (self.folder / "said").read_text(errors="replace").strip().rpartition("\n")[2]

    def after_a_process(self, before: list[tuple[int, str, str]]) -> None:
        if self.rows()[: len(before)] != before:
            self.checked.add("lost", "the journal does not begin with what it held before")
        until = time.monotonic() + SECONDS
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.02)
        for process in left:
            with contextlib.suppress(psutil.Error):
                self.checked.add("orphans", " ".join(process.cmdline())[:200])

    def processes(self) -> list[psutil.Process]:
        """All that has to do with this night by its command line, place or environment."""
        found, name = [], f"{self.folder}/"
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                told = " ".join([*process.cmdline(), f"{process.cwd()}/", *process.environ().values()])
                if name in told:
                    found.append(process)
        return found

    def at_the_end(self) -> None:
        self.check_experiments()
        self.check_calls()
        self.check_refs()
        self.check_files()
        if self.seen_by_the_person() != self.checkout:
            self.checked.add("checkout_changed", str(self.repository))

    def check_experiments(self) -> None:
        published = Counter(event["experiment"] for event in self.events("Published"))
        with (self.night / "results.tsv").open(newline="") as file:
            listed = Counter(int(row["experiment"]) for row in csv.DictReader(file, delimiter="\t"))
        for number in range(EXPERIMENTS + 1):
            for where, counts in (("journal", published), ("results.tsv", listed)):
                if not counts[number]:
                    self.checked.add("lost", f"experiment {number} is not in {where}")
        for where, counts in (("journal", published), ("results.tsv", listed)):
            for number, count in counts.items():
                if count > 1 or number > EXPERIMENTS:
                    self.checked.add("doubled", f"experiment {number} is {count} times in {where}")
        trials = Counter((e["experiment"], e["number"]) for e in self.events("Measured"))
        for trial, count in trials.items():
            if count > 1:
                self.checked.add("doubled", f"trial {trial} was measured {count} times")
        ideas = Counter(json.dumps(e) for e in self.events("Proposed"))
        for idea, count in ideas.items():
            if count > 1:
                self.checked.add("doubled", f"proposed twice: {idea}")

    def check_calls(self) -> None:
        asked, told = self.events("Asked"), Counter(e["call"] for e in self.events("Replied"))
        answered = {e["experiment"] for e in self.events("Replied")}
        failed = {e["call"] for e in self.events("CallFailed")}
        cut_off = [e for e in asked if not told[e["call"]] and e["call"] not in failed]
        self.checked.cut_off = len(cut_off)
        if len(self.server.requests) > len(asked):
            self.checked.add("paid_twice", f"{len(self.server.requests)} requests for {len(asked)} calls")
        replies: set[int] = set()
        for _, kind, text in self.rows():
            event = json.loads(text)
            if kind == "Replied":
                replies.add(event["experiment"])
            if kind == "Asked" and event["kind"] == "first" and event["experiment"] in replies:
                self.checked.add("paid_twice", f"experiment {event['experiment']} was asked for after its reply")
        if len(answered) != EXPERIMENTS:
            self.checked.add("lost", f"{len(answered)} experiments have a reply")
        said = subprocess.run(
            [sys.executable, "-m", "agent", "status", "--repo", str(self.repository), "--tag", "night"],
            cwd=Path(__file__).parents[1], capture_output=True, text=True, env={**self.environment, "COLUMNS": "200"},
        ).stdout  # fmt: skip
        spent = [float(line.split("$")[1].split()[0]) for line in said.splitlines() if "dollars" in line]
        least = sum(e["reserved_usd"] for e in cut_off)
        if not spent or spent[0] < least * 0.99:
            self.checked.add(
                "uncharged", f"{len(cut_off)} calls were cut off, at ${least:.4f}, but the summary says {spent}"
            )

    def check_refs(self) -> None:
        lines = self.git("for-each-ref", "--format=%(refname) %(objectname)").splitlines()
        refs, kept = dict(line.split() for line in lines), []
        verdicts = {e["experiment"]: e["verdict"]["kind"] for e in self.events("Judged")}
        for event in self.events("Published"):
            number, commit = event["experiment"], event["commit"]
            if commit and refs.get(f"refs/experiments/night/{number}") != commit:
                self.checked.add("branch_mismatch", f"experiment {number} is not pinned where the journal says")
            kept += [commit] if verdicts[number] in KEPT else []
        chain = self.git("rev-list", "--first-parent", "--reverse", "research/night").splitlines()
        if chain != kept:
            self.checked.add("branch_mismatch", f"research/night is {chain}, but kept were {kept}")
        allowed = {"refs/heads/main", "refs/heads/research/night"}
        if other := [n for n in refs if n not in allowed and not n.startswith("refs/experiments/night/")]:
            self.checked.add("branch_mismatch", f"there are {other}")

    def check_files(self) -> None:
        """Nothing in home and among the temporary files; in the repository nothing that was only for a while."""
        places = [*self.home.rglob("*"), *self.temporary.rglob("*")]
        for path in (*self.night.parent.rglob("*"), *(self.repository / ".git").rglob("*")):
            name = path.name
            passing = name.endswith(PASSING) or any(name.startswith(part) for part in PASSING_ANYWHERE)
            busy = path.parent.name in ("live", "requests") and path.is_file()
            if passing or busy or path.parent == self.night / "outputs":
                places.append(path)
        for path in places:
            self.checked.add("left_files", str(path.relative_to(self.folder)))
