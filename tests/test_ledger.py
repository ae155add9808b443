"""The ledger: an append-only journal, durable and whole, one writer, and nights of every version read."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import events as ev
from agent.errors import Failure
from agent.ledger import VERSION, Ledger, decode, encode
from agent.night import Night, OutOfOrder
from agent.records import Measurement, Reply, Stoppers, Verdict

RULES = ev.Rules(metric="loss", minimize=True, target=None, seeds=1, tests=False, trial_seconds=100.0)
STARTED = ev.Started(
    at=1.0, program="p", rules=RULES, stoppers=Stoppers(usd=1.0), device="cpu", sandbox="none", proposer="replay"
)


def asked(call: int, usd: float | None = 0.5, kind: str = "first") -> ev.Asked:
    known = {"experiment": 1, "call": call, "kind": kind, "parent": "c", "system": "s", "question": "q"}
    return ev.Asked(**known, reserved_usd=usd)  # type: ignore[arg-type]


def begun(*events: ev.Event) -> Night:
    """A night with a baseline, and these events after it."""
    night = Night()
    start = [
        STARTED,
        ev.BaselineBegun(commit="c", files="f", fingerprint="m"),
        ev.TrialBegun(experiment=0, number=0, attempt=1, commit="c", seed=1, slot=0),
        ev.Measured(experiment=0, number=0, attempt=1, measurement=Measurement(outcome="ok", metric=1.0)),
        ev.Judged(experiment=0, verdict=Verdict(kind="baseline", reason="r", metric=1.0)),
        ev.Published(experiment=0, commit="c"),
    ]
    for event in (*start, *events):
        night = night.after(event)
    return night


def test_what_is_appended_is_read_back_with_its_texts(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append(STARTED)
    text = "prompt \ud800 with \x00 anything in it\n" * 100
    key = ledger.put(text)
    ledger.append(ev.Noted(at=2.0, text=key))
    ledger.close()
    again = Ledger(tmp_path, readonly=True)
    assert [event for _, event in again.events()] == [STARTED, ev.Noted(at=2.0, text=key)]
    assert again.text(key) == text
    assert [number for number, _ in again.events(after=1)] == [2]
    assert again.night().sandbox == "none"


def test_a_kill_between_two_events_leaves_each_event_whole_with_its_texts(tmp_path: Path):
    """A writer is killed with SIGKILL while it appends as fast as it can."""
    code = (
        "import sys; from pathlib import Path; from agent import events as ev; from agent.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "for n in range(10**6):\n"
        "    ledger.append(ev.Noted(at=float(n), text=ledger.put(f'text {n}' * 500)))\n"
        "    print(n, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    said = 0
    while said < 50:
        said = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    rest = writer.stdout.read().split("\n")
    said = max([said, *(int(line) for line in rest[:-1])])
    writer.wait()
    ledger = Ledger(tmp_path)
    events = [event for _, event in ledger.events()]
    assert len(events) in (said + 1, said + 2)  # nothing that was told is lost
    for n, event in enumerate(events):
        assert isinstance(event, ev.Noted) and event.at == n and ledger.text(event.text) == f"text {n}" * 500


def test_a_second_loop_is_refused_and_a_reader_is_not(tmp_path: Path):
    ledger = Ledger(tmp_path / "night")
    ledger.append(STARTED)
    code = (
        "import sys; from pathlib import Path; from agent.ledger import Ledger; from agent.errors import Failure\n"
        "home = Path(sys.argv[1]); print(len(list(Ledger(home, readonly=True).events())))\n"
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
    (tmp_path / "ledger.db").touch()  # as a machine that lost its power may leave one
    with pytest.raises(Failure, match="ledger.db is empty: `python -m agent.loop --tag .*` puts its copy back"):
        Ledger(tmp_path, readonly=True)


def test_a_night_of_version_0_1_is_not_continued(tmp_path: Path):
    db = sqlite3.connect(tmp_path / "ledger.db")
    db.execute("CREATE TABLE experiments (number INTEGER)")
    db.commit()
    with pytest.raises(Failure, match="was made by version 0.1: `report` shows it"):
        Ledger(tmp_path)


def test_a_night_of_a_newer_version_says_so():
    with pytest.raises(Failure, match="newer version"):
        decode(VERSION + 1, "Waited", "{}")


def test_every_version_of_the_journal_is_read():
    """tests/journals/<version>.jsonl: a night as that version wrote it. A new version adds a file, and changes none."""
    fixtures = sorted((Path(__file__).parent / "journals").glob("*.jsonl"))
    assert [int(path.stem) for path in fixtures] == list(range(1, VERSION + 1))
    for path in fixtures:
        night = Night()
        for line in path.read_text().splitlines():
            kind, _, text = line.partition(" ")
            night = night.after(decode(int(path.stem), kind, text))
        assert night.ended is not None and night.ended.code == 0
        assert [night.experiments[n].verdict.kind for n in night.order] == [  # type: ignore[union-attr]
            "baseline", "keep", "discard", "crash", "crash", "timeout", "keep",
        ]  # fmt: skip


def test_an_event_stays_small_whatever_it_is_told():
    long = "\u20ac" * 5000
    events = (
        ev.Noted(text=long),
        ev.CallFailed(experiment=1, call=0, reason=long),
        ev.MachineFault(experiment=1, number=0, attempt=1, reason=long),
        ev.Steered(text="t", refused=long),
        ev.Ended(reason=long, code=3),
    )
    assert all(len(encode(event)) <= 1000 for event in events)


# Money, as the state adds it up.


def test_a_call_counts_at_its_reserve_until_it_is_known_to_have_failed_or_what_it_cost():
    night = begun(asked(0))
    assert night.spent == 0.5
    assert night.after(ev.CallFailed(experiment=1, call=0, reason="HTTP 503")).spent == 0.0
    assert night.after(ev.Replied(experiment=1, call=0, reply=Reply(text="t", proposer="p", usd=0.1))).spent == 0.1


def test_a_call_that_a_crash_cut_off_counts_at_its_reserve_for_ever():
    night = begun(asked(0), STARTED, asked(1))
    assert night.spent == 1.0
    night = night.after(ev.Replied(experiment=1, call=1, reply=Reply(text="t", proposer="p", usd=0.1)))
    assert night.spent == pytest.approx(0.6)


def test_an_unknown_price_stays_unknown():
    night = begun(asked(0, usd=None))
    assert night.spent is None
    night = night.after(ev.Replied(experiment=1, call=0, reply=Reply(text="t", proposer="p", usd=None)))
    assert night.spent is None


def test_a_reply_is_not_taken_twice():
    replied = ev.Replied(experiment=1, call=0, reply=Reply(text="t", proposer="p"))
    night = begun(asked(0), replied)
    assert not night.awaits(replied)
    with pytest.raises(OutOfOrder):
        night.after(replied)


EVENTS = [
    STARTED,
    ev.BaselineBegun(commit="c", files="f", fingerprint="m"),
    ev.BaselineFailed(reason="r"),
    asked(0),
    asked(1, kind="repair"),
    ev.Replied(experiment=1, call=0, reply=Reply(text="", proposer="p", usd=0.1)),
    ev.CallFailed(experiment=1, call=0, reason="r"),
    ev.ReplyRefused(experiment=1, error="e"),
    ev.Proposed(experiment=1, proposal="p", category="other", files="f", fingerprint="n"),
    ev.Committed(experiment=1, commit="d"),
    *(ev.TrialBegun(experiment=n, number=0, attempt=a, commit="c", seed=1, slot=n) for n in (0, 1) for a in (1, 2)),
    *(
        ev.Measured(experiment=n, number=0, attempt=a, measurement=Measurement(outcome="ok", metric=1.0))
        for n in (0, 1)
        for a in (1, 2)
    ),
    ev.TrialFailed(experiment=1, number=0, attempt=1, reason="r"),
    ev.MachineFault(experiment=1, number=0, attempt=1, reason="r"),
    ev.TrialCancelled(experiment=1, number=0, attempt=1),
    ev.RerunWanted(experiment=1, of="incumbent", reason="r"),
    ev.SentBack(experiment=1),
    ev.Overtaken(experiment=1, by=2),
    ev.Judged(experiment=0, verdict=Verdict(kind="baseline", reason="r", metric=1.0)),
    ev.Judged(experiment=1, verdict=Verdict(kind="keep", reason="r", metric=1.0)),
    ev.Published(experiment=0, commit="c"),
    ev.Published(experiment=1, commit="d"),
    ev.Requested(id="one", what="stop"),
    ev.Ended(reason="r", code=3),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_any_order_of_events_is_folded_or_refused_and_the_sum_holds(events: list[ev.Event]):
    """What is refused changes nothing; what is taken keeps its trials, its verdicts and its spend."""
    night = Night()
    for event in events:
        before = night
        try:
            night = night.after(decode(VERSION, type(event).__name__, encode(event)))
        except (OutOfOrder, KeyError, IndexError):
            continue
        for number, e in before.experiments.items():
            after = night.experiments.get(number)
            if after is None:  # a baseline that did not run begins anew
                assert number == 0 and not before.measured
                continue
            if e.state == "published":
                assert after.verdict == e.verdict and after.published == e.published
            measured = [t.measurement for t in e.trials if t.measurement]
            assert [t.measurement for t in after.trials if t.measurement][: len(measured)] == measured
        charges = [call.charge for e in night.experiments.values() for call in e.calls]
        assert night.spent == pytest.approx(sum(c or 0.0 for c in charges))
        assert len(set(night.order)) == len(night.order)
        assert not night.tip or night.experiments[night.kept[night.tip]].kept
