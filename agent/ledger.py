"""The ledger: the SQLite journal of one night, and the only source of truth.

Every step of an experiment writes what it is about to do, does it, and records that it was done; so a
process that dies anywhere leaves a state from which the same step can be done again. One writer, many
readers. Every report is derived from here.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from agent.errors import Failure
from agent.records import Call, Experiment, Measurement, Proposal, Reply, State, Trial, Verdict

SCHEMA = """
CREATE TABLE IF NOT EXISTS night (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS experiments (
    number INTEGER PRIMARY KEY, state TEXT NOT NULL, parent TEXT NOT NULL, commit_sha TEXT,
    proposal TEXT, files TEXT NOT NULL DEFAULT '{}', verdict TEXT, test_numbers TEXT, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS calls (
    experiment INTEGER NOT NULL, turn INTEGER NOT NULL, kind TEXT NOT NULL, question TEXT NOT NULL,
    reserved_usd REAL, reply TEXT, PRIMARY KEY (experiment, turn));
CREATE TABLE IF NOT EXISTS trials (
    experiment INTEGER NOT NULL, number INTEGER NOT NULL, commit_sha TEXT NOT NULL, seed INTEGER NOT NULL,
    measurement TEXT, PRIMARY KEY (experiment, number));
CREATE TABLE IF NOT EXISTS notes (time REAL NOT NULL, text TEXT NOT NULL);
"""

# From each state, the states that may come next. Staying where one is, is always allowed: steps repeat.
NEXT: dict[State, set[State]] = {
    "proposing": {"proposed", "judged"},  # judged at once: no usable reply
    "proposed": {"committed", "judged"},  # judged at once: duplicate, violation
    "committed": {"running"},
    "running": {"measured"},
    "measured": {"running", "judged", "proposing"},  # a rerun; a verdict; a slip that goes back
    "judged": {"published"},
    "published": set(),
}


class LedgerError(Exception):
    """A step out of order: a defect of this program, never of the person."""


class Ledger:
    """Opens `home/ledger.db`, making it where it is missing; `readonly` for status and reports.

    Raises Failure where another process holds the night, or where there is nothing to read.
    """

    def __init__(self, home: Path, readonly: bool = False):
        self.path = home / "ledger.db"
        self.told: dict[int, Experiment] = {}  # published experiments, read once: there may be hundreds
        if readonly:
            if not self.path.exists():
                raise Failure(f"there is no night at {home}: start one with `python -m agent.loop`")
            self.db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
            return
        home.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(home / "lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise Failure(f"{home.name} is already being worked on by another loop: choose another --tag") from None
        self.db = sqlite3.connect(self.path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.executescript(SCHEMA)

    def close(self) -> None:
        self.db.close()
        if hasattr(self, "lock"):
            self.lock.release()

    # The night.

    def get(self, key: str, default: str = "") -> str:
        row = self.db.execute("SELECT value FROM night WHERE key = ?", (key,)).fetchone()
        return row[0] if row else default

    def set(self, key: str, value: str) -> None:
        self.db.execute("INSERT OR REPLACE INTO night VALUES (?, ?)", (key, value))

    def note(self, text: str) -> None:
        """Something the person should find in the morning: a broken program.md, a proposer's outage."""
        self.db.execute("INSERT INTO notes VALUES (?, ?)", (time.time(), text))

    def notes(self) -> list[tuple[float, str]]:
        return self.db.execute("SELECT time, text FROM notes ORDER BY time").fetchall()

    # The steps of an experiment, in order.

    def begin(self, parent: str, files: Mapping[str, str]) -> Experiment:
        """The intent to try something on top of `parent`. The first is the baseline: nothing to propose, and
        the editable `files` as they are, so that going back to them is seen to have been tried."""
        number = self.db.execute("SELECT COALESCE(MAX(number) + 1, 0) FROM experiments").fetchone()[0]
        state, commit = ("proposing", None) if number else ("committed", parent)
        self.db.execute(
            "INSERT INTO experiments (number, state, parent, commit_sha, files, created) VALUES (?, ?, ?, ?, ?, ?)",
            (number, state, parent, commit, json.dumps({} if number else dict(files)), time.time()),
        )
        return self.experiment(number)

    def abandon(self, number: int) -> None:
        """Take back the intent of an experiment for which no reply ever came."""
        with self._transaction():
            self.db.execute("DELETE FROM calls WHERE experiment = ? AND reply IS NULL", (number,))
            self.db.execute(
                "DELETE FROM experiments WHERE number = ? AND state = 'proposing' "
                "AND NOT EXISTS (SELECT 1 FROM calls WHERE experiment = number)",
                (number,),
            )

    def ask(self, number: int, call: Call) -> None:
        """A call is about to be made, and its upper bound set aside."""
        with self._transaction():
            self._advance(number, "proposing")
            self.db.execute(
                "INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?, NULL)",
                (number, call.turn, call.kind, call.question, call.reserved_usd),
            )

    def replied(self, number: int, turn: int, reply: Reply) -> None:
        """The reply is here and paid for: it is never asked for again."""
        self.db.execute(
            "UPDATE calls SET reply = ? WHERE experiment = ? AND turn = ?",
            (reply.model_dump_json(), number, turn),
        )

    def unanswered(self, number: int, turn: int) -> None:
        """The call failed without a reply: nothing was bought, so nothing stays set aside."""
        self.db.execute("UPDATE calls SET reserved_usd = 0 WHERE experiment = ? AND turn = ?", (number, turn))

    def restart(self) -> None:
        """Forget a baseline that does not run, so that the next start measures the corrected one."""
        self.told.pop(0, None)
        with self._transaction():
            self.db.execute("DELETE FROM trials WHERE experiment = 0")
            self.db.execute("DELETE FROM experiments WHERE number = 0")

    def proposed(self, number: int, proposal: Proposal, files: Mapping[str, str]) -> None:
        with self._transaction():
            self._advance(number, "proposed", proposal=proposal.model_dump_json(), files=json.dumps(dict(files)))

    def committed(self, number: int, commit: str) -> None:
        with self._transaction():
            self._advance(number, "committed", commit_sha=commit)

    def running(self, trial: Trial) -> None:
        """A trial is about to start. A published experiment (a rerun of the incumbent) stays published."""
        self.told.pop(trial.experiment, None)
        with self._transaction():
            if self._state(trial.experiment) != "published":
                self._advance(trial.experiment, "running")
            self.db.execute(
                "INSERT OR REPLACE INTO trials VALUES (?, ?, ?, ?, NULL)",
                (trial.experiment, trial.number, trial.commit, trial.seed),
            )

    def measured(self, trial: Trial, measurement: Measurement) -> None:
        self.told.pop(trial.experiment, None)
        with self._transaction():
            if self._state(trial.experiment) != "published":
                self._advance(trial.experiment, "measured")
            self.db.execute(
                "UPDATE trials SET measurement = ? WHERE experiment = ? AND number = ?",
                (measurement.model_dump_json(), trial.experiment, trial.number),
            )

    def judged(self, number: int, verdict: Verdict) -> None:
        with self._transaction():
            self._advance(number, "judged", verdict=verdict.model_dump_json())

    def tested(self, number: int, numbers: Mapping[str, float]) -> None:
        """Held-out figures of a kept commit; {} where they could not be had."""
        self.told.pop(number, None)
        self.db.execute("UPDATE experiments SET test_numbers = ? WHERE number = ?", (json.dumps(dict(numbers)), number))

    def published(self, number: int, commit: str | None) -> None:
        self.told.pop(number, None)
        with self._transaction():
            self._advance(number, "published", commit_sha=commit)

    # Reading.

    def experiment(self, number: int) -> Experiment:
        if number not in self.told:
            experiment = self._read(number)
            if experiment.state != "published":
                return experiment
            self.told[number] = experiment
        return self.told[number]

    def experiments(self) -> tuple[Experiment, ...]:
        rows = self.db.execute("SELECT number FROM experiments ORDER BY number").fetchall()
        return tuple(self.experiment(number) for (number,) in rows)

    def _read(self, number: int) -> Experiment:
        row = self.db.execute(
            "SELECT state, parent, commit_sha, proposal, files, verdict, test_numbers, created "
            "FROM experiments WHERE number = ?",
            (number,),
        ).fetchone()
        if row is None:
            raise LedgerError(f"there is no experiment {number}")
        state, parent, commit, proposal, files, verdict, test, created = row
        return Experiment(
            number=number,
            state=state,
            parent=parent,
            commit=commit,
            proposal=Proposal.model_validate_json(proposal) if proposal else None,
            files=json.loads(files),
            verdict=Verdict.model_validate_json(verdict) if verdict else None,
            trials=self._trials(number),
            calls=self._calls(number),
            test_numbers=json.loads(test) if test else None,
            created=created,
        )

    def _trials(self, number: int) -> tuple[Trial, ...]:
        rows = self.db.execute(
            "SELECT number, commit_sha, seed, measurement FROM trials WHERE experiment = ? ORDER BY number",
            (number,),
        )
        return tuple(
            Trial(
                experiment=number,
                number=trial,
                commit=commit,
                seed=seed,
                measurement=Measurement.model_validate_json(measurement) if measurement else None,
            )
            for trial, commit, seed, measurement in rows.fetchall()
        )

    def _calls(self, number: int) -> tuple[Call, ...]:
        rows = self.db.execute(
            "SELECT turn, kind, question, reserved_usd, reply FROM calls WHERE experiment = ? ORDER BY turn",
            (number,),
        )
        return tuple(
            Call(
                turn=turn,
                kind=kind,
                question=question,
                reserved_usd=reserved,
                reply=Reply.model_validate_json(reply) if reply else None,
            )
            for turn, kind, question, reserved, reply in rows.fetchall()
        )

    # The rules.

    def _state(self, number: int) -> State:
        row = self.db.execute("SELECT state FROM experiments WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise LedgerError(f"there is no experiment {number}")
        return row[0]

    def _advance(self, number: int, to: State, **columns: str | None) -> None:
        state = self._state(number)
        if to != state and to not in NEXT[state]:
            raise LedgerError(f"experiment {number} can't go from {state} to {to}")
        assignments = "".join(f", {column} = ?" for column in columns)
        self.db.execute(
            f"UPDATE experiments SET state = ?{assignments} WHERE number = ?", (to, *columns.values(), number)
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")
