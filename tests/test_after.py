"""After a night: one experiment shown, the kept commits as a clean branch, tables for other tools, nights compared."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import ROOT, git, make_repository
from test_cli import agent
from test_loop import PROGRAM, TRAIN, block, night, write_replies
from typer.testing import CliRunner

from agent.cli import app
from agent.errors import Failure
from agent.judge.again import pair
from agent.judge.audit import AuditReport
from agent.ledger import lock
from agent.observers.report.read import told_of
from agent.records import Experiment

HOSTILE = "[red]Wide\x1b[2J\x07 layers[/] see more."
REPLIES = (
    block("RATE = 0.5", "RATE = 0.3", "A lower rate lands nearer."),  # keep
    block("RATE = 0.3", "RATE = 0.9", "A higher rate travels further."),  # discard
    block("WIDTH = 8", "WIDTH = 16", HOSTILE),  # keep
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A night that is over, with two keeps and an audit."""
    folder = tmp_path_factory.mktemp("after")
    project = make_repository(folder / "project", {"train.py": TRAIN, "prepare.py": "", "program.md": PROGRAM})
    night(project, "--replay", str(write_replies(folder / "replies", *REPLIES)), "--experiments", "3")
    return project


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, for what changes something."""
    return Path(shutil.copytree(finished, tmp_path / "project", symlinks=True))


def said_here(project: Path, *arguments: str) -> str:
    """As a command of its own says it; in this process, which is quicker."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--repo", str(project)])
    assert result.exception is None, result.exception
    return result.stdout


def experiments(home: Path) -> Sequence[Experiment]:
    told = told_of(home)
    assert told is not None
    return told.experiments


def refused(project: Path, *arguments: str) -> str:
    """The one line with which a command ends."""
    result = CliRunner().invoke(app, [*arguments, "--repo", str(project)])
    assert isinstance(result.exception, Failure), result.output
    return str(result.exception)


@pytest.mark.parametrize("width", ["44", "80", "200"])
def test_no_line_ends_in_blanks_however_wide_the_terminal_is(finished: Path, width: str):
    for command in (("status",), ("nights",), ("show", "3"), ("run", "--dry-run", "--proposer", "search")):
        said = CliRunner(env={"COLUMNS": width}).invoke(app, [*command, "--repo", str(finished)]).stdout
        assert said.count("\n") > 1 and not [line for line in said.splitlines() if line.endswith(" ")], said


def test_an_experiment_is_shown_with_its_evidence_and_what_a_model_wrote_is_text(finished: Path):
    said = agent("show", "3", "--repo", str(finished))
    assert "#3 keep" in said and "[red]Wide" in said and "layers[/] see more." in said
    assert "\x1b" not in said and "\x07" not in said
    for part in ("0.1025, of one trial", "#1 (", "refs/experiments/night/3", "replay", "-WIDTH = 8", "+WIDTH = 16",
                 "% interval", "$0.0000"):  # fmt: skip
        assert part in said, said
    assert said_here(finished, "show", "3", "--diff").startswith("--- train.py\n+++ train.py\n")
    assert "step 2 loss" in said_here(finished, "show", "3", "--log")
    assert "see more" in said_here(finished, "show", "3", "--reply")
    assert "Lower the loss" in said_here(finished, "show", "3", "--prompt")
    told = json.loads(said_here(finished, "show", "2", "--json"))
    assert told["verdict"] == "discard" and told["runs"][0]["value"] == pytest.approx(0.765)
    assert "+RATE = 0.9" in told["diff"] and "RATE = 0.3" in told["talk"][0]["prompt"]
    assert refused(finished, "show", "7") == "there is no experiment 7 in night: it has 0 to 3"
    assert refused(finished, "show", "0", "--reply") == "experiment 0 has no reply"


