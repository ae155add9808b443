"""`python -m agent init`: a program.md for a training repository that has none, from what its code says and from the
answers to a few questions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.errors import Failure, ProgramError
from agent.files import write_file
from agent.findings import Found, Printed, look, scripts
from agent.forms import is_original
from agent.program import PLACEHOLDER, more_is_better, parse_program
from agent.typed import typed
from agent.workspace import open_repository

TEMPLATE = """---
metric: {metric}   # add target: 0.9 to stop there
edit: [{edit}]   # the only files that the agent may change
protect: [{protect}]   # these must stay as they are: what measures, and what reads the data
run: {run}
{evaluate}
budget: {budget}   # of training, for one trial; startup and evaluation are extra
{data}---
# Direction

Make {name} {better} within the budget. This file is read again before every proposal.

{direction}
"""
NO_EVALUATION = (
    "# evaluate: python evaluate.py   # safer: a protected file that measures what training has saved in\n"
    "#                                # RESEARCH_OUTPUT; without one, the number that training prints counts"
)

NOTHING = "prints no `name: value` line to measure"

Ask = Callable[[str, str], str]
"""A question and the answer that is taken where nothing is typed -> the answer."""


@dataclass(frozen=True)
class Wanted:
    """What flags say; None: look for it, or ask."""

    script: str | None = None
    metric: str | None = None
    direction: str | None = None
    budget: str | None = None
    ideas: str | None = None


def write_program(repo: Path, wanted: Wanted, ask: Ask | None = None) -> tuple[Path, list[str]]:
    """Write program.md into the folder, never over one; its path, and what a person should know of it. `ask`: there is
    somebody to be asked. Raises Failure."""
    open_repository(repo)
    root = repo.resolve()
    path = root / "program.md"
    if is_original(root):
        form = "has no front matter, as in the original autoresearch"
        raise Failure(f"{path} {form}: that form runs as it is with `{typed('run')}`")
    if path.exists():
        raise Failure(f"{path} is there already: edit it, or move it away first")
    found = look(root, the_script(root, wanted, ask))
    wanted = asked(wanted, found, ask) if ask else wanted
    known = {p.name: p for p in found.printed}
    metric = known.get(wanted.metric, Printed(wanted.metric, alone=True)) if wanted.metric else found.metric
    if metric is None:
        names = ", ".join(dict.fromkeys(p.name for p in found.printed))
        what = f"prints {names}, and none looks like what decides" if names else NOTHING
        raise Failure(f"{found.script} {what}: print one at its end, or say --metric NAME")
    text = written(found, metric, wanted)
    try:
        parse_program(text.replace(PLACEHOLDER, "Say what to try, in a sentence or two of some words."))
    except ProgramError as error:
        raise Failure(str(error).removeprefix("program.md: ")) from None
    write_file(path, text.encode(), "its folder has to be writable")
    return path, notes(root, found, metric, known)


def the_script(root: Path, wanted: Wanted, ask: Ask | None) -> str:
    likely = scripts(root)
    script = wanted.script or (likely[0] if likely else "train.py")
    if ask and not wanted.script and len(likely) != 1:
        script = ask("Which script trains?" + (f" ({', '.join(likely[:5])})" if likely else ""), script)
    if not (root / script).is_file():
        raise Failure(f"{root / script} does not exist: name the training script with --script")
    return script


def asked(wanted: Wanted, found: Found, ask: Ask) -> Wanted:
    """Four questions at most, each for what no flag has said."""
    if wanted.metric is None:
        names = ", ".join(dict.fromkeys(p.name for p in found.printed))
        best = found.metric.name if found.metric else ""
        question = "Which number decides?" + (f" (printed are {names})" if names else "")
        wanted = replace(wanted, metric=ask(question, best) or None)
    if wanted.direction is None and wanted.metric:
        better = "larger" if more_is_better(wanted.metric) else "smaller"
        said = ask(f"Is a smaller or a larger {wanted.metric} better?", better)
        wanted = replace(wanted, direction="maximize" if said.lower().startswith(("l", "ma", "h")) else "minimize")
    if wanted.budget is None:
        wanted = replace(wanted, budget=ask("How long may one trial train? (20s, 5m, 2M tokens within 60s)", "5m"))
    if wanted.ideas is None:
        ideas = ask("What to try first, and what to leave alone? (a sentence or two; or later, in the file)", "")
        wanted = replace(wanted, ideas=ideas or None)
    return wanted


def written(found: Found, metric: Printed, wanted: Wanted) -> str:
    direction = wanted.direction or ("maximize" if more_is_better(metric.name) else "minimize")
    pattern = "" if metric.alone else f", pattern: '{metric.pattern}'"
    return TEMPLATE.format(
        metric=f"{{name: {metric.name}, direction: {direction}{pattern}}}",
        edit=listed(found.edit),
        protect=listed(found.protect),
        run=found.run,
        evaluate=f"evaluate: {found.evaluate}" if found.evaluate else NO_EVALUATION,
        budget=wanted.budget or "5m",
        data=f"data: [{listed(found.data)}]   # not in git, and read by training\n" if found.data else "",
        name=metric.name,
        better="larger" if direction == "maximize" else "smaller",
        direction=wanted.ideas or PLACEHOLDER,
    )


def listed(names: Sequence[str]) -> str:
    """Of a list in YAML."""
    return ", ".join(name if re.fullmatch(r"[\w./-]+", name) else json.dumps(name) for name in names)


def notes(root: Path, found: Found, metric: Printed, known: dict[str, Printed]) -> list[str]:
    """What a person should look at in what was written."""
    told = []
    if metric.name not in known:
        who = f"`{found.evaluate}`" if found.evaluate else found.script
        told.append(f"{who} was not seen to print {metric.name}: a line `{metric.name}: <number>` is needed")
    if not found.speaks:
        told.append(f"{found.script} was not seen to print progress, like `step 10 loss 3.2`: it gives the curves")
    if "{seconds}" not in found.run and "RESEARCH_BUDGET" not in (root / found.script).read_text("utf-8", "replace"):
        told.append(f"{found.script} should end with its budget: RESEARCH_BUDGET_SECONDS, or {{seconds}} in `run`")
    return told
