"""The project as it is installed: a wheel, not this folder."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_repository
from test_loop import PROGRAM, TRAIN, block, environment, write_replies

ROOT = Path(__file__).parent.parent
RENDER = """
import agent, pathlib, sys
from agent.program import parse_program
from agent.propose.context import first_request
from agent.propose.templates import Templates
assert pathlib.Path(agent.__file__).is_relative_to(sys.argv[1]), agent.__file__
program = parse_program("---\\nmetric: val_bpb\\n---\\nTry to make the loss of the small model as low as possible.")
request = first_request(1, program, {"train.py": "LR = 1\\n"}, (), {}, Templates())
print(request.system, request.turns[0].text)
"""


def run(*argv: object, cwd: Path) -> str:
    return subprocess.run([str(a) for a in argv], cwd=cwd, stdout=subprocess.PIPE, text=True, check=True).stdout


def lives_elsewhere(target: Path, tmp_path: Path) -> None:
    """A short night and what comes after it, with the installed copy, in a folder that holds none of the sources."""
    project = make_repository(tmp_path / "project", {"train.py": TRAIN, "prepare.py": "", "program.md": PROGRAM})
    replies = write_replies(tmp_path / "replies", block("RATE = 0.5", "RATE = 0.3"))
    for line in (
        ("run", "--replay", replies, "--experiments", "1"),
        ("show", "1"),
        ("report", "--png", tmp_path / "night.png"),
        ("export", "--jsonl", tmp_path / "night.jsonl"),
        ("finalize", "--unaudited"),
    ):
        command = [sys.executable, "-P", "-m", "agent", *map(str, line)]
        env = environment(PYTHONPATH=str(target))
        ran = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(list((project / ".research").glob("*/report.html"))) == 1
    assert (tmp_path / "night.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_wheel_holds_the_prompts_the_page_and_the_command(tmp_path: Path) -> None:
    """Built from a copy, as a build leaves folders behind."""
    sources = tmp_path / "sources"
    sources.mkdir()
    names = run("git", "ls-files", "-z", "-co", "--exclude-standard", "agent", "prompts", "pyproject.toml", "setup.py",
                "README.md", "LICENSE", cwd=ROOT).split("\0")  # fmt: skip
    for name in filter(None, names):
        if (ROOT / name).exists():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_bytes((ROOT / name).read_bytes())
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "install", "--no-deps", "--no-index", "--no-build-isolation", "--target", target, sources, cwd=tmp_path)
    run("rm", "-rf", sources, cwd=tmp_path)
    prefix = f"import sys; sys.path.insert(0, {str(target)!r})\n"
    said = run(sys.executable, "-c", prefix + RENDER, target, cwd=tmp_path)
    assert "SEARCH/REPLACE" in said and "LR = 1" in said
    assert (target / "bin" / "overnight").is_file()
    lives_elsewhere(target, tmp_path)
    assert {"page.html", "page.css", "page.js"} <= {path.name for path in (target / "agent/observers/report").iterdir()}
