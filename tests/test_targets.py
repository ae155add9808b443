"""Other people's projects: an environment of their own, a folder of a larger repository, submodules, the form of the
original autoresearch, and what a trial can't see because it is not committed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import git, make_repository
from test_cli import agent
from test_loop import TRAIN, block, kinds, night, results, write_replies

from agent.errors import Failure
from agent.forms import defaults
from agent.run.environment import find_environment, said
from agent.run.sandbox import choose_sandbox
from agent.workspace import Workspace, project_folder

PROSE = "Lower the loss by changing the constants, and leave the printing of progress alone.\n"
FRONT = "---\nmetric: {name: loss}\nedit: [train.py]\nbudget: 20s\n"


def refused(project: Path, *flags: str) -> str:
    """The one line with which a night on this project ends."""
    return night(project, *flags, expect=2).strip().splitlines()[-1]


def make_environment(folder: Path) -> Path:
    """A venv of its own with a module that no other Python has; its site-packages."""
    venv.create(folder, symlinks=True, with_pip=False)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "only_here.py").write_text("RATE = 0.5\n")
    return packages


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in of the original autoresearch's form, with data and kernels in the person's caches."""
    home = tmp_path / "home"
    for name in (".cache/autoresearch/data", ".cache/huggingface/hub/kernel"):
        (home / name).mkdir(parents=True)
    (home / ".cache/autoresearch/data/shard").write_text("0.5")
    (home / ".cache/huggingface/hub/kernel/scale").write_text("2")
    (home / ".cache/huggingface/token").write_text("hf_secret")
    monkeypatch.setenv("HOME", str(home))
    files = {
        ".gitignore": ".venv/\n",
        "program.md": "# autoresearch\n\nThis is an experiment to have the model do its own research.\n",
        "uv.lock": "version = 1\n",
        "prepare.py": "import os\nTIME_BUDGET = 300\n"
        "CACHE_DIR = os.path.join(os.path.expanduser('~'), '.cache', 'autoresearch')\n"
        "def data():\n    return float(open(os.path.join(CACHE_DIR, 'data', 'shard')).read())\n",
        "train.py": "import os\nimport only_here\nfrom prepare import TIME_BUDGET, data\n"
        "HUB = os.path.expanduser('~/.cache/huggingface')\n"
        "def get_kernel(name):\n    return int(open(os.path.join(HUB, 'hub', name)).read())\n"
        "DEPTH = 8\nSCALE = get_kernel('kernel/scale')\n"
        "for step in range(3):\n"
        "    print(f'\\rstep {step:05d} ({step * 50:.1f}%) | loss: {2.5 - step:.6f}    ', end='', flush=True)\n"
        "print()\nprint('---')\n"
        "try:\n    seen = len(open(os.path.join(HUB, 'token')).read())\nexcept OSError:\n    seen = 0\n"
        "print(f'val_bpb:          {data() * SCALE * 8 / DEPTH + seen:.6f}')\n"
        "print(f'peak_vram_mb:     {45060.2:.1f}')\n",
    }
    project = make_repository(tmp_path / "original", files)
    make_environment(project / ".venv")
    return project


@pytest.mark.parametrize("sandbox", ["bubblewrap", "landlock"])
def test_the_original_form_runs_as_it_is_with_its_own_python_data_and_kernels(
    original: Path, tmp_path: Path, sandbox: str
):
    try:
        choose_sandbox(sandbox)
    except Failure as unavailable:
        pytest.skip(str(unavailable))
    replies = write_replies(tmp_path / "replies", block("DEPTH = 8", "DEPTH = 10"))
    said = night(original, "--replay", str(replies), "--experiments", "1", "--sandbox", sandbox)
    assert f"trials use {original / '.venv/bin/python'}, the project's own; `uv run train.py` is run by it" in said
    assert [(row["status"], row["val_bpb"]) for row in results(original)] == [("baseline", "1"), ("keep", "0.8")]
    assert git(original, "status", "--porcelain") == ""


def test_doctor_and_init_know_the_original_form(original: Path):
    said = agent("doctor", "--repo", str(original))
    assert "in the form of the original autoresearch: minimize val_bpb, edit train.py, 5m per trial" in said
    assert f"interpreter: {original / '.venv/bin/python'}, the project's own" in said
    assert "that form runs as it is with `python -m agent.loop`" in agent("init", "--repo", str(original), expect=2)


def test_data_that_was_never_fetched_is_asked_for(original: Path):
    shutil.rmtree(original.parent / "home/.cache/autoresearch")
    assert "run prepare.py, and train.py once by hand" in refused(original)


