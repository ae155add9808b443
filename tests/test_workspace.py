"""The git side: the person's checkout is never touched, and nothing a repository configures is run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import git, make_repository

from agent.errors import EditError, Failure
from agent.workspace import Workspace


def snapshot(repository: Path) -> tuple[str, str, str, bytes]:
    """All that is the person's: status, HEAD, branches but ours, the index."""
    return (
        git(repository, "status", "--porcelain", "--branch"),
        git(repository, "rev-parse", "HEAD"),
        git(repository, "for-each-ref", "refs/heads/main"),
        (repository / ".git" / "index").read_bytes(),
    )


def keep_one(repository: Path) -> tuple[Workspace, str]:
    workspace = Workspace(repository, "night")
    workspace.prepare_home()
    commit = workspace.commit_files(workspace.head, {"train.py": "RATE = 0.1\n"}, "Lower rate\n\nExperiment: 1\n", 1e9)
    workspace.pin(1, commit)
    workspace.advance(commit)
    return workspace, commit


@pytest.mark.parametrize("state", ["clean", "dirty", "staged", "detached"])
def test_a_keep_leaves_the_checkout_as_it_was(repository: Path, state: str):
    if state in ("dirty", "staged"):
        (repository / "train.py").write_text("RATE = 0.9  # mine\n")
        (repository / "notes.txt").write_text("mine")
    if state == "staged":
        git(repository, "add", "train.py")
    if state == "detached":
        git(repository, "checkout", "--quiet", "--detach")
    before = snapshot(repository)
    _, commit = keep_one(repository)
    assert snapshot(repository) == before
    assert git(repository, "rev-parse", "research/night") == commit
    assert git(repository, "rev-parse", "refs/experiments/night/1") == commit
    assert git(repository, "show", "research/night:train.py") == "RATE = 0.1"


@pytest.mark.parametrize("ref", ["refs/heads/research/night", "refs/experiments/night/2"])
@pytest.mark.parametrize("there", [True, False])
def test_what_a_person_moves_between_the_reading_and_the_writing_stays(repository: Path, ref: str, there: bool):
    """The person is quicker than the loop by as little as can be: just before its git writes the ref."""
    workspace, old = keep_one(repository)
    git(repository, "update-ref", ref, old) if there else git(repository, "update-ref", "-d", ref)
    mine = git(repository, "commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "mine")
    new = workspace.commit_files(old, {"train.py": "RATE = 0.2\n"}, "Lower still\n", 1e9)
    run = workspace.refs.run

    def just_before(command: str, *arguments: str) -> str:
        if command == "update-ref" and arguments[0] == ref:
            git(repository, "update-ref", ref, mine)
        return run(command, *arguments)

    workspace.refs.run = just_before
    if "heads" in ref:
        assert f"was moved to {mine[:12]} by somebody else" in workspace.advance(new, [old])
        assert git(repository, "rev-parse", "research/night-goes-on") == new
    else:
        with pytest.raises(Failure, match="can't move refs/experiments/night/2"):
            workspace.pin(2, new, [old])
    assert git(repository, "rev-parse", ref) == mine


def test_the_same_commit_can_be_made_again(repository: Path):
    workspace, commit = keep_one(repository)
    again = workspace.commit_files(workspace.head, {"train.py": "RATE = 0.1\n"}, "Lower rate\n\nExperiment: 1\n", 1e9)
    assert again == commit


def test_export_has_the_files_and_no_git(repository: Path, tmp_path: Path):
    (repository / "tool.sh").write_text("#!/bin/sh\n")
    (repository / "tool.sh").chmod(0o755)
    (repository / "inside").symlink_to("train.py")
    (repository / "outside").symlink_to("/etc/passwd")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "links")
    workspace = Workspace(repository, "night")
    target = tmp_path / "tree"
    target.mkdir()
    workspace.export(workspace.head, target)
    assert sorted(os.listdir(target)) == ["inside", "prepare.py", "tool.sh", "train.py"]
    assert os.access(target / "tool.sh", os.X_OK)
    assert (target / "inside").read_text() == (repository / "train.py").read_text()


