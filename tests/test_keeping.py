"""Nothing of the person's is touched, and nothing is lost: refs, commits, the ledger, the disk, what a kill leaves."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, git, make_repository
from test_loop import PROGRAM, STORY, TRAIN, block, environment, kinds, night, write_replies

from agent.backup import restore
from agent.ledger import Ledger
from agent.program import Program
from agent.run.bubblewrap import Bubblewrap
from agent.run.inputs import difference, listing
from agent.run.leftovers import clear, remove, temporary
from agent.run.probe import probe
from agent.run.sandbox import Unsandboxed

FAST = ("--unsafe-no-sandbox",)  # what is looked at here is not the sandbox


@pytest.fixture(scope="module")
def one_night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which a night of two experiments is finished: a keep and a discard."""
    files = {"train.py": TRAIN, "prepare.py": "# protected\n", "program.md": PROGRAM}
    project = make_repository(tmp_path_factory.mktemp("keeping") / "project", files)
    replies = write_replies(project.parent / "replies", STORY[0], STORY[2], block("WIDTH = 8", "WIDTH = 16"))
    night(project, *FAST, "--replay", str(replies), "--experiments", "2")
    return project.parent


@pytest.fixture
def project(one_night: Path, tmp_path: Path) -> Path:
    shutil.copytree(one_night, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy" / "project"


def again(project: Path, *flags: str, expect: int = 0, experiments: int = 3) -> str:
    replies = str(project.parent / "replies")
    return night(project, *FAST, "--replay", replies, "--experiments", str(experiments), *flags, expect=expect)


def refs(project: Path) -> dict[str, str]:
    lines = git(project, "for-each-ref", "--format=%(refname) %(objectname)", "refs/heads/research", "refs/experiments")
    return dict(line.split() for line in lines.splitlines())


def commit_of_a_person(project: Path, parent: str) -> str:
    return git(project, "commit-tree", "HEAD^{tree}", "-p", parent, "-m", "mine")


def test_a_branch_without_a_night_is_never_moved(tmp_path: Path):
    project = make_repository(tmp_path / "project", {"train.py": TRAIN, "prepare.py": "#\n", "program.md": PROGRAM})
    mine = commit_of_a_person(project, "HEAD")
    git(project, "update-ref", "refs/heads/research/night", mine)
    said = night(project, *FAST, "--replay", str(write_replies(tmp_path / "replies", STORY[0])), expect=2)
    assert "no ledger of such a night: choose another --tag" in said and len(said.strip().splitlines()) == 1
    assert refs(project) == {"refs/heads/research/night": mine} and not (project / ".research").exists()
    for gone, beside in (("research/night", "research"), ("research", "research/night/mine")):
        git(project, "branch", "-D", gone)
        git(project, "branch", beside)  # git makes no folder of branches where a branch is
        said = night(project, *FAST, "--replay", str(tmp_path / "replies"), expect=2)
        assert f"git can't make research/night beside the branch {beside}: rename that one (git branch -m)" in said


def test_a_branch_that_was_moved_between_two_starts_is_refused_in_one_line(project: Path):
    mine = commit_of_a_person(project, "research/night")
    git(project, "update-ref", "refs/heads/research/night", mine)
    said = again(project, expect=2)
    assert mine[:12] in said and "git branch -m" in said and len(said.strip().splitlines()) == 1
    assert refs(project)["refs/heads/research/night"] == mine


def test_a_branch_that_is_moved_in_mid_night_stays_and_the_night_goes_on_beside_it(project: Path, tmp_path: Path):
    """The command that proposes is what moves it, as a person would at that moment."""
    propose = tmp_path / "propose.py"
    propose.write_text(
        "import subprocess, sys\n"
        f"git = ['git', '-C', {str(project)!r}, '-c', 'user.name=P', '-c', 'user.email=p@x']\n"
        "mine = subprocess.run([*git, 'commit-tree', 'research/night^{tree}', '-p', 'research/night', '-m', 'mine'],"
        " capture_output=True, text=True, check=True).stdout.strip()\n"
        "subprocess.run([*git, 'update-ref', 'refs/heads/research/night', mine], check=True)\n"
        f"print({block('WIDTH = 8', 'WIDTH = 16')!r})\n"
    )
    flags = (*FAST, "--command-unsandboxed", "--command", f"{sys.executable} {propose}", "--experiments", "3")
    said = night(project, *flags)
    assert "somebody else and stays as it is: the night goes on under research/night-goes-on" in said
    assert "git merge --ff-only research/night-goes-on" in said
    assert git(project, "log", "-1", "--format=%s", "research/night") == "mine"
    kept = git(project, "show", "research/night-goes-on:train.py")
    assert "WIDTH = 16" in kept and "RATE = 0.3" in kept


def test_a_night_goes_on_from_the_commit_it_began_with_and_says_so_where_head_is_another(project: Path):
    assert "not on HEAD" not in again(project, experiments=2)
    began = git(project, "rev-parse", "HEAD")
    (project / "train.py").write_text(TRAIN.replace("WIDTH = 8", "WIDTH = 9"))
    git(project, "commit", "--quiet", "--all", "--message", "mine")
    said = again(project)
    assert f"it works on commit {began[:12]}, which it began with, and not on HEAD: --new begins one on that" in said
    assert kinds(project)[-1] == "keep" and "WIDTH = 16" in git(project, "show", "research/night:train.py")


def test_git_clean_and_the_same_command_lose_nothing(project: Path):
    """The ledger is put back from its copy in .git; a night that was finished is followed by one of another name."""
    before = refs(project)
    git(project, "clean", "-fdx", "--quiet")
    replies = ("--replay", str(project.parent / "replies"), "--experiments", "1")
    command = [sys.executable, "-m", "agent.loop", "--repo", str(project), *FAST, *replies]
    ran = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0 and "put back" in ran.stdout, ran.stdout + ran.stderr
    assert before.items() <= refs(project).items()
    assert refs(project).keys() > before.keys()  # of another name
    assert len(Ledger(project / ".research" / "night", readonly=True).night().order) == 3


def test_a_journal_with_an_event_missing_is_put_back_and_one_of_a_newer_version_is_left_alone(project: Path):
    path = project / ".research" / "night" / "ledger.db"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM journal WHERE kind = 'Committed' AND number = (SELECT min(number) FROM journal "
                   "WHERE kind = 'Committed')")  # fmt: skip
    assert "experiment 1 is proposed, not trials" in (said := again(project)) and "is put back" in said
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE journal SET version = 99 WHERE number = 3")
    before = path.read_bytes()
    assert "error: this night was written by a newer version of this program: use that one" in again(project, expect=2)
    assert path.read_bytes() == before
    path.write_bytes(before[:9000])  # and what only reads says it in a line
    for view in ("report", "status"):
        ran = subprocess.run(
            [sys.executable, "-m", "agent", view, "--repo", str(project)], cwd=ROOT, capture_output=True, text=True
        )
        assert ran.returncode == 2 and "is damaged" in ran.stderr and "Traceback" not in ran.stderr, ran.stderr


@pytest.mark.parametrize("width", [4, 2])  # the same change again, which ends the night; another one, which is trained
def test_git_clean_in_mid_night_is_said_and_loses_nothing_that_was_paid_for(project: Path, tmp_path: Path, width: int):
    """The command that proposes does it, as a person would at that moment."""
    propose = tmp_path / "propose.py"
    propose.write_text(
        "import pathlib, subprocess\n"
        f"asked = pathlib.Path({str(tmp_path / 'asked')!r})\n"
        "if asked.exists():\n"
        f"    subprocess.run(['git', '-C', {str(project)!r}, 'clean', '-fdxq'], check=True)\n"
        f"    print({block('WIDTH = 8', f'WIDTH = {width}')!r})\n"
        f"else:\n    print({block('WIDTH = 8', 'WIDTH = 4')!r})\n"
        "asked.touch()\n"
    )
    flags = (*FAST, "--command-unsandboxed", "--command", f"{sys.executable} {propose}", "--experiments", "4")
    said = night(project, *flags, expect=3)
    assert "was deleted while the night ran: its journal is saved, and the same command goes on" in said
    again(project, experiments=4)
    found = Ledger(project / ".research" / "night", readonly=True).night()
    assert found.replies == 4 and len(found.order) == 5  # two of the first night, one before and one at that moment


def test_a_night_whose_program_is_updated_begins_no_trial_with_it(project: Path, tmp_path: Path):
    """A copy of this program is what runs; the command that proposes changes a file of it."""
    shutil.copytree(ROOT / "agent", tmp_path / "program" / "agent")
    shutil.copytree(ROOT / "prompts", tmp_path / "program" / "prompts")
    propose = f"import pathlib\npathlib.Path({str(tmp_path / 'program' / 'agent' / 'run' / 'task.py')!r}).touch()\n"
    (tmp_path / "propose.py").write_text(propose + f"print({block('WIDTH = 8', 'WIDTH = 4')!r})\n")
    flags = ("--command-unsandboxed", "--command", f"{sys.executable} {tmp_path / 'propose.py'}", "--experiments", "3")
    command = [sys.executable, "-m", "agent.loop", "--repo", str(project), "--tag", "night", *FAST, *flags]
    env = environment(PYTHONPATH=str(tmp_path / "program"))
    ran = subprocess.run(command, cwd=tmp_path / "program", env=env, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 3 and "this program was updated while the night ran" in ran.stdout, ran.stdout + ran.stderr
    again(project)
    assert [e.verdict.kind for e in Ledger(project / ".research" / "night", readonly=True).night().experiments.values()
            if e.verdict][3] == "discard"  # fmt: skip


def test_a_remote_that_is_none_is_refused_before_anything_is_trained(tmp_path: Path, repository: Path):
    (repository / "program.md").write_text(PROGRAM)
    said = night(repository, *FAST, "--command", "true", "--push", "nowhere", expect=2)
    assert "error: --push nowhere: fatal: 'nowhere' does not appear to be a git repository" in said
    assert "there is no folder /nowhere/at/all" in night(Path("/nowhere/at/all"), *FAST, expect=2)


def test_a_ledger_that_is_torn_is_put_back_and_the_night_goes_on(project: Path):
    path, before = project / ".research" / "night" / "ledger.db", refs(project)
    data = path.read_bytes()
    path.write_bytes(data[:8192] + b"\xff" * 4096 + data[12288:])
    said = again(project)
    assert "its copy of" in said and "is put back" in said
    assert kinds(project)[:2] == ["baseline", "keep"]
    kept = {name: commit for name, commit in before.items() if name.endswith(("/0", "/1"))}
    assert kept.items() <= refs(project).items()


@pytest.mark.parametrize("harm", [b"", b"not a ledger\n" * 1000, None])
def test_the_copy_of_a_ledger_is_put_back_whatever_is_left_of_it(project: Path, harm: bytes | None):
    path, copy = project / ".research" / "night" / "ledger.db", project / ".git" / "overnight" / "night.db"
    path.unlink() if harm is None else path.write_bytes(harm)
    assert "is put back" in restore(path, copy)
    assert len(Ledger(path.parent, readonly=True).night().kept) == 2
    assert restore(path, copy) == ""


def test_a_ledger_that_is_not_whole_and_has_no_copy_is_one_line(project: Path):
    shutil.rmtree(project / ".git" / "overnight")
    path = project / ".research" / "night" / "ledger.db"
    path.write_bytes(b"not a ledger\n" * 1000)
    said, before = again(project, expect=2), refs(project)
    assert "is damaged" in said and "--tag" in said and len(said.strip().splitlines()) == 1
    path.unlink()
    said = again(project, expect=2)
    assert "no ledger of such a night" in said and len(said.strip().splitlines()) == 1
    assert refs(project) == before


def test_commits_that_git_has_lost_are_made_again(project: Path):
    before = refs(project)
    for name in before:
        git(project, "update-ref", "-d", name)
    git(project, "reflog", "expire", "--expire=now", "--all")
    git(project, "gc", "--quiet", "--prune=now")
    assert subprocess.run(["git", "cat-file", "-e", before["refs/experiments/night/2"]], cwd=project).returncode
    said = again(project)
    assert "gone from the repository, and are made again" in said
    now = refs(project)
    assert {name: now[name] for name in before if name != "refs/heads/research/night"} == {
        name: commit for name, commit in before.items() if name != "refs/heads/research/night"
    }
    assert git(project, "rev-parse", "research/night~1") == before["refs/heads/research/night"]


def test_locks_that_a_killed_git_left_do_not_stop_the_night(project: Path):
    for name in ("heads/research/night", "experiments/night/3"):
        (project / ".git" / "refs" / f"{name}.lock").touch()
    again(project)
    assert kinds(project) == ["baseline", "keep", "discard", "keep"]
    assert not list((project / ".git" / "refs").rglob("*.lock"))


def test_an_output_folder_of_any_depth_is_removed(tmp_path: Path):
    top = tmp_path / "output"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("folder", dir_fd=here)
        below = os.open("folder", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove(top)
    assert not top.exists()


DATA_PROGRAM = PROGRAM.replace("budget: 20s", "budget: 20s\ndata: [corpus, pointer]\nholdout: [heldout]")


@pytest.fixture
def with_data(tmp_path: Path) -> Path:
    train = TRAIN + "print('rows:', len(open('corpus/train.txt').read()))\n"
    files = {"train.py": train, "prepare.py": "# protected\n", "program.md": DATA_PROGRAM, ".gitignore": "corpus\n"}
    project = make_repository(tmp_path / "project", files)
    for folder in ("corpus", "heldout"):
        (project / folder).mkdir()
        (project / folder / "train.txt").write_text("some text\n" * 1000)
    (project / "pointer").symlink_to("corpus/train.txt")
    write_replies(tmp_path / "replies", STORY[0], block("WIDTH = 8", "WIDTH = 16"))
    return project


def test_data_that_changes_in_mid_night_ends_it_before_anything_is_compared(with_data: Path, tmp_path: Path):
    """The command that proposes is what switches the corpus, as a person would at that moment."""
    heldout = with_data / "heldout" / "train.txt"
    propose = tmp_path / "propose.py"
    propose.write_text(f"open({str(heldout)!r}, 'a').write('more')\nprint({STORY[0]!r})\n")
    flags = (*FAST, "--command-unsandboxed", "--command", f"{sys.executable} {propose}", "--experiments", "2")
    said = night(with_data, *flags, expect=3)
    assert "the data is not what this night began with: heldout/train.txt changed" in said and "--new" in said
    assert kinds(with_data) == ["baseline"]
    said = again(with_data, expect=2)
    assert "heldout/train.txt changed" in said.strip().splitlines()[-1]
    status = os.stat(with_data / "corpus" / "train.txt")
    heldout.write_text("some text\n" * 1000)
    before = Ledger(with_data / ".research" / "night", readonly=True)
    listed = before.text(before.night().inputs)
    assert str(status.st_mtime_ns) in listed


def test_what_data_names_is_told_from_what_it_was(with_data: Path):
    names = ("corpus", "pointer", "heldout")
    before = listing(with_data, names)
    assert difference(before, listing(with_data, names)) == ""
    (with_data / "corpus" / "new").touch()
    assert "corpus/new is new" in difference(before, listing(with_data, names))
    (with_data / "corpus" / "new").unlink()
    (with_data / "pointer").unlink()
    assert "pointer changed" in difference(before, listing(with_data, names))
    (with_data / "pointer").symlink_to("heldout/train.txt")
    assert "pointer changed" in difference(before, listing(with_data, names))
    (with_data / "pointer").unlink()
    (with_data / "pointer").symlink_to("corpus/train.txt")
    assert difference(before, listing(with_data, names)) == ""
    (with_data / "corpus" / "loop").symlink_to(with_data / "corpus")
    assert difference(before, listing(with_data, names))  # and it comes to an end


@pytest.mark.parametrize("key", ["prepare", "test"])
def test_the_commands_of_data_and_test_stay_as_they_were(key: str):
    one = Program.model_validate({"metric": {"name": "loss"}, key: "python one.py"})
    other = one.model_copy(update={key: "python other.py"})
    assert one.incomparable(other) == key


def test_each_keep_is_pushed_and_a_remote_that_fails_is_nothing_to_the_night(project: Path, tmp_path: Path):
    remote = tmp_path / "remote.git"
    said = again(project, "--push", str(remote))
    assert said.count("nothing could be pushed") == 1 and "the night goes on" in said
    git(tmp_path, "init", "--quiet", "--bare", str(remote))
    replies = write_replies(tmp_path / "more", *[block("PAUSE = 0.0", f"PAUSE = 0.00{n}") for n in range(4)])
    night(project, *FAST, "--replay", str(replies), "--experiments", "4", "--push", str(remote))
    there, here = refs(remote), refs(project)
    assert there["refs/heads/research/night"] == here["refs/heads/research/night"]
    (tmp_path / "copy.db").write_bytes(
        subprocess.run(["git", "show", "refs/experiments/night/ledger:ledger.db"], cwd=remote, capture_output=True,
                       check=True).stdout
    )  # fmt: skip
    with sqlite3.connect(tmp_path / "copy.db") as db:
        assert db.execute("SELECT count(*) FROM journal WHERE kind = 'Published'").fetchone()[0] >= 4


def test_a_remote_that_never_answers_leaves_no_process(project: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        home = project / ".research" / "night"
        push = f"from agent.observers.push import Push; from pathlib import Path; import os, threading, time; " \
               f"p = Push(Path({str(home)!r}), Path({str(project)!r}), {url!r}, print); " \
               f"threading.Thread(target=p.attempt, daemon=True).start(); input()"  # fmt: skip
        process = subprocess.Popen([sys.executable, "-c", push], cwd=ROOT, stdin=subprocess.PIPE)
        asked = silent.accept()[0]
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("remote" in " ".join(child.cmdline()) for child in children)
        process.communicate(b"\n")
        assert not psutil.wait_procs(children, timeout=20)[1]
        asked.close()


def test_a_branch_of_another_night_on_the_remote_is_not_moved(project: Path, tmp_path: Path):
    remote = tmp_path / "remote.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(project), str(remote))
    theirs = commit_of_a_person(project, "HEAD")
    git(project, "push", "--quiet", "--force", str(remote), f"{theirs}:refs/heads/research/night")
    assert "a research/night of another night" in again(project, "--push", str(remote))
    assert refs(remote)["refs/heads/research/night"] == theirs


def orphan(*command: str, cwd: Path = ROOT) -> psutil.Process:
    """A process whose parent has ended, as what a killed loop had started."""
    start = "import subprocess, sys; quiet = subprocess.DEVNULL\n"
    start += (
        "print(subprocess.Popen(sys.argv[1:], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True).pid)"
    )
    ran = subprocess.run([sys.executable, "-c", start, *command], cwd=cwd, capture_output=True, text=True, check=True)
    return psutil.Process(int(ran.stdout))


def test_what_a_killed_loop_left_is_found_and_what_is_not_ours_stays(tmp_path: Path):
    """A room whose guard was killed, a trial, a folder of a process that is gone; beside them a person's `tail` of a
    log, and a folder of a process that lives."""
    home = tmp_path / ".research" / "night"
    for folder in ("slots/0/tree", "outputs/3-0", "logs", "live"):
        (home / folder).mkdir(parents=True)
    (log := home / "logs" / "0-0.log").touch()
    room = [str(Bubblewrap().bwrap), "--unshare-pid", "--dev-bind", "/", "/", "--chdir", f"{home}/outputs"]
    strays = [orphan(*room, "sleep", "1000"), orphan("sleep", "1000", cwd=home / "slots" / "0" / "tree")]
    reader = orphan("tail", "-f", str(log))
    leaves = "import os\nfrom pathlib import Path\nfrom agent.run.leftovers import temporary\n"
    leaves += f"made = temporary(Path({str(home)!r}))\nmade.__enter__()\nos._exit(9)"
    subprocess.run([sys.executable, "-c", leaves], cwd=ROOT, env=environment())
    try:
        with temporary(home) as living:
            said = clear(home)
            assert "processes, 1 temporary folders" in said and living.exists()
        assert psutil.wait_procs(strays, timeout=10)[1] == [] and reader.is_running()
    finally:
        for process in (*strays, reader):
            with contextlib.suppress(psutil.Error):
                process.kill()
    assert not list(home.glob("overnight-*")) and not (home / "slots" / "0").exists()


def test_the_probe_writes_nothing_into_home(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch):
    """Not for a moment: the time of a folder changes with every entry that comes or goes."""
    person = tmp_path / "person"
    person.mkdir()
    monkeypatch.setenv("HOME", str(person))
    before = person.stat().st_mtime_ns
    assert probe(Bubblewrap(), repository / ".research" / "x", repository) == []
    assert "list " + str(person) in probe(Unsandboxed(), repository / ".research" / "x", repository)
    assert person.stat().st_mtime_ns == before
