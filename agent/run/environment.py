"""The Python environment of the project: which interpreter runs its commands, and what of it a room has to show.

The loop may be installed in an environment of its own. So the project's is looked for where people have it (.venv,
venv, the conda environment that environment.yml names), or taken from `python:` in program.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from agent.errors import Failure
from agent.run.installed import links, of_prefix
from agent.run.task import Interpreter

FOLDERS = (".venv", "venv", ".conda", "env")
ASK = "import json, sys; print(json.dumps([sys.prefix, sys.base_prefix, sys.path]))"
SECONDS = 60.0


def find_environment(project: Path, repository: Path, named: str | None) -> Interpreter | None:
    """The project's environment; None: it has none, or it is the loop's own. `named`: `python:` of program.md. Raises
    Failure where that one does not work."""
    if named is not None:
        at = Path(os.path.normpath(project / Path(named).expanduser()))
        python = at / "bin" / "python" if at.is_dir() else at
        if not os.access(python, os.X_OK):
            raise Failure(f"python: {named} in program.md is no interpreter: name bin/python of an environment, or it")
        return examined(python, repository)
    for python in candidates(project, repository):
        if python.is_symlink() and not python.exists():
            raise Failure(f"{python} leads nowhere, as after an update of Python: make its environment again, or name "
                          "another one as python: in program.md")
        if os.access(python, os.X_OK):
            if python.parent.parent.resolve() == Path(sys.prefix).resolve():
                return None
            return examined(python, repository)
    return None


def candidates(project: Path, repository: Path) -> Iterator[Path]:
    """Where the interpreter of this project may be; the nearest first."""
    places = [project, *(p for p in project.parents if p == repository or p.is_relative_to(repository))]
    for place in places:
        for folder in FOLDERS:
            if (place / folder / "pyvenv.cfg").is_file() or (place / folder / "conda-meta").is_dir():
                yield place / folder / "bin" / "python"
        if name := conda_name(place):
            yield from (folder / "bin" / "python" for folder in conda_environments() if folder.name == name)


def conda_name(place: Path) -> str | None:
    """The environment that environment.yml names."""
    for file in ("environment.yml", "environment.yaml"):
        try:
            text = (place / file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if found := re.search(r"(?m)^name:\s*['\"]?([\w.-]+)", text):
            return found[1]
    return None


def conda_environments() -> list[Path]:
    """All that conda has made here, as it lists them itself."""
    try:
        lines = (Path.home() / ".conda" / "environments.txt").read_text(encoding="utf-8").split("\n")
    except OSError:
        return []
    return [Path(line.strip()) for line in lines if line.strip()]


def examined(python: Path, repository: Path) -> Interpreter:
    """What the interpreter says of itself. Raises Failure."""
    repaired = f"make its environment again, or name another one as python: in program.md ({python})"
    try:
        ran = subprocess.run([python, "-I", "-c", ASK], capture_output=True, text=True, timeout=SECONDS)
        prefix, base, path = json.loads(ran.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError) as error:
        raise Failure(f"the project's own Python does not run ({type(error).__name__}): {repaired}") from None
    roots = [Path(prefix), Path(base), *(folder for link in links(python) if (folder := link.parent.parent))]
    found = [Path(os.path.normpath(entry)) for entry in path if entry and Path(entry).is_dir()]
    own = [entry for entry in found if is_editable(entry, repository, roots)]
    seen = {Path.home(), *Path.home().parents, repository, *repository.parents}  # never a whole home or repository
    installed = [path for root in roots for path in of_prefix(root)]
    packages = [p for p in (*installed, *found) if p not in own and p not in seen and not p.is_relative_to("/usr")]
    return Interpreter(
        python=str(python),
        prefix=prefix,
        packages=list(dict.fromkeys(map(str, packages))),
        kind="CONDA_PREFIX" if Path(prefix, "conda-meta").is_dir() else "VIRTUAL_ENV",
        inside=[str(path.relative_to(repository)) for path in own],
    )


def is_editable(entry: Path, repository: Path, roots: list[Path]) -> bool:
    return entry.is_relative_to(repository) and not any(
        entry.is_relative_to(root) for root in roots if root != repository
    )


def said(found: Interpreter | None, project: Path) -> str:
    """Which interpreter runs the commands, for a person."""
    if found:
        return f"{found.python}, the project's own"
    missing = "; there is a uv.lock, but no .venv: `uv sync` makes it" if (project / "uv.lock").is_file() else ""
    return f"{sys.executable}, with which this loop runs{missing}"