def test_a_symlink_is_neither_editable_nor_edited(repository: Path):
    (repository / "link.py").symlink_to("train.py")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "link")
    workspace = Workspace(repository, "night")
    workspace.prepare_home()
    with pytest.raises(Failure, match="link.py is a link: name the file"):
        workspace.check(workspace.head, ["link.py"])
    with pytest.raises(EditError, match="not a plain file"):
        workspace.commit_files(workspace.head, {"link.py": "x = 1\n"}, "m", 1e9)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_a_repository_of_another_user_is_refused_with_what_to_do(repository: Path, monkeypatch: pytest.MonkeyPatch):
    for path in (repository, *repository.rglob("*")):
        os.lchown(path, 1234, 1234)
    monkeypatch.delenv("SUDO_UID", raising=False)
    with pytest.raises(Failure, match="belongs to another user.*safe.directory"):
        Workspace(repository, "night")


def test_a_repository_of_sha256_is_refused_with_what_to_do(tmp_path: Path):
    git(tmp_path, "init", "--quiet", "--object-format=sha256")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "Start")
    with pytest.raises(Failure, match="sha1"):
        Workspace(tmp_path, "night")
    git(tmp_path, "init", "--quiet", "empty")
    with pytest.raises(Failure, match="no commit yet"):
        Workspace(tmp_path / "empty", "night")


def test_nothing_that_the_repository_configures_runs(repository: Path):
    witness = repository / "witness"
    trap = repository / "trap.sh"
    trap.write_text(f"#!/bin/sh\necho ran >> {witness}\ncat\n")
    trap.chmod(0o755)
    hooks = repository / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("reference-transaction", "post-commit", "pre-commit", "post-index-change", "post-checkout"):
        (hooks / name).write_text(trap.read_text())
        (hooks / name).chmod(0o755)
    for key in ("core.fsmonitor", "filter.evil.clean", "filter.evil.smudge", "diff.evil.textconv"):
        git(repository, "config", key, str(trap))
    (repository / ".gitattributes").write_text("* filter=evil diff=evil\n")
    git(repository, "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "filter.evil.clean=cat",
        "add", ".gitattributes")  # fmt: skip
    git(repository, "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "commit", "--quiet", "-m", "trap")
    witness.unlink(missing_ok=True)
    workspace, commit = keep_one(repository)
    target = workspace.home / "tree"
    target.mkdir()
    workspace.export(commit, target)
    workspace.uncommitted(["train.py"])
    assert not witness.exists()


@pytest.mark.parametrize("tag", ["../up", "a b", "-x", "x.lock", ""])
def test_a_tag_that_is_no_name_is_refused(repository: Path, tag: str):
    with pytest.raises(Failure, match="--tag"):
        Workspace(repository, tag)


def test_a_checked_out_research_branch_is_refused(repository: Path):
    git(repository, "checkout", "--quiet", "-b", "research/night")
    with pytest.raises(Failure, match="check out another branch"):
        Workspace(repository, "night").claim({git(repository, "rev-parse", "HEAD")})


def test_no_repository_and_no_commit_say_what_to_do(tmp_path: Path):
    with pytest.raises(Failure, match="git init"):
        Workspace(tmp_path, "night")
    git(tmp_path, "init", "--quiet")
    with pytest.raises(Failure, match="no commit yet"):
        Workspace(tmp_path, "night")


def test_uncommitted_changes_are_named(repository: Path):
    (repository / "train.py").write_text("RATE = 0.9\n")
    assert Workspace(repository, "night").uncommitted(["train.py", "prepare.py"]) == ["train.py"]


def test_odd_file_names_survive(tmp_path: Path):
    name = "tab\tand ümlaut/träin.py"
    repository = make_repository(tmp_path / "odd", {name: "x = 1\n"})
    workspace = Workspace(repository, "night")
    workspace.prepare_home()
    commit = workspace.commit_files(workspace.head, {name: "x = 2\n"}, "odd", 1e9)
    assert workspace.read(commit, [name]) == {name: "x = 2\n"}
