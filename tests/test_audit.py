"""The audit: the night's gain with fresh seeds, what carries it, and a branch without what does not."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import git, make_repository

from agent.errors import Failure
from agent.judge.audit import AuditReport, audit, compare
from agent.program import Program
from agent.records import Edit, Experiment, Measurement, Proposal, Trial, Verdict
from agent.run.local import LocalExecutor
from agent.run.sandbox import Unsandboxed
from agent.workspace import Workspace

TRAIN = """\
import os, random
from pathlib import Path
RATE = 0.5

# how wide
WIDTH = 8

# how often
NAP = 1

random.seed(f"{os.environ['RESEARCH_SEED']} {RATE} {WIDTH}")
loss = (RATE - 0.1) ** 2 + 1 / WIDTH + random.gauss(0, 0.002)
print("step 0 loss 1.0 0%", flush=True)
print("loss:", loss)
Path(os.environ["RESEARCH_OUTPUT"], "model").write_text(str(loss))
"""
PREPARE = """\
import os
from pathlib import Path
print("test_loss:", 1 + float(Path(os.environ["RESEARCH_OUTPUT"], "model").read_text()))
"""
PROGRAM = Program.model_validate(
    {"metric": {"name": "loss"}, "budget": "20s", "run": "python train.py", "protect": "prepare.py"}
)
RATE = ("RATE = 0.5", "RATE = 0.3", 0.12)
NAP = ("NAP = 1", "NAP = 2", 0.01)
WIDTH = ("WIDTH = 8", "WIDTH = 16", 0.0625)
RATE_AGAIN = ("RATE = 0.3", "RATE = 0.2", 0.03)
Change = tuple[str, str, float]


class Night:
    """A finished night in a real repository: kept commits, made as the loop makes them."""

    def __init__(self, folder: Path, *changes: Change):
        root = make_repository(folder / "repo", {"train.py": TRAIN, "prepare.py": PREPARE})
        self.root = root
        self.workspace = Workspace(root, "night")
        self.workspace.prepare_home()
        self.experiments: list[Experiment] = []
        self.executor = LocalExecutor(
            self.workspace.home, self.workspace.export, Unsandboxed(), "cpu", root=root
        )
        self.said: list[str] = []
        tip = self.workspace.head
        self._record(tip, tip, {}, None)
        for search, replace, effect in changes:
            text = self.workspace.read(tip, ["train.py"])["train.py"].replace(search, replace)
            tip = self._record(tip, "", {"train.py": text}, (search, replace, effect))
        self.workspace.advance(tip)

    def _record(self, parent: str, commit: str, files: dict[str, str], change: Change | None) -> str:
        number, proposal, verdict = len(self.experiments), None, Verdict(kind="baseline", reason="the start")
        if change:
            edit = Edit(path="train.py", search=change[0], replace=change[1])
            proposal = Proposal(hypothesis=f"{change[1]} helps", category="other", edits=(edit,))
            commit = self.workspace.commit_files(parent, files, f"{change[1]} helps\n", 1e9 + number)
            verdict = Verdict(kind="keep", reason="better", effect=change[2])
        measured = Measurement(outcome="ok", metric=1.0)
        trial = Trial(experiment=number, number=0, commit=commit, seed=1, measurement=measured)
        self.experiments.append(Experiment(
            number=number, state="published", parent=parent, commit=commit, proposal=proposal, files=files,
            verdict=verdict, trials=(trial,), created=1e9 + number,
        ))  # fmt: skip
        return commit

    def audit(self, program: Program = PROGRAM, pairs: int = 4, ablate=False, prune=False) -> AuditReport:
        say: Callable[[str], None] = self.said.append
        return audit(self.experiments, self.workspace, self.executor, program, pairs, ablate, prune, say)


@pytest.fixture
def make(tmp_path: Path):
    nights: list[Night] = []

    def build(*changes: Change) -> Night:
        nights.append(Night(tmp_path, *changes))
        return nights[-1]

    yield build
    for night in nights:
        night.executor.close()  # and the worker that waits ends


def test_the_gain_is_measured_again_on_val_and_test(make):
    program = PROGRAM.model_copy(update={"test": "python prepare.py"})
    night = make(RATE, WIDTH)
    report = night.audit(program)
    low, high = report.gain.interval
    assert report.gain.effect == pytest.approx(0.12 + 0.0625, abs=0.01)
    assert low < report.gain.effect < high and high - low < 0.04
    assert report.rounds == 4
    assert report.before - report.after == pytest.approx(report.gain.effect)
    assert report.test["test_loss"].effect == pytest.approx(report.gain.effect)
    assert any("95% interval" in line for line in night.said)
    assert not list((night.workspace.home / "outputs").glob("*"))


def test_a_commit_that_carries_nothing_is_named_and_pruned_on_a_branch_of_its_own(make):
    night = make(RATE, NAP, WIDTH)
    before = git(night.root, "rev-parse", "research/night")
    report = night.audit(prune=True)
    carries = {a.experiment: a.carries for a in report.ablations}
    assert carries == {1: True, 2: False, 3: True}
    worth = {a.experiment: a.worth.effect for a in report.ablations if a.worth}
    assert worth == pytest.approx({1: 0.12, 2: 0.0, 3: 0.0625}, abs=0.006)
    assert report.pruned == "research/night-pruned"
    assert report.pruned_gain and abs(report.pruned_gain.effect) < 0.01
    text = git(night.root, "show", "research/night-pruned:train.py")
    assert "RATE = 0.3" in text and "WIDTH = 16" in text and "NAP = 1" in text
    story = git(night.root, "log", "--format=%s", "main..research/night-pruned").splitlines()
    assert story == ["WIDTH = 16 helps", "RATE = 0.3 helps"]
    assert git(night.root, "rev-parse", "research/night") == before
    assert git(night.root, "status", "--porcelain") == ""


def test_what_later_commits_build_on_is_left_in_and_said(make):
    report = make(RATE, RATE_AGAIN).audit(ablate=True)
    first, second = report.ablations
    assert first.worth is None and first.carries and "can't come out" in first.note
    assert second.worth and second.worth.effect == pytest.approx(0.03, abs=0.006)
    assert report.pruned is None


def test_a_commit_that_the_others_can_not_run_without_is_never_pruned(make):
    helper = ("NAP = 1", "NAP = 1\nSPAN = 16", 0.05)
    user = ("1 / WIDTH", "1 / SPAN", 0.05)
    report = make(helper, user).audit(pairs=3, prune=True)
    assert report.ablations[0].note == "a trial without it failed"
    assert report.pruned is None


def test_nothing_kept_or_too_few_pairs_is_one_line(make):
    night = make()
    with pytest.raises(Failure, match="no gain to audit"):
        night.audit()
    with pytest.raises(Failure, match="at least 2 pairs"):
        night.audit(pairs=1)


def test_a_final_commit_that_fails_is_told(make):
    night = make(("print(\"loss:\"", "print(\"lost:\"", 0.1))
    with pytest.raises(Failure, match="worked on 0 of 4 seeds"):
        night.audit()


def test_two_arms_are_the_paired_t_test_and_drift_of_the_seed_is_no_error():
    from scipy import stats

    one, two = [1.0, 1.4, 0.9, 1.2, 1.1], [0.8, 1.1, 0.9, 1.0, 0.7]
    found = compare(PROGRAM, {"a": one, "b": two})("a", "b")
    expected = stats.ttest_rel(one, two).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.effect == pytest.approx(0.22)
    drifted = {"a": [x + 10 * i for i, x in enumerate(one)], "b": [y + 10 * i for i, y in enumerate(two)]}
    assert compare(PROGRAM, drifted)("a", "b").interval == pytest.approx(found.interval)


def test_a_merge_is_exact_to_the_last_byte_or_is_refused(tmp_path: Path):
    workspace = Workspace(make_repository(tmp_path / "repo", {"train.py": "x = 1\n"}), "night")
    base = "a = 1\n\n\n\nb = 1"
    assert workspace.merge(base.replace("a = 1", "a = 2"), base, base.replace("b = 1", "b = 2\r\n")) == (
        "a = 2\n\n\n\nb = 2\r\n"
    )
    assert workspace.merge("a = 2\n", "a = 1\n", "a = 3\n") is None


def test_an_audit_that_is_interrupted_goes_on_with_what_it_has_measured(make):
    night = make(RATE)
    program = PROGRAM.model_copy(update={"test": "python prepare.py"})
    heard: list[str] = []

    def interrupt(text: str) -> None:
        heard.append(text)
        if len(heard) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(night.experiments, night.workspace, night.executor, program, 3, False, False, interrupt)
    report = night.audit(program, pairs=3)
    assert report.rounds == 3 and report.gain.effect == pytest.approx(0.12, abs=0.02) and report.test
    assert sum("measured before" in text for text in night.said) == 3
    night.said.clear()
    night.audit(program, pairs=2)
    assert not any("measured before" in text for text in night.said)  # the next one draws fresh seeds


def test_an_audit_of_many_trials_needs_few_open_files(make):
    """Fewer than two for each trial."""
    night = make(RATE)
    had = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 30, had[1]))
    try:
        assert night.audit(pairs=8).rounds == 8
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, had)
