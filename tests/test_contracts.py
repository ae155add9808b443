"""What the loop stands on keeps the same promises in the simulated world as in the real one: each test here runs on
both, so that a night that is simulated is a night as it would be."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import git, make_repository

from agent import events as ev
from agent.caller import ThreadCaller
from agent.errors import EditError
from agent.inbox import RealClock, SpoolInbox, send
from agent.ledger import Ledger
from agent.program import Program
from agent.propose.replay import ReplayProposer
from agent.protocols import Caller, Executor, Inbox, Job, Journal, Repository, Request
from agent.records import Turn
from agent.run.local import LocalExecutor
from agent.run.sandbox import Unsandboxed
from agent.workspace import Workspace
from bench.simulate import PROGRAM, Watch
from bench.workers import SimCaller, SimExecutor
from bench.world import Faults, Process, SimJournal, SimRepository, World

FILE = "train.py"
TEXT = "A = 0.5\n\nB = 0.5\n\nC = 0.5\n\nD = 0.5\n\nE = 0.5\n\n"
KEY = {"experiment": 0, "number": 0, "attempt": 1}


@dataclass
class Setting:
    """One implementation of everything, and how a second process opens it again."""

    journal: Callable[[], Journal]
    repository: Repository
    executor: Executor
    caller: Caller
    inbox: Inbox
    program: Program
    base: str
    request: Callable[[], None]
    move_branch: Callable[[], str]
    branch: Callable[[], str]
    until: float
    """Long enough for any result, by the inbox's clock."""


def simulated(tmp_path: Path) -> Setting:
    world = World(random.Random(1), Faults(), Program.model_validate({**PROGRAM, "test": "score"}))
    world.inspector = watch = Watch(world)
    watch.submitted = watch.called = watch.advanced = lambda what: None  # type: ignore[method-assign]
    watch.delivered = lambda events: None  # type: ignore[method-assign]
    process = Process(world)

    def request() -> None:
        world.spool["r"] = ev.Requested(id="r", what="stop")

    def move() -> str:
        world.commits["theirs"] = world.commits["base"]
        world.refs["branch"] = "theirs"
        return "theirs"

    return Setting(
        journal=lambda: SimJournal(world), repository=SimRepository(world), executor=SimExecutor(world, process, 2),
        caller=SimCaller(world, process), inbox=process, program=world.program, base="base", request=request,
        move_branch=move, branch=lambda: world.refs.get("branch", ""), until=process.now() + 1e5,
    )  # fmt: skip


def real(tmp_path: Path) -> Setting:
    train = TEXT + "print('step 0 loss 1.0 0%', flush=True)\nimport os, time\n"
    train += "time.sleep(float(os.environ.get('NAP', 0)))\n"
    train += "open(os.environ['RESEARCH_OUTPUT'] + '/model', 'w').write('1')\nprint('loss:', A + B)\n"
    score = "import os\nprint('test_loss:', open(os.environ['RESEARCH_OUTPUT'] + '/model').read())\n"
    root = make_repository(tmp_path / "repository", {FILE: train, "score.py": score})
    workspace = Workspace(root, "night")
    workspace.prepare_home()
    program = Program.model_validate(
        {**PROGRAM, "run": "python train.py", "test": "python score.py", "protect": "score.py", "environment": ["NAP"]}
    )
    clock, ledgers = RealClock(), []
    inbox = SpoolInbox(workspace.home, clock)
    (tmp_path / "replies").mkdir()
    (tmp_path / "replies" / "0.txt").write_text("a reply")

    def journal() -> Ledger:
        for ledger in ledgers:
            ledger.close()
        ledgers.append(Ledger(workspace.home))
        return ledgers[-1]

    def move() -> str:
        theirs = git(root, "commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "mine")
        git(root, "update-ref", "refs/heads/research/night", theirs)
        return theirs

    return Setting(
        journal=journal, repository=workspace,
        executor=LocalExecutor(workspace.home, workspace.export, Unsandboxed(), "cpu", 2, root=root),
        caller=ThreadCaller(ReplayProposer(tmp_path / "replies")), inbox=inbox, program=program, base=workspace.head,
        request=lambda: None if send(workspace.home, "stop") else None, move_branch=move,
        branch=lambda: git(root, "for-each-ref", "--format=%(objectname)", "refs/heads/research/night"),
        until=clock.now() + 120,
    )  # fmt: skip


@pytest.fixture(params=[simulated, real])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setting]:
    setting = request.param(tmp_path)
    yield setting
    setting.executor.close()


def test_texts_are_durable_with_the_next_event_and_not_before(world: Setting):
    journal = world.journal()
    kept = journal.put("kept")
    journal.append(ev.Noted(at=1.0, text=kept))
    lost = journal.put("lost")
    assert (journal.text(kept), journal.text(lost)) == ("kept", "lost")
    again = world.journal()
    assert again.text(kept) == "kept" and list(again.events()) == [(1, ev.Noted(at=1.0, text=kept))]
    with pytest.raises(Exception):  # noqa: B017
        again.text(lost)
    again.append(ev.Waited(at=2.0))
    assert list(again.events(after=1)) == [(2, ev.Waited(at=2.0))]


