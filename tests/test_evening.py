"""Before a night: `init`, `doctor` and `--dry-run`, over real repositories."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, git, make_repository
from filelock import FileLock
from long_night import long_night
from server import ModelServer, Step
from test_cli import agent
from test_loop import PROGRAM, TRAIN, environment

from agent.cli import checkup
from agent.cli.checkup import Checkup
from agent.cli.new_program import Wanted, write_program
from agent.errors import Failure
from agent.findings import Printed, prints
from agent.program import load_program

VISION = """\
import argparse
from model import Net
from data import load
parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int)
parser.add_argument("--max_seconds", type=float)
parser.add_argument("--output-dir")
config = open("conf/base.yaml").read()
images = load("images/")
for epoch in range(3):
    print(f"epoch {epoch} | train loss: {1:.3f} | val_acc: {0.5:.4f} | lr {3}")
"""
SCORE = """\
import argparse
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--output-dir")
    print("val_acc: %.4f" % 0.5)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "project", {"train.py": TRAIN, "prepare.py": "# x\n", "program.md": PROGRAM})


# init


def vision(folder: Path, **more: str) -> Path:
    """A project of several files in a subfolder of a repository, with its data beside it and not in git."""
    own = {"main.py": VISION, "model.py": "", "data.py": "", "conf/base.yaml": "rate: 1\n"} | more
    make_repository(folder, {"README.md": "x", **{f"vision/{name}": text for name, text in own.items()}})
    (folder / "vision" / "images").mkdir()
    (folder / "vision" / "images" / "1.png").write_text("x")
    return folder / "vision"


def test_init_reads_what_a_project_of_several_files_has_and_prints(tmp_path: Path):
    root = vision(tmp_path / "mono", **{"score.py": SCORE})
    path, _ = write_program(root, Wanted(ideas="Try a smaller rate, and then more layers."))
    assert path == root / "program.md"
    program = load_program(path)
    assert (program.metric.name, program.metric.direction, program.metric.pattern) == ("val_acc", "maximize", None)
    assert program.edit == ("main.py", "model.py", "conf/base.yaml")
    assert program.protect == ("score.py", "data.py")
    assert program.run == "python main.py --seed {seed} --max_seconds {seconds} --output-dir {output}"
    assert program.evaluate == "python score.py --output-dir {output}"
    assert program.data == ("images",)
    with pytest.raises(Failure, match="is there already"):
        write_program(root, Wanted())


def test_without_an_evaluation_the_number_is_found_in_the_line_that_holds_it(tmp_path: Path):
    import re

    root = vision(tmp_path / "mono")
    path, _ = write_program(root, Wanted(ideas="Try a smaller rate, and then more layers."))
    program = load_program(path)
    assert program.evaluate is None and program.metric.pattern
    found = re.search(program.metric.pattern, "epoch 2 | train loss: 1.000 | val_acc: 0.5000 | lr 3")
    assert found and found[1] == "0.5000"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("print(f'val_loss: {x:.3f}')", [Printed("val_loss", True)]),
        ("print('val_loss:', x)", [Printed("val_loss", True)]),
        ("print('val_loss: %.4f' % x)", [Printed("val_loss", True)]),
        ("print('val_loss: {:.4f}'.format(x))", [Printed("val_loss", True)]),
        ("logger.info(f'step {n} | acc={a:.2f} f1={b}')", [Printed("acc", False), Printed("f1", False)]),
        ("print('hello', x)", []),
        ("def broken(", []),
    ],
)
def test_what_a_file_prints(tmp_path: Path, source: str, found: list[Printed]):
    (tmp_path / "x.py").write_text(source)
    assert prints(tmp_path / "x.py") == found


def test_init_says_what_it_could_not_find(tmp_path: Path):
    root = make_repository(tmp_path / "bare", {"notes.txt": "x"})
    with pytest.raises(Failure, match="name the training script with --script"):
        write_program(root, Wanted())
    (root / "train.py").write_text("print(f'num_params: {3}')\n")
    with pytest.raises(Failure, match="prints num_params, and none looks like what decides.*--metric NAME"):
        write_program(root, Wanted())
    with pytest.raises(Failure, match="budget"):
        write_program(root, Wanted(metric="loss", budget="soon"))
    assert not (root / "program.md").exists()
    _, notes = write_program(root, Wanted(metric="loss"))
    assert any("was not seen to print loss" in note for note in notes)


