"""What a person has to do where their unchanged program does not run here, though it does on their own machine.

A trial has the committed files and nothing else. So what is missing is looked for where the person has it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from agent.run.task import Task

MISSING_MODULE = re.compile(r"(?:ModuleNotFoundError|ImportError): No module named '([\w.]+)'")
MISSING_FILE = re.compile(r"(?i)FileNotFoundError|No such file or directory|not found|does not exist|can't open file")
QUOTED = re.compile(r"['\"]([^'\"\n]+)['\"]")


def advice(task: Task, said: str) -> str:
    """What to do about this last line of a program that did not run, with a colon and a blank at its end; "" where it
    says nothing of what is missing."""
    if module := MISSING_MODULE.search(said):
        return about_module(task, module[1].partition(".")[0])
    if MISSING_FILE.search(said):
        for name in reversed(QUOTED.findall(said)):
            if told := about_file(task, name):
                return told
    return ""


def about_module(task: Task, name: str) -> str:
    project = Path(task.root, task.project)
    for own in (project / f"{name}.py", project / name, Path(task.root, f"{name}.py"), Path(task.root, name)):
        if own.exists() and not (task.folder / "source" / own.relative_to(task.root)).exists():
            return f"{own.relative_to(project) if own.is_relative_to(project) else own} is not committed: commit it: "
    python = task.interpreter.python if task.interpreter else sys.executable
    return f"{name} is not installed for {python}: install it there, or name another as python: in program.md: "


def about_file(task: Task, name: str) -> str:
    """A file that is there for the person, but not among what the commit or `data` gives to a trial."""
    project, path = Path(task.root, task.project), Path(name)
    for tree in (task.place("tree"), task.place("pristine")):
        if path.is_absolute() and path.is_relative_to(tree):
            path = path.relative_to(tree)
    if not path.is_absolute():
        if not (project / path).exists() or (task.place("source") / path).exists():
            return ""
        return f"{path} is not committed: list it under data: in program.md, like data: [{path}]: "
    if not path.exists() or any(path.is_relative_to(known) for known in (*task.data, *task.holdout, task.home)):
        return ""
    return f"{path} lies outside the repository: list it, or its folder, under data: in program.md: "
