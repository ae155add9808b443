"""docs/PROGRAM.md, made from the model that program.md is validated with: `python docs/reference.py > docs/PROGRAM.md`.

A test compares the two, so that the reference can't fall behind the program.
"""

from __future__ import annotations

import ast
import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic_core import PydanticUndefined

from agent.cli import night
from agent.program import Metric, Part, Program, Timeouts

HEAD = """# program.md

The one file that you write: between two lines `---` the contract, as YAML; below them, in prose, the direction. It is
read again all through a night. The direction, the target, limits and reruns count from the next experiment on. Metric,
files, commands, budget and data stay as they were when the night began, because trials could not be compared otherwise:
such an edit is reported, and wants a new `--tag`.

This page is made from the code (`python docs/reference.py`). A whole example stands in the README; projects to start
from are in [examples/](../examples).
"""
ALIKE = {str: "text", int: "whole number", float: "number", bool: "true or false"}
TAIL = """
## Places in commands

`{seed}`, `{seconds}` and `{output}` in `run`, `evaluate` and `test` are replaced by the trial's seed, its budget in
seconds and the one folder that it may write to. A script that reads the environment finds them as `RESEARCH_SEED`,
`RESEARCH_BUDGET_SECONDS` (with a budget of tokens also `RESEARCH_BUDGET_TOKENS`) and `RESEARCH_OUTPUT`. Commands are
run without a shell; where one is needed, write `sh -c '...'`. In `data` and `holdout`, `${NAME}` and
`${NAME:-otherwise}` are environment variables, and `RESEARCH_DATA` is the `data_hash` that the `prepare` command
printed.

## Flags that go over the file

"""


def described(model: type[Part]) -> dict[str, str]:
    """Field -> the text that stands under it in the source."""
    body = ast.parse(inspect.getsource(model)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for line, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(below, ast.Expr):
            assert isinstance(below.value, ast.Constant)
            found[line.target.id] = " ".join(str(below.value.value).split())
    return found


def kind(of: Any) -> str:
    """A type in words."""
    origin, inside = typing.get_origin(of), typing.get_args(of)
    if of in ALIKE:
        return ALIKE[of]
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inside)
    if origin in (typing.Union, types.UnionType):
        return kind(next(one for one in inside if one is not type(None)))
    if origin is tuple:
        return f"list of {kind(inside[0])}s, or one"
    if origin is dict:
        return f"{kind(inside[1])}s by name" if inside[0] is str else "text; or one for each of `cpu` and `cuda`"
    return "the keys below"


def default(value: Any) -> str:
    if value is PydanticUndefined:
        return "must be given"
    if isinstance(value, Part):
        return ""
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, dict):
        return " / ".join(f"`{one}`" for one in sorted(set(value.values())))
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def rows(model: type[Part]) -> Iterator[str]:
    texts = described(model)
    yield "| key | what it holds | default | |"
    yield "| --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        if (model, name) != (Program, "direction"):
            told = re.sub(r"\((run|cli)/.*?\)", "", texts[name]).replace(" ,", ",").replace("|", "\\|")
            told = told.replace("; None: ", "; not given: ").replace(" -> ", ": ")
            yield f"| `{name}` | {kind(field.annotation)} | {default(field.default)} | {told} |"


def flags() -> Iterator[str]:
    for name, parameter in inspect.signature(night.run, eval_str=True).parameters.items():
        for told in typing.get_args(parameter.annotation):
            if (text := str(getattr(told, "help", None) or "")).startswith("Contract: "):
                yield f"- `--{name.replace('_', '-')}`: {text.removeprefix('Contract: ')}"


def page() -> str:
    short = "`metric: val_loss` is short for `metric: {name: val_loss}`."
    parts = [HEAD, *rows(Program), "", "## metric", "", short, "", *rows(Metric)]
    parts += ["", "## timeouts", "", *rows(Timeouts)]
    return "\n".join(parts) + "\n" + TAIL + "\n".join([*flags(), "- `--budget`: as `budget`"]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