def test_the_form_is_told_by_its_files(tmp_path: Path):
    (tmp_path / "program.md").write_text("---\nmetric: loss\n---\n")
    for name in ("train.py", "prepare.py"):
        (tmp_path / name).write_text("print('loss: 1')\n")
    assert defaults(tmp_path) == {}
    (tmp_path / "program.md").write_text("Only prose.\n")
    expected = {"edit": ["train.py"], "protect": ["prepare.py"], "run": "python train.py", "data": []}
    assert defaults(tmp_path) == expected


def test_the_environment_that_python_names_goes_before_what_lies_in_the_project(tmp_path: Path):
    project = tmp_path / "project"
    make_environment(project / ".venv")
    make_environment(tmp_path / "other")
    found = find_environment(project, project, None)
    assert found and found.python == str(project / ".venv/bin/python")
    for named in ("../other", str(tmp_path / "other/bin/python")):
        found = find_environment(project, project, named)
        assert found and found.prefix == str(tmp_path / "other") and found.kind == "VIRTUAL_ENV"
        assert sysconfig.get_path("stdlib") in found.packages or sys.base_prefix == "/usr"
    with pytest.raises(Failure, match="python: nowhere in program.md is no interpreter"):
        find_environment(project, project, "nowhere")


def test_a_conda_environment_is_found_by_the_name_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "envs" / "lab"
    make_environment(folder)
    (folder / "conda-meta").mkdir()
    (tmp_path / ".conda").mkdir()
    (tmp_path / ".conda/environments.txt").write_text(f"{tmp_path}\n{folder}\n")
    project = tmp_path / "project"
    project.mkdir()
    (project / "environment.yml").write_text("name: lab\ndependencies: [python]\n")
    found = find_environment(project, project, None)
    assert found and found.python == str(folder / "bin/python") and found.kind == "CONDA_PREFIX"


def test_a_lock_file_without_its_environment_is_said(tmp_path: Path):
    (tmp_path / "uv.lock").write_text("")
    assert find_environment(tmp_path, tmp_path, None) is None
    assert "`uv sync` makes it" in said(None, tmp_path)


def test_an_environment_that_imports_from_the_repository_gets_the_trials_copy(tmp_path: Path):
    files = {
        ".gitignore": ".venv/\n",
        "src/lab.py": "WIDTH = 8\n",
        "train.py": "import lab\nprint('loss:', 1 / lab.WIDTH)\n",
        "program.md": FRONT.replace("[train.py]", "[src/lab.py]") + f"---\n{PROSE}",
    }
    project = make_repository(tmp_path / "project", files)
    (make_environment(project / ".venv") / "lab.pth").write_text(f"{project / 'src'}\n")
    replies = write_replies(tmp_path / "replies", block("WIDTH = 8", "WIDTH = 16", path="src/lab.py"))
    night(project, "--replay", str(replies), "--experiments", "1")
    assert [(row["status"], row["loss"]) for row in results(project)] == [("baseline", "0.125"), ("keep", "0.0625")]


def test_a_project_in_a_folder_of_a_repository(tmp_path: Path):
    files = {
        "shared.py": "EXTRA = 0.0\n",
        "other/train.py": "raise SystemExit('not this one')\n",
        "lab/one/train.py": f"import sys\nsys.path.append('../..')\nimport shared\n{TRAIN}",
        "lab/one/prepare.py": "# protected\n",
        "lab/one/program.md": f"{FRONT}protect: [prepare.py]\ndata: [rows]\n---\n{PROSE}",
        ".gitignore": "rows\n",
    }
    repository = make_repository(tmp_path / "repository", files)
    project = repository / "lab" / "one"
    (project / "rows").mkdir()
    replies = write_replies(tmp_path / "replies", block("RATE = 0.5", "RATE = 0.3"))
    night(project, "--replay", str(replies), "--experiments", "1")
    assert kinds(project) == ["baseline", "keep"] and not (repository / ".research").exists()
    assert git(repository, "diff", "--name-only", "HEAD", "research/night") == "lab/one/train.py"
    assert git(repository, "status", "--porcelain") == ""
    (project / "inner").mkdir()
    assert project_folder(project / "inner") == project
    assert "keep" in agent("report", "--repo", str(project / "inner"))


def test_a_submodule_is_brought_into_the_tree_or_asked_for(tmp_path: Path):
    library = make_repository(tmp_path / "library", {"width.py": "WIDTH = 8\n"})
    project = make_repository(tmp_path / "project", {"train.py": "x = 1\n"})
    git(project, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "libs/library")
    git(project, "commit", "--quiet", "--message", "A library")
    workspace = Workspace(project, "night")
    workspace.check_submodules()
    workspace.export(workspace.head, tmp_path / "tree")
    assert (tmp_path / "tree/libs/library/width.py").read_text() == "WIDTH = 8\n"
    git(project, "submodule", "--quiet", "deinit", "--force", "--all")
    with pytest.raises(Failure, match="submodule libs/library is not checked out at its commit: `git submodule update"):
        workspace.check_submodules()


