"""A person steers a night that runs, from another terminal: real loops, real commands, kill -9 just after them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, git, make_repository
from server import ModelServer
from test_cli import agent
from test_ledger import STARTED, begun
from test_loop import PROGRAM, TRAIN, block, command, environment, kinds, night, results, wait_for, write_replies
from test_policy import ONE, TWO, after, measured, proposed, replied, train, won

from agent import events as ev
from agent.cli import app
from agent.errors import Failure
from agent.ledger import Ledger
from agent.limits import told
from agent.policy import Ask, End, Judge, Publish, Rebase, Refuse, Resume, Train, deadline, next_action
from agent.records import Stoppers, Verdict
from bench.stop import journal

NOISY = """\
import os, random
SCALE = 0.01
for step in range(3):
    print(f"step {step} loss {SCALE} {step * 33}%", flush=True)
print("loss:", 1 + SCALE * (50 + random.Random(os.environ["RESEARCH_SEED"]).gauss(0, 1)))
"""


@contextmanager
def loop(project: Path, *flags: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(command(project, *flags), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def steer(capsys: pytest.CaptureFixture[str]):
    """A command, in this process; of one that is refused the error."""

    def call(project: Path, *arguments: str, refused: bool = False) -> str:
        try:
            app([*arguments, "--repo", str(project)], standalone_mode=False)
            assert not refused, "it should have been refused"
        except Failure as failure:
            assert refused, failure
            return str(failure)
        return capsys.readouterr().out

    return call


def verdicts(project: Path) -> list[str]:
    """Of the experiments, by number; "" of those that are not over."""
    state = Ledger(project / ".research" / "night", readonly=True).night()
    return [e.verdict.kind if e.verdict else "" for _, e in sorted(state.experiments.items())]


def shown_at(remote: Path) -> str:
    branch = git(remote, "for-each-ref", "refs/heads/research/night")
    return git(remote, "show", "research/night:train.py") if branch else ""


def events(project: Path) -> list[ev.Event]:
    return journal(project / ".research" / "night")


def test_every_request_survives_a_kill_before_and_after_it_is_recorded(tmp_path: Path, steer):
    """One night of three processes: requests that the first never read, that the second has read, and the third."""
    project = make_repository(tmp_path / "project", {"train.py": TRAIN, "prepare.py": "#", "program.md": PROGRAM})
    replies = [
        block("RATE = 0.5", "RATE = 0.3"), block("WIDTH = 8", "WIDTH = 16"), block("PAUSE = 0.0", "PAUSE = 1000.0"),
        block("RATE = 0.5", "RATE = 0.2"), block("WIDTH = 16", "WIDTH = 17"),
    ]  # fmt: skip
    remote = tmp_path / "remote"
    git(tmp_path, "init", "--quiet", "--bare", str(remote))
    for said, expected in (
        (("pause",), "there is no night here yet"),
        (("limits", "--usd", "20"), "there is no night here yet"),
    ):
        assert expected in steer(project, *said, refused=True)
    with ModelServer(replies) as server:
        flags = ("--proposer", "openai", "--base-url", server.url + "/v1", "--push", str(remote), "--no-lookahead")
        with loop(project, *flags, "--experiments", "40") as process:
            pushed = lambda: "WIDTH = 16" in shown_at(remote)  # noqa: E731
            hangs = lambda: any(isinstance(e, ev.TrialBegun) and e.experiment == 3 for e in events(project))  # noqa: E731
            wait_for(lambda: hangs() and pushed(), process, "third experiment")
            mistakes_are_one_line_each(project, steer)
            process.send_signal(signal.SIGSTOP)  # it reads nothing any more
            assert "paused until `python -m agent resume`" in steer(project, "pause")
            assert "#3 is skipped: its trial ends now" in steer(project, "skip")
            assert "already" in steer(project, "skip", "3", refused=True)
            assert "put to the proposer with its next" in steer(project, "suggest", "a rate of", "<b>0.2</b>")
            assert "5 experiments (3 were begun)" in steer(project, "limits", "--experiments", "5")
            vetoed = steer(project, "veto", "1")
            assert "the incumbent is #0, and #4 is #2 again without it" in vetoed and len(vetoed.splitlines()) == 1
        asked = len(server.requests)
        with loop(project, *flags, "--experiments", "40") as process:
            spool = project / ".research" / "night" / "requests"
            over = lambda: any(isinstance(e, ev.Rebased) and e.experiment == 4 for e in events(project))  # noqa: E731
            wait_for(lambda: over() and not list(spool.glob("*.json")), process, "the requests")
            assert "paused by a person until `python -m agent resume`" in steer(project, "status")
        assert git(project, "rev-parse", "research/night") == git(project, "rev-parse", "main"), "back at the baseline"
        assert verdicts(project)[:4] == ["baseline", "vetoed", "discard", "skipped"] and len(server.requests) == asked
        later = "so this holds from its next start on (python -m agent.loop --tag night): going on"
        assert later in steer(project, "resume")
        said = night(project, *flags, "--experiments", "40")
    assert "put onto #0" not in said and "5 experiments are done, as asked" in said
    assert kinds(project) == ["baseline", "vetoed", "discard", "skipped", "keep", "keep"]
    assert "a rate of <b>0.2</b>" in server.prompts[-1] and "do this now" in server.prompts[-1]
    assert all("a rate of" not in prompt for prompt in server.prompts[:-1]) and len(server.requests) == 4
    assert "3 skipped" in server.prompts[-1] and "1 vetoed" in server.prompts[-1]
    assert git(remote, "rev-parse", "research/night") == git(project, "rev-parse", "research/night")
    final = git(project, "show", "research/night:train.py")
    assert "WIDTH = 16" in final and "RATE = 0.2" in final
    log = git(project, "log", "--format=%B", "main..research/night")
    assert "holds without #1 too" in log and "Suggested: a rate of <b>0.2</b>" in log and "RATE = 0.3" not in log
    requested = [e for e in events(project) if isinstance(e, ev.Requested)]
    assert sorted(e.what for e in requested) == ["limits", "pause", "resume", "skip", "suggest", "veto"]
    shown = steer(project, "status")
    assert "vetoed" in shown and "by you: #5 (keep)" in shown
    assert "not on the branch (vetoed)" in steer(project, "veto", "1", refused=True)
    assert "there is nothing to pause" in steer(project, "pause", refused=True)


def mistakes_are_one_line_each(project: Path, steer) -> None:
    """While experiment 3 trains."""
    for arguments, says in (
        (("veto", "99"), "there is no experiment 99"),
        (("veto", "0"), "experiment 0 is the unchanged program"),
        (("accept", "1"), "experiment 1 is not held for review (keep)"),
        (("skip", "1"), "experiment 1 is over already (keep)"),
        (("resume",), "nobody has paused night"),
        (("pause", "--until", "25:00"), "--until 25:00 is no time"),
        (("pause", "--until", "2020-01-01 07:00"), "is over: it is"),
        (("suggest", " "), "the suggestion is empty"),
        (("suggest", "\udcff"), "the suggestion is no text in UTF-8"),
        (("limits", "--usd", "much"), "--usd much is no limit"),
    ):
        said = steer(project, *arguments, refused=True)
        assert says in said and len(said.splitlines()) == 1, said
    assert "error: veto: there is no experiment 99" in agent("veto", "99", "--repo", str(project), expect=2)
    assert "40 experiments (3 were begun)" in steer(project, "limits")


def test_what_shows_a_sign_of_cheating_is_held_and_accepting_it_puts_it_on_the_branch(tmp_path: Path, steer):
    project = make_repository(tmp_path / "project", {"train.py": NOISY, "prepare.py": "#", "program.md": PROGRAM})
    flags = ("--replay", str(write_replies(tmp_path / "replies", block("SCALE = 0.01", "SCALE = 0.0"))))
    said = night(project, *flags, "--experiments", "1")
    assert kinds(project) == ["baseline", "held"] and "same value with" in results(project)[1]["reason"]
    assert "`python -m agent accept 1` lets it be kept" in " ".join(said.split())
    assert git(project, "rev-parse", "research/night") == git(project, "rev-parse", "main")
    assert "has no language" not in steer(project, "suggest", "anything"), "another proposer may read it"
    assert "#1 is accepted" in steer(project, "accept", "1")
    said = night(project, *flags)
    assert kinds(project) == ["baseline", "keep"], said
    assert "1 suggestion not put to the proposer yet: replay" in " ".join(said.split())
    assert "SCALE = 0.0\n" in git(project, "show", "research/night:train.py")


# The rules by themselves.


def requested(what: str, at: float = 10.0, **said: object) -> ev.Requested:
    return ev.Requested(at=at, id=f"{what} {said}", what=what, **said)  # type: ignore[arg-type]


def keep(number: int, parent: str = "c") -> list[ev.Event]:
    """From the question to a kept commit."""
    first, *rest = proposed(number, number - 1)
    trial = [train(number), measured(number, 0), won(number, 0.1)]
    return [
        first.model_copy(update={"parent": parent}),
        *rest,
        *trial,
        ev.Published(experiment=number, commit=f"k{number}"),
    ]


def test_a_pause_lets_what_runs_end_begins_nothing_and_ends_at_its_time():
    paused = begun(*proposed(1, 0), train(1), requested("pause", until=100.0))
    assert next_action(paused, TWO) is None and deadline(paused) == 100.0
    ended = after(paused, measured(1, 0))
    assert next_action(ended, TWO) == Judge(1)
    ended = after(ended, ev.RerunWanted(experiment=1, of="candidate", reason="r"))
    assert next_action(ended, TWO) is None
    assert next_action(after(ended, STARTED), TWO) is None, "another process goes on with the pause"
    over = after(ended, ev.Waited(at=100.0))
    assert next_action(over, TWO) == Resume()
    assert next_action(after(over, ev.Resumed(at=100.0)), TWO) == Train(1, 1, 0)
    assert next_action(after(ended, requested("finish", text="enough")), TWO) == End(
        "enough", 3, "the same command goes on from here"
    )


def test_a_skipped_experiment_ends_when_its_trial_does_and_is_no_outage():
    night = begun(*proposed(1, 0), train(1), requested("skip", experiment=1))
    assert next_action(night, ONE) is None
    night = after(night, ev.TrialCancelled(experiment=1, number=0, attempt=1))
    assert next_action(night, ONE) == Refuse(1, skipped=True)
    night = after(night, ev.Judged(experiment=1, verdict=Verdict(kind="skipped", reason="skipped by the person")))
    assert next_action(night, ONE) == Publish(1)
    night = after(night, ev.Published(experiment=1, commit="c1"))
    assert next_action(night, ONE) == Ask(2, "first") and not night.outages


def test_a_veto_falls_back_and_makes_an_experiment_of_what_was_kept_afterwards():
    night = begun(*keep(1), *keep(2, "k1"), *keep(3, "k2"))
    back = after(night, requested("veto", experiment=2))
    assert back.tip == "k1" and [e.parts for e in back.open] == [(3,)] and next_action(back, ONE) == Rebase(4)
    assert [back.experiments[n].verdict.kind for n in (1, 2, 3)] == ["keep", "vetoed", "discard"]  # type: ignore[union-attr]
    further = after(back, requested("veto", experiment=1))
    assert further.tip == "c" and further.open == back.open
    none = after(back, requested("veto", experiment=3))
    assert next_action(none, ONE) == Refuse(4, skipped=True), "what it was made of is vetoed too"
    assert after(night, requested("veto", experiment=3)).open == [], "nothing was kept after it"


def test_a_suggestion_goes_with_one_question_and_a_proposal_that_is_older_is_asked_for_again():
    night = begun(*proposed(1, 0)[:1], requested("suggest", idea="i"))
    assert night.suggestions == ("i",) and next_action(night, ONE) is None
    night = after(night, replied(0))
    assert (
        next_action(night, ONE) == Ask(1, "first") and "asked for again: its proposal ($0.0000)" in night.notes[-1][1]
    )
    night = after(night, proposed(1, 1)[0].model_copy(update={"suggestion": "i"}))
    assert night.suggestions == () and night.experiments[1].suggestion == "i"
    assert next_action(after(night, replied(1)), ONE) != Ask(1, "first")


def test_the_latest_limit_that_was_stated_holds_and_frees_what_it_has_stopped():
    night = begun(requested("limits", limits=Stoppers(usd=20.0, experiments=3)))
    assert night.stoppers == Stoppers(usd=20.0, experiments=3)
    night = after(night, STARTED.model_copy(update={"stoppers": Stoppers(hours=2.0, usd=5.0)}))
    assert night.stoppers == Stoppers(usd=5.0, experiments=3, hours=2.0) and len(told(night)) == 3
    changed = after(
        night, requested("limits", limits=Stoppers(usd=9.0)), STARTED.model_copy(update={"stoppers": night.flags})
    )
    assert changed.stoppers.usd == 9.0, "the same command goes on with what was changed meanwhile"
    night = after(night, ev.Blocked(reason="$5.00 of $5.00 is spent", limit=True))
    assert isinstance(next_action(night, ONE), End)
    assert next_action(after(night, requested("limits", lifted=("usd",))), ONE) == Ask(1, "first")


@pytest.mark.parametrize("what", ["skip", "veto", "accept"])
def test_a_request_that_comes_too_late_changes_nothing_and_says_so(what: str):
    night = begun(*keep(1))
    for number in (None, 0, 7) if what == "veto" else (None, 0, 1, 7):
        told = after(night, requested(what, experiment=number))
        assert told.notes[-1][1].startswith(f"{what}: ") and told.kept == night.kept and told.open == []