def test_a_branch_of_the_kept_commits_needs_an_audit_and_leaves_the_checkout_alone(project: Path):
    (project / "train.py").write_text("# in the middle of something\n")
    (project / "new.py").write_text("")
    git(project, "add", "new.py")
    before = git(project, "status", "--porcelain", "--branch")
    why = agent("finalize", "--repo", str(project), expect=2)
    assert "its gain was never measured again" in why and "--unaudited" in why and why.count("\n") == 1
    agent("audit", "--repo", str(project), "--pairs", "2")
    said = agent("finalize", "--repo", str(project))
    assert "overnight/night: 2 commits on main (" in said and "audited: better by 0.1825" in said
    assert git(project, "diff", "research/night", "overnight/night") == ""
    story = git(project, "log", "--reverse", "--format=%B", "main..overnight/night")
    for part in ("A lower rate lands nearer.", "Night: night", "Metric-After: loss 0.165", "Metric-After: loss 0.1025",
                 "Interval:", "Measured-As: "):  # fmt: skip
        assert part in story, story
    assert "already" in refused(project, "finalize")
    said_here(project, "finalize", "--branch", "one", "--squash")
    assert git(project, "rev-list", "--count", "main..one") == "1"
    one = git(project, "log", "-1", "--format=%B", "one")
    assert one.startswith("loss 0.285 -> 0.1025 in the night night\n") and "- #1 A lower rate" in one
    assert "Audit: 0.1825" in one or "Audit: " in one and "fresh seeds" in one
    assert git(project, "diff", "one", "overnight/night") == ""
    assert git(project, "status", "--porcelain", "--branch") == before


def test_an_audit_that_finds_no_gain_or_is_of_another_chain_is_no_confirmation(project: Path):
    home = project / ".research" / "night"
    kept = [e for e in experiments(home) if e.verdict and e.verdict.kept]
    ends = {"baseline": kept[0].commit, "final": kept[-1].commit, "before": 0.285, "after": 0.28, "rounds": 5}
    gain = {"effect": 0.01, "interval": (-0.2, 0.22)}
    for changed, says in (
        ({}, "the audit did not confirm its gain (0.01, 95%"),
        ({"final": "0" * 40}, "its last audit was of other kept commits"),
    ):
        AuditReport.model_validate({**ends, "gain": gain, **changed}).save(home)
        assert says in refused(project, "finalize")
    said = said_here(project, "finalize", "--unaudited")
    assert "not audited: its last audit was of other kept commits" in said


def test_a_branch_that_moved_on_is_merged_or_the_conflict_is_said(project: Path):
    def commit(search: str, replace: str) -> None:
        text = (project / "train.py").read_text()
        (project / "train.py").write_text(text.replace(search, replace))
        git(project, "commit", "--quiet", "--all", "--message", "Moved on")

    finalize = ("finalize", "--unaudited")
    start = git(project, "rev-parse", "HEAD")
    commit('print("loss:"', 'print("done")\nprint("loss:"')
    said = said_here(project, *finalize, "--branch", "merged")
    assert "the two together were never measured" in said
    text = git(project, "show", "merged:train.py")
    assert 'print("done")' in text and "RATE = 0.3" in text and "WIDTH = 16" in text
    commit("RATE = 0.5", "RATE = 0.4")
    said = refused(project, *finalize, "--branch", "no")
    assert "#1 (A lower rate lands nearer.) does not apply to main" in said and f"--onto {start[:12]}" in said
    said_here(project, *finalize, "--branch", "old", "--onto", start[:12])
    assert git(project, "rev-parse", "old~2") == start
    assert "holds all" in refused(project, *finalize, "--branch", "no", "--onto", "research/night")
    for flags, says in (
        (("--branch", "a..b"), "can't name a branch"),
        (("--branch", "-x"), "can't name a branch"),
        (("--branch", "research/x"), "choose another --branch"),
        (("--onto", "nowhere"), "--onto nowhere is no branch or commit"),
    ):
        assert says in refused(project, *finalize, *flags)
    branches = git(project, "branch", "--format=%(refname:short)").split()
    assert branches == ["main", "merged", "old", "research/night"]