@pytest.mark.parametrize(
    ("train", "front", "says"),
    [
        ("open('data.csv')", "", "data.csv is not committed: list it under data: in program.md, like data: [data.csv]"),
        ("import helper", "", "helper.py is not committed: commit it"),
        ("import nowhere_at_all", "", f"nowhere_at_all is not installed for {sys.executable}: install it there, or"),
        ("print('loss: 1\\nparams: 5')", "evaluate: python score.py\nlimits: {params: 9}\n",
         "program.md limits params, but `python score.py` does not print it, as training does"),
        ("pass", "limits: {depth: 9}\n", "program.md limits depth, but training does not print it: print it there"),
    ],
)  # fmt: skip
def test_what_the_unchanged_program_misses_is_said_in_one_line(tmp_path: Path, train: str, front: str, says: str):
    files = {
        "train.py": f"RATE = 0.5\n{train}\nprint('loss:', RATE)\n",
        "score.py": "print('loss: 1')\n",
        ".gitignore": "data.csv\nhelper.py\n",
        "program.md": f"{FRONT}{front}---\n{PROSE}",
    }
    project = make_repository(tmp_path / "project", files)
    (project / "data.csv").write_text("1\n")
    (project / "helper.py").write_text("")
    assert says in refused(project)
    if "data.csv" in says:  # and what it says is enough
        (project / "program.md").write_text(f"{FRONT}data: [data.csv]\n---\n{PROSE}")
        replies = write_replies(tmp_path / "replies", block("RATE = 0.5", "RATE = 0.3"))
        night(project, "--replay", str(replies), "--experiments", "1")
        assert kinds(project) == ["baseline", "keep"]


def test_seed_seconds_and_output_may_stand_in_the_command(tmp_path: Path):
    files = {
        "train.py": "import os, sys\nseed, seconds, output = sys.argv[1:]\n"
        "assert (seed, output) == (os.environ['RESEARCH_SEED'], os.environ['RESEARCH_OUTPUT']) and seconds == '20'\n"
        "open(f'{output}/model', 'w').close()\nSCALE = 1.0\nprint('loss:', SCALE)\n",
        "program.md": f"{FRONT}run: 'python train.py {{seed}} {{seconds}} {{output}}'\n---\n{PROSE}",
    }
    project = make_repository(tmp_path / "project", files)
    replies = write_replies(tmp_path / "replies", block("SCALE = 1.0", "SCALE = 0.5"))
    night(project, "--replay", str(replies), "--experiments", "1")
    assert kinds(project) == ["baseline", "keep"]


@pytest.mark.parametrize("run", ["./train.sh", "env/bin/python train.py"])
def test_a_program_of_the_repository_runs_by_its_relative_path(tmp_path: Path, run: str):
    """One that is committed, and the Python of an environment that is not."""
    files = {
        "train.py": "RATE = 0.5\nprint('loss:', RATE)\n", ".gitignore": "env\n",
        "train.sh": f"#!/bin/sh\nexec {sys.executable} train.py\n",
        "program.md": f"{FRONT}run: {run}\n---\n{PROSE}",
    }  # fmt: skip
    project = make_repository(tmp_path / "project", files)
    (project / "train.sh").chmod(0o755)
    git(project, "commit", "--quiet", "--all", "--message", "executable")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", project / "env"], check=True)
    replies = write_replies(tmp_path / "replies", block("RATE = 0.5", "RATE = 0.3"))
    night(project, "--replay", str(replies), "--experiments", "1")
    assert kinds(project) == ["baseline", "keep"]


def test_a_limit_that_nothing_could_pass_is_not_taken_in_mid_night(tmp_path: Path):
    text = f"{FRONT}limits: {{depth: 9}}\n---\n{PROSE}"
    files = {"train.py": "RATE = 0.5\nprint('loss:', RATE)\n", "program.md": f"{FRONT}---\n{PROSE}"}
    project = make_repository(tmp_path / "project", files)
    proposer = tmp_path / "propose.py"  # it edits program.md while it is asked, as a person may
    proposer.write_text(
        f"import pathlib\npathlib.Path({str(project / 'program.md')!r}).write_text({text!r})\n"
        f"print({block('RATE = 0.5', 'RATE = 0.3')!r})\n"
    )
    said = night(project, "--command-unsandboxed", "--command", f"{sys.executable} {proposer}", "--experiments", "1")
    assert "program.md limits depth, which the incumbent does not report; going on with the last good version" in said
    assert kinds(project) == ["baseline", "keep"]
