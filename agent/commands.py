"""Command lines of the contract: refused where only a shell would understand them, and turned into arguments.

Standard library only, because the worker of every trial reads it.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence

PLACES = ("seed", "seconds", "output")
"""What may stand in braces in a command: the trial's seed, its budget in seconds, the folder it may save in."""
SHELL = re.compile(r"\|\|?|&&?|;|[<>]+|\$[A-Za-z_({]\w*|`|\n")
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
RUNNERS = {"uv": "run", "poetry": "run", "pdm": "run", "rye": "run"}
TAKES_NOTHING = ("--frozen", "--locked", "--no-sync", "--offline", "--quiet", "-q", "--all-extras", "--no-dev", "--dev")
TAKES_ONE = ("--extra", "--group", "--only-group", "--no-group", "--color")


def shell_syntax(command: str) -> str | None:
    """The first thing outside quotes that only a shell understands; None where there is none."""
    open_quote = ""
    bare: list[str] = []
    position = 0
    while position < len(command):
        letter = command[position]
        if letter == "\\" and open_quote != "'":
            bare.append("__")
            position += 2
            continue
        if letter in "'\"" and open_quote in ("", letter):
            open_quote = "" if open_quote else letter
        bare.append("_" if open_quote or letter in "'\"" else letter)
        position += 1
    text = "".join(bare).strip()
    if found := SHELL.search(text):
        return found[0].strip() or "a line break"
    return first if ASSIGNMENT.match(first := text.partition(" ")[0]) else None


def arguments(command: str) -> list[str]:
    """The command as it is run: what uv (or poetry, pdm, rye) would run in the project's environment is run there by
    its Python, since in a sandbox there is no network to install from. Raises ValueError with what to write."""
    words = shlex.split(command)
    if not words or words[1:2] != [RUNNERS.get(words[0])]:
        return words
    rest = words[2:]
    while rest and rest[0].startswith("-") and rest[0] not in ("-m", "--module"):
        name, _, value = rest[0].partition("=")
        if rest[0] == "--":
            rest = rest[1:]
            break
        if name in TAKES_NOTHING:
            rest = rest[1:]
        elif name in TAKES_ONE:
            rest = rest[1 if value else 2 :]
        else:
            raise ValueError(f"`{words[0]} run {name}` can't be done in a sandbox: write it as python SCRIPT")
    if not rest:
        raise ValueError(f"`{command}` names no script: write for example python train.py")
    if rest[0] in ("-m", "--module"):
        return ["python", "-m", *rest[1:]]
    return ["python", *rest] if rest[0].endswith(".py") else rest


def misspelt(command: str) -> str | None:
    """Something in braces that looks like one of PLACES and is none; None where there is nothing such."""
    names = (found[1] for found in re.finditer(r"\{([a-z_]+)\}", command) if found[1] not in PLACES)
    return next((name for name in names if difflib.get_close_matches(name, PLACES, cutoff=0.7)), None)


def is_translated(command: str) -> bool:
    """Whether something else is run than what stands there."""
    return arguments(command) != shlex.split(command)


def filled(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """{seed}, {seconds} and {output} in these words, replaced; other braces stay."""
    pattern = re.compile("{(" + "|".join(PLACES) + ")}")
    return [pattern.sub(lambda found: values[found[1]], word) for word in words]
