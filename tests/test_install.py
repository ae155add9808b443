"""The project as it is installed: a wheel, not this folder."""

import subprocess
import sys
from pathlib import Path

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


def test_a_wheel_holds_the_prompts_the_page_and_the_command(tmp_path: Path) -> None:
    """Built from a copy, as a build leaves folders behind."""
    sources = tmp_path / "sources"
    sources.mkdir()
    names = run("git", "ls-files", "-z", "-co", "--exclude-standard", "agent", "prompts", "pyproject.toml", "setup.py",
                "README.md", cwd=ROOT).split("\0")  # fmt: skip
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
    assert {"page.html", "page.css", "page.js"} <= {path.name for path in (target / "agent/observers/report").iterdir()}