def test_commits_are_made_again_as_they_were(world: Setting):
    repository = world.repository
    before = repository.read(world.base, [FILE])[FILE]
    after = before.replace("A = 0.5", "A = 0.25")
    commit = repository.commit_files(world.base, {FILE: after}, "message", 1e9)
    assert repository.commit_files(world.base, {FILE: after}, "message", 1e9) == commit
    assert repository.read(commit, [FILE]) == {FILE: after}
    final = repository.commit_tree(commit, world.base, "final", 1e9)
    assert final != commit and repository.read(final, [FILE]) == {FILE: after}
    with pytest.raises(EditError):
        repository.commit_files(world.base, {"nowhere.py": ""}, "message", 1e9)


def test_refs_are_set_again_without_a_change(world: Setting):
    repository = world.repository
    commit = repository.commit_files(world.base, {FILE: "A = 1\n"}, "message", 1e9)
    for _ in range(2):
        repository.pin(3, commit, ())
        assert repository.advance(commit, [world.base]) == ""
    assert repository.pins() == {3: commit} and world.branch() == commit


def test_a_tip_that_somebody_else_made_stays_and_is_told_once(world: Setting):
    repository = world.repository
    commit = repository.commit_files(world.base, {FILE: "A = 1\n"}, "message", 1e9)
    theirs = world.move_branch()
    assert theirs[:12] in repository.advance(commit, [world.base])
    assert world.branch() == theirs
    later = repository.commit_files(commit, {FILE: "A = 2\n"}, "message", 1e9)
    assert repository.advance(later, [world.base, commit]) == ""
    assert world.branch() == theirs


@pytest.mark.parametrize(
    ("ours", "theirs", "merged"),
    [
        ((1, "A = 1"), (3, "B = 2"), True),
        ((1, "A = 1"), (1, "A = 1"), True),
        ((1, "A = 1"), (1, "A = 2"), False),
        ((1, "A = 1"), (2, "x = 2"), False),
    ],
)
def test_changes_of_one_text_are_merged_or_conflict(world: Setting, ours, theirs, merged: bool):
    def changed(line: int, text: str) -> list[str]:
        lines = TEXT.split("\n")
        lines[line - 1] = text
        return lines

    result = world.repository.merge("\n".join(changed(*ours)), TEXT, "\n".join(changed(*theirs)))
    if not merged:
        assert result is None
        return
    lines = changed(*ours)
    lines[theirs[0] - 1] = theirs[1]
    assert result == "\n".join(lines)


def job(world: Setting, what="train", slot: int = 0, number: int = 0) -> Job:
    return Job(what=what, **KEY | {"number": number}, commit=world.base, seed=1, slot=slot, program=world.program)


def test_a_trial_ends_in_one_measurement_and_what_it_saved_can_be_tested(world: Setting):
    world.executor.submit(job(world), world.inbox.put)
    (event,) = world.inbox.wait(world.until)
    assert isinstance(event, ev.Measured) and event.measurement.outcome == "ok", event
    assert (event.experiment, event.number, event.attempt) == (0, 0, 1)
    world.executor.submit(job(world, "test"), world.inbox.put)
    (event,) = world.inbox.wait(world.until)
    assert isinstance(event, ev.Tested) and "test_loss" in event.figures
    world.executor.forget(0, 0)
    world.executor.submit(job(world, "test"), world.inbox.put)
    (event,) = world.inbox.wait(world.until)
    assert isinstance(event, ev.Tested) and event.reason and not event.figures


def test_a_cancelled_trial_says_so_and_the_one_beside_it_is_measured(world: Setting, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NAP", "2")
    for slot in (0, 1):
        world.executor.submit(job(world, slot=slot, number=slot), world.inbox.put)
    world.executor.cancel(0, 0, "no more")
    events: list[ev.Event] = []
    while len(events) < 2:
        events += world.inbox.wait(world.until)
    ended = {event.number: type(event) for event in events}  # type: ignore[attr-defined]
    assert ended == {0: ev.TrialCancelled, 1: ev.Measured}


def test_a_call_ends_in_one_reply(world: Setting):
    turns = (Turn(role="user", text="?"),)
    files = {FILE: TEXT}
    request = Request(number=1, system="", turns=turns, program=world.program, files=files, history=(), replies=0)
    known = {"experiment": 1, "call": 7, "kind": "first", "parent": world.base, "system": "s", "question": "q"}
    world.caller.call(ev.Asked(**known, reserved_usd=0.1), request, world.inbox.put)  # type: ignore[arg-type]
    (event,) = world.inbox.wait(world.until)
    assert isinstance(event, ev.Replied) and (event.experiment, event.call) == (1, 7) and event.reply.text


def test_a_request_is_told_until_it_is_done(world: Setting):
    assert world.inbox.take() == []
    world.request()
    (told,) = world.inbox.take()
    assert isinstance(told, ev.Requested) and told.what == "stop"
    assert world.inbox.wait(world.until) == [told]
    world.inbox.done(told)
    assert world.inbox.take() == []