def test_on_a_terminal_init_asks_at_most_five_questions(tmp_path: Path):
    """Answers typed into a real terminal; what is not answered is what was found."""
    files = {"main.py": "print(f'val_loss: {1}')\n", "train_big.py": "print(f'val_loss: {1}')\n"}
    root = make_repository(tmp_path / "two", files)
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "agent", "init", "--repo", str(root)], cwd=ROOT, stdin=theirs,
                               stdout=theirs, stderr=theirs, env=environment(COLUMNS="200"))  # fmt: skip
    os.close(theirs)
    os.write(ours, b"train_big.py\n\n\n90s\nTry a smaller rate and then a longer warmup.\n")
    said = b""
    try:
        while piece := os.read(ours, 4096):
            said += piece
    except OSError:  # the end of a terminal
        pass
    os.close(ours)
    assert process.wait(60) == 0, said
    program = load_program(root / "program.md")
    assert (program.run, program.metric.name) == ("python train_big.py", "val_loss")
    assert program.budget["cpu"] == "90s" and "longer warmup" in program.direction
    assert said.count(b"?") <= 6 and b"wrote " in said


# doctor


def outcome(looked: Checkup, name: str) -> str:
    """`ok`, `look: why` or `FAIL: why` of one check."""
    check = dict(looked.checks())[name]
    try:
        check()
    except checkup.Doubt as doubt:
        return f"look: {doubt}"
    except Failure as failure:
        return f"FAIL: {failure}"
    return "ok"


def test_doctor_names_each_thing_that_could_end_a_night(project: Path, monkeypatch: pytest.MonkeyPatch):
    def sick(name: str, **changes: object) -> str:
        return outcome(Checkup(project, **changes), name)  # type: ignore[arg-type]

    for name in ("repository", "program.md", "data", "memory", "disk", "journal", "clock", "other loops"):
        assert sick(name).startswith(("ok", "look: ") if name == "clock" else "ok"), (name, sick(name))
    assert git(project, "status", "--porcelain") == "" and not (project / ".research").exists()

    (project / ".git" / "MERGE_HEAD").write_text("x")
    assert "a merge is under way" in sick("repository")
    (project / ".git" / "MERGE_HEAD").unlink()
    (project / "train.py").write_text(TRAIN + "# more\n")
    assert "train.py: uncommitted changes, which a night does not see" in sick("program.md")
    (project / "program.md").write_text(PROGRAM.replace("budget:", "data: [images]\nbudget:"))
    assert "FAIL: images does not exist" in sick("data")
    home = long_night(project / ".research" / "monday", 20)
    with FileLock(home / "lock"):
        assert "one works on monday" in sick("other loops")
        assert outcome(Checkup(project, own="monday"), "other loops") == "ok"
    (home / "large").write_bytes(os.urandom(1 << 22))
    assert "GB are wanted for 1e+09 hours like the newest night here" in sick("disk", hours=1e9)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 10 * 365 * 86_400)
    assert "FAIL: it says" in sick("clock") and "set the clock" in sick("clock")


def test_doctor_makes_a_small_call_only_where_it_is_asked_to(project: Path):
    with ModelServer([Step("OK", cut=True), Step(status=401, kind="authentication_error")]) as server:
        settings = {"model": "gpt-6.1-sol", "base_url": server.url + "/v1"}
        quiet = Checkup(project, proposer="openai", settings=settings)
        assert outcome(quiet, "proposer") == "ok" and not server.requests
        asking = Checkup(project, proposer="openai", settings=settings, ask_model=True)
        assert outcome(asking, "proposer") == "ok"  # the reply is cut off after so few tokens
        assert len(server.requests) == 1 and "Say OK." in str(server.requests[0]["body"])
        refused = outcome(Checkup(project, proposer="openai", settings=settings, ask_model=True), "proposer")
        assert refused.startswith("FAIL: ") and "check the key" in refused


# --dry-run


def test_a_dry_run_shows_the_first_prompt_and_what_the_night_comes_to_and_leaves_nothing(project: Path):
    before = sorted(project.rglob("*"))
    with ModelServer([]) as server:
        flags = ("--proposer", "openai", "--base-url", server.url + "/v1", "--model", "gpt-4o", "--dry-run")
        said = agent("run", "--repo", str(project), *flags, "--hours", "1", "--no-check")
        assert not server.requests
    assert "Lower the loss by changing the constants" in said and "WIDTH = 8" in said and "SEARCH" in said
    for part in ("minimize loss, 20s per trial", "tokens, counted by", "experiments in", "what ends it: 1 hours",
                 "nothing was trained, and nothing is left behind"):  # fmt: skip
        assert part in said, said
    assert sorted(project.rglob("*")) == before and git(project, "status", "--porcelain") == ""