def test_tables_for_other_tools(finished: Path, tmp_path: Path):
    pq = pytest.importorskip("pyarrow.parquet")
    lines = [json.loads(line) for line in said_here(finished, "export", "--jsonl", "-").splitlines()]
    assert [row["verdict"] for row in lines] == ["baseline", "keep", "discard", "keep"]
    assert lines[3]["value"] == pytest.approx(0.1025) and lines[3]["hypothesis"] == HOSTILE
    trials, parquet = tmp_path / "trials.jsonl", tmp_path / "trials.parquet"
    said_here(finished, "export", "--trials", "--jsonl", str(trials), "--parquet", str(parquet))
    runs = [json.loads(line) for line in trials.read_text().splitlines()]
    assert len(runs) >= 4 and len({(run["experiment"], run["trial"]) for run in runs}) == len(runs)
    assert runs[0]["curve"] and runs[0]["seed"]
    back = pq.read_table(parquet).to_pylist()
    assert [(row["value"], row["seed"]) for row in back] == [(run["value"], run["seed"]) for run in runs]
    assert [(p["share"], p["loss"]) for p in back[0]["curve"]] == [tuple(point) for point in runs[0]["curve"]]
    said_here(finished, "export", "--parquet", str(parquet))
    assert pq.read_table(parquet).to_pylist()[0]["created"].tzinfo is not None
    assert "can't be written" in refused(finished, "export", "--jsonl", str(trials / "file"))
    assert refused(finished, "export").startswith("nothing to write")


def test_nights_are_compared_old_and_damaged_ones_too(project: Path):
    for name in ("old", "broken"):
        (project / ".research" / name).mkdir()
    db = sqlite3.connect(project / ".research" / "old" / "ledger.db")
    db.executescript((ROOT / "tests" / "journals" / "0.1.sql").read_text())
    db.close()
    (project / ".research" / "broken" / "ledger.db").write_bytes(b"SQLite format 3\x00" + b"\x07" * 5000)
    rows = {row["night"]: row for row in json.loads(said_here(project, "nights", "--json"))}
    assert set(rows) == {"night", "old", "broken"}
    assert (rows["night"]["experiments"], rows["night"]["kept"]) == (3, 2)
    assert rows["night"]["gain"] == pytest.approx(0.1825) and "as asked" in rows["night"]["ended"]
    assert rows["old"]["kept"] == 2 and rows["broken"]["ended"]
    said = agent("nights", "--repo", str(project))
    assert "night" in said and "0.182" in said and "a night of version 0.1" in said


def test_an_experiment_is_measured_again_and_the_night_stays_as_it_is(project: Path):
    rerun, home = ("rerun", "--repo", str(project)), project / ".research" / "night"
    before = (home / "ledger.db").read_bytes(), git(project, "for-each-ref")
    said = agent(*rerun, "2", "--seeds", "2")
    assert "#2 is better than #1 by -0.6, 95% interval" in said and "(2 fresh seeds): it is worse" in said
    assert "the night had found -0.6" in said and "discard" in said
    assert ((home / "ledger.db").read_bytes(), git(project, "for-each-ref")) == before
    assert not (home / "rerun.jsonl").exists()
    done = experiments(home)
    assert pair(done, 2, True)[1].commit == done[3].commit
    for number, beside, says in (
        (9, False, "there is no experiment 9 with a verdict in this night: it has 0 to 3"),
        (0, False, "the baseline stands on no other commit"),
        (3, True, "experiment 3 is the incumbent"),
    ):
        with pytest.raises(Failure, match=says):
            pair(done, number, beside)
    (other := project / ".research" / "other").mkdir()
    shutil.copy(home / "ledger.db", other)
    with lock(other):
        for command in (("rerun", "2"), ("audit",)):
            assert "a loop works on other: `stop` it" in refused(project, *command, "--tag", "night")
