"""Nights of version 0.1, whose ledger had tables in place of a journal: they are read for reports, not continued."""

from __future__ import annotations

import json
from pathlib import Path

from agent.ledger import connect
from agent.program import Program
from agent.records import Call, Experiment, Measurement, Proposal, Reply, Trial, Verdict


def old_night(home: Path) -> tuple[list[Experiment], Program, list[str]]:
    """Its experiments, its contract and its notes."""
    db = connect(home / "ledger.db", readonly=True)
    try:
        (program,) = db.execute("SELECT value FROM night WHERE key = 'program'").fetchone()
        notes = [text for (text,) in db.execute("SELECT text FROM notes ORDER BY time")]
        columns = "number, parent, commit_sha, proposal, files, verdict, test_numbers, created"
        rows = db.execute(f"SELECT {columns} FROM experiments ORDER BY number").fetchall()
        trials = db.execute("SELECT experiment, number, commit_sha, seed, measurement FROM trials ORDER BY 1, 2")
        by_experiment: dict[int, list[Trial]] = {}
        for experiment, number, commit, seed, text in trials:
            measurement = Measurement.model_validate_json(text) if text else None
            known = {"experiment": experiment, "number": number, "commit": commit, "seed": seed}
            by_experiment.setdefault(experiment, []).append(Trial(**known, measurement=measurement))
        calls: dict[int, list[Call]] = {}
        found = db.execute("SELECT experiment, turn, kind, question, reserved_usd, reply FROM calls ORDER BY 1, 2")
        for experiment, turn, kind, question, usd, text in found:
            reply = Reply.model_validate_json(text) if text else None
            calls.setdefault(experiment, []).append(
                Call(turn=turn, kind=kind, question=question, reserved_usd=usd, reply=reply)
            )
    finally:
        db.close()
    experiments = [
        Experiment(
            number=number,
            state="published" if verdict else "ask",
            parent=parent,
            commit=commit,
            proposal=Proposal.model_validate_json(proposal) if proposal else None,
            files=json.loads(files),
            verdict=Verdict.model_validate_json(verdict) if verdict else None,
            trials=tuple(by_experiment.get(number, ())),
            calls=tuple(calls.get(number, ())),
            test_numbers=json.loads(test) if test else None,
            created=created,
        )
        for number, parent, commit, proposal, files, verdict, test, created in rows
    ]
    return experiments, Program.model_validate_json(program), notes
