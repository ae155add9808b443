"""The ledger: steps in order, each one repeatable, everything durable, one writer."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.errors import Failure
from agent.ledger import NEXT, Ledger, LedgerError
from agent.records import Call, Edit, Measurement, Proposal, Reply, Trial, Verdict

PROPOSAL = Proposal(hypothesis="h", category="other", edits=(Edit(path="a.py", search="x", replace="y"),))


def trial(experiment: int, number: int = 0) -> Trial:
    return Trial(experiment=experiment, number=number, commit="c" * 40, seed=1)


class Night(RuleBasedStateMachine):
    """Any order of steps: those the rules allow are recorded, the others are refused, and nothing is lost
    when the process dies at any point and opens the ledger again."""

    @initialize()
    def open(self) -> None:
        self.home = Path(tempfile.mkdtemp())
        self.ledger = Ledger(self.home)
        self.states: dict[int, str] = {}
        self.replies: dict[int, list[str]] = {}

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.home)

    @rule()
    def begin(self) -> None:
        experiment = self.ledger.begin("p" * 40, {})
        assert experiment.number == len(self.states)
        self.states[experiment.number] = "proposing" if experiment.number else "committed"

    @precondition(lambda self: self.states)
    @rule(
        data=st.data(),
        step=st.sampled_from(["ask", "proposed", "committed", "running", "measured", "judged", "published"]),
    )
    def step(self, data: st.DataObject, step: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.states)))
        target = "proposing" if step == "ask" else step
        allowed = target == self.states[number] or target in NEXT[self.states[number]]  # type: ignore[index]
        if step in ("running", "measured") and self.states[number] == "published":
            allowed, target = True, "published"  # a rerun of the incumbent
        try:
            self._do(step, number)
            assert allowed
            self.states[number] = target
        except LedgerError:
            assert not allowed

    def _do(self, step: str, number: int) -> None:
        ledger = self.ledger
        if step == "ask":
            turn = len(self.replies.get(number, []))
            ledger.ask(number, Call(turn=turn, kind="first", question="q", reserved_usd=0.1))
            ledger.replied(number, turn, Reply(text=f"reply {turn}", proposer="p", usd=0.05))
            self.replies.setdefault(number, []).append(f"reply {turn}")
        elif step == "proposed":
            ledger.proposed(number, PROPOSAL, {"a.py": "y"})
        elif step == "committed":
            ledger.committed(number, "c" * 40)
        elif step == "running":
            ledger.running(trial(number))
        elif step == "measured":
            ledger.measured(trial(number), Measurement(outcome="ok", metric=1.0))
        elif step == "judged":
            ledger.judged(number, Verdict(kind="keep", reason="r"))
        else:
            ledger.published(number, "k" * 40)

    @rule()
    def die_and_come_back(self) -> None:
        self.ledger.db.close()  # no goodbye to the lock's owner or the ledger
        self.ledger.lock.release(force=True)
        self.ledger = Ledger(self.home)

    @invariant()
    def nothing_is_lost(self) -> None:
        experiments = self.ledger.experiments()
        again = Ledger(self.home, readonly=True)
        assert again.experiments() == experiments  # what is remembered is what is written
        again.close()
        assert {e.number: e.state for e in experiments} == self.states
        for e in experiments:
            assert [c.reply.text for c in e.calls if c.reply] == self.replies.get(e.number, [])


TestNight = Night.TestCase
TestNight.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


def test_a_second_loop_is_refused_and_a_reader_is_not(tmp_path: Path):
    ledger = Ledger(tmp_path / "night")
    ledger.begin("p" * 40, {})
    code = (
        "import sys; from pathlib import Path; from agent.ledger import Ledger; from agent.errors import Failure\n"
        "home = Path(sys.argv[1]); print(len(Ledger(home, readonly=True).experiments()))\n"
        "try: Ledger(home)\n"
        "except Failure as failure: print(failure)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "night")], capture_output=True, text=True, check=True
    )
    count, refusal = ran.stdout.splitlines()
    assert count == "1"
    assert "already being worked on by another loop" in refusal


def test_no_night_to_read_says_how_to_start_one(tmp_path: Path):
    with pytest.raises(Failure, match="python -m agent.loop"):
        Ledger(tmp_path / "none", readonly=True)


def test_a_call_without_reply_counts_as_spent_until_it_is_known_to_have_failed(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.begin("p" * 40, {})
    number = ledger.begin("p" * 40, {}).number
    ledger.ask(number, Call(turn=0, kind="first", question="q", reserved_usd=0.5))
    assert ledger.experiment(number).usd == 0.5
    ledger.replied(number, 0, Reply(text="t", proposer="p", usd=0.1))
    assert ledger.experiment(number).usd == 0.1
    ledger.ask(number, Call(turn=1, kind="repair", question="q", reserved_usd=0.5))
    ledger.unanswered(number, 1)
    assert ledger.experiment(number).usd == 0.1


def test_an_unknown_price_stays_unknown(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.begin("p" * 40, {})
    number = ledger.begin("p" * 40, {}).number
    ledger.ask(number, Call(turn=0, kind="first", question="q", reserved_usd=None))
    ledger.replied(number, 0, Reply(text="t", proposer="p", usd=None))
    assert ledger.experiment(number).usd is None


def test_a_question_that_was_never_answered_can_be_taken_back(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.begin("p" * 40, {})
    number = ledger.begin("p" * 40, {}).number
    ledger.ask(number, Call(turn=0, kind="first", question="q", reserved_usd=0.1))
    ledger.abandon(number)
    assert [e.number for e in ledger.experiments()] == [0]
    number = ledger.begin("p" * 40, {}).number
    ledger.ask(number, Call(turn=0, kind="first", question="q", reserved_usd=0.1))
    ledger.replied(number, 0, Reply(text="paid", proposer="p"))
    ledger.abandon(number)
    assert [e.number for e in ledger.experiments()] == [0, number]  # a paid reply is kept
