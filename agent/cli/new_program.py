"""`python -m agent init`: a program.md for a training repository that has none."""

from __future__ import annotations

import re
from pathlib import Path

from agent.errors import Failure
from agent.forms import is_original
from agent.program import PLACEHOLDER, more_is_better, parse_program
from agent.workspace import project_folder

PRINTED = re.compile(r"""print\(f?["'](?:\\n)?\s*([A-Za-z_][\w/]*)\s*[:=]\s*\{""")
TEMPLATE = """---
metric: {{name: {metric}, direction: {direction}}}   # add target: 0.9 to stop there
edit: [{script}]                # the only files the agent may change
protect: [{protect}]
run: python {script}
budget: 5m                      # training time of one trial
---
# Direction

Make {metric} {better} within the budget. This file is read again before every proposal.

{placeholder}
"""


def write_program(repo: Path, script: str, metric: str | None) -> Path:
    """Write program.md into the repository; never over one. Raises Failure."""
    root = project_folder(repo)
    path = root / "program.md"
    if is_original(root):
        form = "has no front matter, as in the original autoresearch"
        raise Failure(f"{path} {form}: that form runs as it is with `python -m agent.loop`")
    if path.exists():
        raise Failure(f"{path} is there already: edit it, or move it away first")
    if not (root / script).is_file():
        raise Failure(f"{root / script} does not exist: name the training script with --script")
    name = metric or printed_metric((root / script).read_text(encoding="utf-8", errors="replace"))
    if name is None:
        raise Failure(f"{script} prints no `name: value` line to measure: print one at its end, or say --metric NAME")
    down = not more_is_better(name)
    protect = [f for f in ("prepare.py", "eval.py", "evaluate.py", "data.py") if (root / f).is_file() and f != script]
    text = TEMPLATE.format(
        metric=name,
        direction="minimize" if down else "maximize",
        better="smaller" if down else "larger",
        script=script,
        protect=", ".join(protect),
        placeholder=PLACEHOLDER,
    )
    parse_program(text.replace(PLACEHOLDER, "Say what to try."))
    path.write_text(text, encoding="utf-8")
    return path


def printed_metric(source: str) -> str | None:
    """The printed `name: {value}` that looks most like a validation metric; the last one, else."""
    names = PRINTED.findall(source)
    marked = [n for n in names if re.search(r"val|valid|test|acc|score|f1|auc", n, re.IGNORECASE)]
    return (marked or names or [None])[-1]
